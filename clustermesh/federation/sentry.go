// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

// suspectsAtOnce is how many keys are looked at before changes are applied on.
const suspectsAtOnce = 100

// errDamaged ends a stream: the next one copies all.
var errDamaged = errors.New("our copy was changed by somebody else, and is made again")

// suspect is a write to the mirror that may be somebody else's.
type suspect struct {
	key string
	rev int64
}

// sentry watches state/<peer>/ in our store, and the peer's markers, for writes
// that are not the importer's. It holds no values: it knows the importer's transactions by their
// revisions, and for what is left the importer reads the key again.
type sentry struct {
	kv      kvstore.Client
	prefix  string
	markers string
	begin   chan int64    // capacity 1: the revision behind which it watches
	wake    chan struct{} // capacity 1: there are suspects, or markers to look at
	said    said          // owned by apply
	off     bool          // it watches nothing

	mu       sync.Mutex
	on       bool
	newest   int64              // revision of the importer's newest transaction
	ours     map[int64]struct{} // those that the watch has not shown yet
	suspects []suspect
	marks    bool // a marker was written
}

func newSentry(kv kvstore.Client, own, peer string) *sentry {
	return &sentry{
		kv: kv, prefix: kvstore.Prefix(kvstore.State, peer), markers: kvstore.KindPrefix(kvstore.Local, own, kvstore.KindSynced) + peer + "/",
		begin: make(chan int64, 1), wake: make(chan struct{}, 1), ours: map[int64]struct{}{},
	}
}

// start has everything watched that is written after rev and after the importer's
// newest transaction; it has none under way. A second start is none.
func (s *sentry) start(rev int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on || s.off {
		return
	}
	s.on = true
	s.begin <- max(rev, s.newest)
}

// wrote notes a transaction of the importer.
func (s *sentry) wrote(ops []kvstore.Op, rev int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = max(s.newest, rev)
	// The mirror's keys come before others.
	if s.on && len(ops) > 0 && strings.HasPrefix(ops[0].Key, s.prefix) {
		s.ours[rev] = struct{}{}
	}
}

// run watches once it is started, until the context ends. An error says that the
// mirror has to be read anew.
func (s *sentry) run(ctx context.Context, c *Config) error {
	if s.off {
		return nil
	}
	var rev int64
	select {
	case rev = <-s.begin:
	case <-ctx.Done():
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	done.Go(func() { s.watchMarkers(ctx, c) })
	wait := backoff.New(c.BackoffMin, c.BackoffMax)
	for {
		err := s.kv.Watch(ctx, s.prefix, rev+1, func(b kvstore.WatchBatch) error {
			s.saw(b)
			rev = b.Revision
			wait.Reset()
			return nil
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kvstore.ErrCompacted), errors.Is(err, kvstore.ErrFutureRevision):
			return fmt.Errorf("watch our copy: %w", err)
		}
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
}

func (s *sentry) saw(b kvstore.WatchBatch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range b.Events {
		if _, ours := s.ours[ev.ModRevision]; !ours {
			// It may be ours all the same: our transaction's answer can come later.
			s.suspects = append(s.suspects, suspect{ev.Key, ev.ModRevision})
		}
	}
	shown := b.Revision
	if len(s.suspects) > 0 {
		shown = s.suspects[0].rev
		s.poke()
	}
	for rev := range s.ours {
		if rev < shown {
			delete(s.ours, rev)
		}
	}
}

func (s *sentry) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// foreign takes the suspects that are not the importer's, a number of them; the
// importer has no transaction under way.
func (s *sentry) foreign() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	taken := 0
	for _, x := range s.suspects {
		if len(out) == suspectsAtOnce {
			break
		}
		taken++
		if _, ours := s.ours[x.rev]; !ours {
			out = append(out, x.key)
		}
	}
	if s.suspects = slices.Delete(s.suspects, 0, taken); len(s.suspects) > 0 {
		s.poke()
	}
	return out
}

// inspect compares what may have been changed by somebody else with what the
// mirror should hold. If it differs the stream ends: the next one finds that the
// copy is not what was stored beside the position, and copies all. That is not more
// often than once in RepairEvery, lest somebody who writes again and again keeps the
// peer's changes from us.
func (im *importer) inspect(ctx context.Context) error {
	if err := im.remark(ctx); err != nil {
		return err
	}
	for _, key := range im.sentry.foreign() {
		if im.spoilt {
			break // one key is enough
		}
		kv, _, err := im.kv.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("look at %s: %w", key, err)
		}
		want, known := im.mirror.entries[strings.TrimPrefix(key, im.sentry.prefix)]
		if known == (kv != nil) && (kv == nil || hashOf(kv.Value) == want.hash) {
			continue
		}
		im.log.Warn("somebody changed our copy of a peer's key", "peer", im.peer, "key", key)
		im.st.do(func() { im.st.spoilt = key })
		im.spoilt = true
	}
	if !im.spoilt {
		return nil
	}
	var due time.Duration
	im.st.do(func() {
		if !im.st.repairedAt.IsZero() {
			due = im.cfg.RepairEvery - time.Since(im.st.repairedAt)
		}
	})
	if due > 0 {
		if !im.patient {
			im.patient = true
			time.AfterFunc(due, im.sentry.poke)
		}
		return nil
	}
	im.st.do(func() { im.st.repairedAt = time.Now() })
	return errDamaged
}
