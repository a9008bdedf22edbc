// SPDX-License-Identifier: Apache-2.0

// Package store keeps a process and the keyspace in step: a Reader follows a
// subtree, a Writer keeps its owner's keys as they should be, a Presence holds
// the one leased key of a node.
//
// Start with Reader and Batch. Markers say when what vanished in another
// history of the store may be believed to be gone. Out of scope: what records
// mean; each consumer turns batches into its own tables.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/internal/seldom"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	defaultPage  = 1000
	backoffMin   = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
	thawInterval = 250 * time.Millisecond
	// skipsTold is how many skipped records are logged in a minute.
	skipsTold = 20
)

// Change is one key that was written or deleted.
type Change struct {
	Key kvstore.Key
	// KV has no value when Deleted; its ModRevision is 0 for a deletion that
	// was found by listing.
	KV kvstore.KV
	// Record is the decoded, validated value; nil when Deleted or Raw.
	Record  proto.Message
	Deleted bool
}

// Batch is what happened, in the store's order. One without changes says that
// the revision has moved.
type Batch struct {
	Changes []Change
	// Revision: nothing at or below it is missing any more, but for the
	// deletions that a freeze holds back. It is 0 in the middle of a listing.
	Revision int64
	// Listed marks the last batch of a listing.
	Listed bool
	// Unreadable are all keys whose present value cannot be read, in no order; read only.
	Unreadable []Unreadable
}

// ReaderConfig is what a Reader follows.
type ReaderConfig struct {
	Client kvstore.Client
	// Prefix is the directory followed, ending with '/'.
	Prefix string
	// Apply takes each batch; calls never overlap. While it runs the watch
	// waits. It owns the batch.
	Apply func(Batch)
	// Limits are what records are checked against.
	Limits kvstore.Limits
	// Raw delivers values without decoding: unknown kinds, too.
	Raw bool
	// OnBad is told of each key or value that is skipped. It may be nil.
	OnBad func(*kvstore.BadRecord)
	// Markers tell another history of the store and when it is complete. nil
	// believes every listing.
	Markers Markers
	// Page is the number of keys listed at once; 0 means 1,000.
	Page int64
	Log  *slog.Logger
}

// Status is how a Reader stands.
type Status struct {
	Connected   bool // the watch is served now
	Since       time.Time
	Revision    int64
	Incarnation string
	Keys        int
	Frozen      int // keys that vanished in another history and are kept for now
	Lists       int // listings so far: 1 unless a resume was impossible
	Bad         map[string]int
	Err         string // why not connected
}

// Reader follows a subtree: it lists pages at one revision and watches from the
// next. What it delivered stays delivered while the connection is broken.
type Reader struct {
	cfg ReaderConfig

	apply sync.Mutex // held while Apply runs and while keys and ghosts change
	keys  map[string]entry
	// ghosts are delivered keys that are not in the store's present history.
	ghosts     map[string]kvstore.Key
	unreadable unreadable  // below apply
	told       seldom.Gate // of what is skipped

	mu       sync.Mutex
	status   Status
	advanced chan struct{} // closed when the revision moves
}

type entry struct {
	rev       int64
	delivered bool // false while all its values were bad
}

// NewReader returns a Reader; Run makes it follow.
func NewReader(cfg ReaderConfig) (*Reader, error) {
	if cfg.Client == nil || cfg.Apply == nil || cfg.Prefix == "" {
		return nil, errors.New("reader: client, prefix and apply are all needed")
	}
	if cfg.Page == 0 {
		cfg.Page = defaultPage
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Reader{
		cfg: cfg, keys: map[string]entry{}, ghosts: map[string]kvstore.Key{},
		status: Status{Since: time.Now(), Bad: map[string]int{}}, advanced: make(chan struct{}),
		told: seldom.Gate{Window: time.Minute, Most: skipsTold},
	}, nil
}

// Status is a snapshot for people and metrics.
func (r *Reader) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Bad = maps.Clone(s.Bad)
	return s
}

// Revision is the revision up to which all was delivered; 0 before the first
// listing.
func (r *Reader) Revision() int64 { return r.Status().Revision }

// WaitRevision blocks until all up to rev (at least the first listing) was
// delivered, or the context ends.
func (r *Reader) WaitRevision(ctx context.Context, rev int64) error {
	for {
		r.mu.Lock()
		at, ch := r.status.Revision, r.advanced
		r.mu.Unlock()
		if at > 0 && at >= rev {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d of %s, now at %d: %w", rev, r.cfg.Prefix, at, ctx.Err())
		}
	}
}

// Run follows until the context ends and returns nil then.
func (r *Reader) Run(ctx context.Context) error {
	wait := backoff.New(backoffMin, backoffMax)
	var pos position
	for {
		pos.served = false
		err := r.follow(ctx, &pos)
		if ctx.Err() != nil {
			r.disconnected(ctx.Err())
			return nil
		}
		r.disconnected(err)
		r.cfg.Log.Warn("watch interrupted", "prefix", r.cfg.Prefix, "error", err)
		if pos.served {
			wait.Reset()
		}
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
}

// position is where in which history a Reader stands.
type position struct {
	rev         int64 // 0: it must list
	incarnation string
	known       bool // incarnation has been read
	ahead       bool // the store turned out to be behind rev
	served      bool // the watch delivered something
}

// follow lists if it must, then watches. It returns why it could not go on.
func (r *Reader) follow(ctx context.Context, pos *position) error {
	inc, err := r.incarnation(ctx)
	if err != nil {
		return err
	}
	if !pos.known {
		pos.known, pos.incarnation = true, inc
	}
	if pos.rev == 0 || inc != pos.incarnation {
		if err := r.list(ctx, pos, inc); err != nil {
			return err
		}
	}
	watching, stop := context.WithCancelCause(ctx)
	var done sync.WaitGroup
	defer done.Wait()
	defer stop(nil)
	done.Go(func() { r.thaw(watching) })
	done.Go(func() {
		if r.renamed(watching, inc) {
			stop(errHistoryChanged)
		}
	})

	err = r.cfg.Client.Watch(watching, r.cfg.Prefix, pos.rev+1, func(b kvstore.WatchBatch) error {
		r.watched(b)
		pos.rev, pos.served = b.Revision, true
		return nil
	})
	switch {
	case errors.Is(err, kvstore.ErrFutureRevision):
		pos.rev, pos.ahead = 0, true
	case errors.Is(err, kvstore.ErrCompacted):
		pos.rev = 0
	}
	return err
}

// renamed waits until the store's history has another name than the one that was
// listed: after a restore it has none until the API server is there again, and
// markers of the former history may be read before they are replaced. What has
// another name is listed again, since a name that is read beside the watch may be
// that of another store. It returns false when the context ends.
func (r *Reader) renamed(ctx context.Context, inc string) bool {
	if r.cfg.Markers == nil {
		return false
	}
	wait := backoff.New(backoffMin, backoffMax)
	for {
		if r.cfg.Markers.Renamed(ctx, inc) == nil {
			return ctx.Err() == nil
		}
		if wait.Wait(ctx) != nil {
			return false
		}
	}
}

func (r *Reader) incarnation(ctx context.Context) (string, error) {
	if r.cfg.Markers == nil {
		return "", nil
	}
	inc, err := r.cfg.Markers.Incarnation(ctx)
	if err != nil {
		return "", fmt.Errorf("read incarnation for %s: %w", r.cfg.Prefix, err)
	}
	return inc, nil
}

// watched delivers one batch of a watch.
func (r *Reader) watched(b kvstore.WatchBatch) {
	r.apply.Lock()
	defer r.apply.Unlock()
	out := Batch{Revision: b.Revision}
	for _, ev := range b.Events {
		if c, ok := r.change(ev.KV, ev.Deleted); ok {
			out.Changes = append(out.Changes, c)
		}
	}
	if len(out.Changes) > 0 || b.Revision > r.Revision() {
		r.deliver(out)
	}
	r.advance(b.Revision, true)
}

// deliver hands a batch over. The caller holds apply.
func (r *Reader) deliver(b Batch) {
	b.Unreadable = r.unreadable.all()
	r.cfg.Apply(b)
}

// change turns a stored key into what is delivered, and remembers it. The
// caller holds apply.
func (r *Reader) change(kv kvstore.KV, deleted bool) (Change, bool) {
	had := r.keys[kv.Key].delivered
	if _, ghost := r.ghosts[kv.Key]; ghost {
		had = true
		delete(r.ghosts, kv.Key)
	}
	r.unreadable.remove(kv.Key)
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		r.keys[kv.Key] = entry{rev: kv.ModRevision}
		if deleted {
			delete(r.keys, kv.Key)
		} else {
			r.bad(err)
		}
		return Change{}, false
	}
	if deleted {
		delete(r.keys, kv.Key)
		return Change{Key: k, KV: kv, Deleted: true}, had
	}
	c := Change{Key: k, KV: kv}
	if !r.cfg.Raw {
		if c.Record, err = r.cfg.Limits.Decode(k, kv.Value); err != nil {
			r.keys[kv.Key] = entry{rev: kv.ModRevision, delivered: had}
			if r.bad(err) {
				r.unreadable.add(kv.Key, Unreadable{k, had})
			}
			return Change{}, false
		}
	}
	r.keys[kv.Key] = entry{rev: kv.ModRevision, delivered: true}
	return c, true
}

// bad counts and reports what is skipped; unknown kinds are skipped in silence,
// and it returns false.
func (r *Reader) bad(err error) bool {
	var b *kvstore.BadRecord
	if !errors.As(err, &b) {
		return false
	}
	r.mu.Lock()
	r.status.Bad[b.Reason]++
	r.mu.Unlock()
	if r.cfg.OnBad != nil {
		r.cfg.OnBad(b)
	}
	if untold, ok := r.told.Pass(); ok {
		r.cfg.Log.Warn("record skipped", "key", b.Key, "reason", b.Reason, "detail", b.Detail, "untold_before", untold)
	}
	return true
}

func (r *Reader) advance(rev int64, watching bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.status
	if watching && !s.Connected {
		s.Connected, s.Since, s.Err = true, time.Now(), ""
	}
	s.Revision, s.Keys, s.Frozen = rev, len(r.keys), len(r.ghosts)
	close(r.advanced)
	r.advanced = make(chan struct{})
}

func (r *Reader) disconnected(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status.Connected {
		r.status.Connected, r.status.Since = false, time.Now()
	}
	if err != nil {
		r.status.Err = err.Error()
	}
}
