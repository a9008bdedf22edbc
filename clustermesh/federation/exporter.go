// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

// exporter sends state/<own>/ to one peer on one stream.
type exporter struct {
	kv   kvstore.Client
	own  string
	cfg  *Config
	st   *peerState
	send func(*federationv1.Frame) error
	// incarnation of our store when the stream began; another one ends it.
	incarnation string
	codec       *codec
	subs        chan *federationv1.Subscribe
	kinds       map[kvstore.Kind]bool // empty: all

	mu       sync.Mutex
	sent     uint64        // sequence of the newest batch
	acked    uint64        // sequence acknowledged
	room     chan struct{} // has a token when acked has moved
	sentLow  int64         // everything at or below is sent
	queue    *queue        // nil before and during a snapshot
	unsynced uint64        // what a snapshot has not sent yet, at least
	unacked  []mark        // of the batches between acked and sent, in order
}

// mark is what the acknowledgement of a batch means: the peer has stored all at
// or below low. It is 0 for the pages of a snapshot but the last.
type mark struct {
	seq uint64
	low int64
}

func newExporter(kv kvstore.Client, own, incarnation string, cfg *Config, st *peerState, c *codec, send func(*federationv1.Frame) error) *exporter {
	return &exporter{kv: kv, own: own, cfg: cfg, st: st, send: send, incarnation: incarnation, codec: c,
		subs: make(chan *federationv1.Subscribe, 1), room: make(chan struct{}, 1)}
}

func (e *exporter) prefix() string { return kvstore.Prefix(kvstore.State, e.own) }

func (e *exporter) subscribe(s *federationv1.Subscribe) error {
	select {
	case e.subs <- s:
		return nil
	default:
		return violate(reasonProtocol, "it subscribed twice on one stream")
	}
}

// acknowledged takes an acknowledgement; one of a batch that was not sent is a
// *violation.
func (e *exporter) acknowledged(seq uint64) error {
	e.mu.Lock()
	if sent := e.sent; seq > sent {
		e.mu.Unlock()
		return violate(reasonSequence, "it acknowledged batch %d; we have sent %d", seq, sent)
	}
	var stored int64
	if seq > e.acked {
		e.acked = seq
		e.st.acks(time.Now(), e.sent > e.acked)
		for len(e.unacked) > 0 && e.unacked[0].seq <= seq {
			stored = max(stored, e.unacked[0].low)
			e.unacked = e.unacked[1:]
		}
	}
	e.mu.Unlock()
	e.stored(stored)
	select {
	case e.room <- struct{}{}:
	default:
	}
	return nil
}

// stored notes that the peer has stored our records up to rev, unless it is 0.
func (e *exporter) stored(rev int64) {
	if rev > 0 {
		e.st.acknowledged(&keyspacev1.Position{Incarnation: e.incarnation, Revision: rev})
	}
}

// position is what a heartbeat says: our low-water mark, and how much waits.
func (e *exporter) position() (*keyspacev1.Position, uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	pending := e.unsynced
	if e.queue != nil {
		pending = uint64(e.queue.len())
	}
	return &keyspacev1.Position{Incarnation: e.incarnation, Revision: e.sentLow}, pending
}

// run waits for the receiver's wish and serves it until the context ends.
func (e *exporter) run(ctx context.Context) error {
	var sub *federationv1.Subscribe
	select {
	case sub = <-e.subs:
	case <-ctx.Done():
		return nil
	}
	e.kinds = map[kvstore.Kind]bool{}
	for _, k := range sub.GetKinds() {
		e.kinds[kvstore.Kind(k)] = true
	}
	from, target, reason, err := e.decide(ctx, sub.GetPosition())
	for err == nil {
		if reason != "" {
			from, err = e.snapshot(ctx, reason)
		} else {
			err = e.announce(federationv1.Resync_MODE_RESUME, from, target, "")
			e.stored(from)
		}
		if err == nil {
			err = e.follow(ctx, from)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, kvstore.ErrCompacted):
			reason, err = "history was compacted while streaming", nil
		case errors.Is(err, kvstore.ErrFutureRevision):
			return fmt.Errorf("our store went back in time: %w", err)
		}
	}
	return err
}

// decide answers whether the position can be resumed from, and up to where the
// receiver is behind; a reason means that it cannot.
func (e *exporter) decide(ctx context.Context, p *keyspacev1.Position) (from, target int64, reason string, err error) {
	switch {
	case p.GetIncarnation() == "" || p.GetRevision() <= 0:
		return 0, 0, "first sync", nil
	case p.GetIncarnation() != e.incarnation:
		return 0, 0, "the store is another one: its incarnation changed", nil
	}
	_, err = e.kv.List(ctx, e.prefix(), "", 1, p.GetRevision())
	switch {
	case errors.Is(err, kvstore.ErrCompacted):
		return 0, 0, fmt.Sprintf("history since revision %d was compacted", p.GetRevision()), nil
	case errors.Is(err, kvstore.ErrFutureRevision):
		return 0, 0, fmt.Sprintf("revision %d is ahead of the store", p.GetRevision()), nil
	case err != nil:
		return 0, 0, "", fmt.Errorf("look up position %d: %w", p.GetRevision(), err)
	}
	page, err := e.kv.List(ctx, e.prefix(), "", 1, 0)
	if err != nil {
		return 0, 0, "", fmt.Errorf("look up our revision: %w", err)
	}
	return p.GetRevision(), page.Revision, "", nil
}

func (e *exporter) announce(mode federationv1.Resync_Mode, rev, target int64, reason string) error {
	e.st.do(func() {
		if mode == federationv1.Resync_MODE_SNAPSHOT {
			e.st.snapshotsSent++
		} else {
			e.st.resumesSent++
		}
	})
	e.mu.Lock()
	e.queue, e.unsynced = nil, 0
	if mode == federationv1.Resync_MODE_SNAPSHOT {
		e.sentLow, e.unsynced = 0, 1
	}
	e.mu.Unlock()
	return e.send(&federationv1.Frame{Body: &federationv1.Frame_Resync{Resync: &federationv1.Resync{
		Mode: mode, Incarnation: e.incarnation, Revision: rev, Target: target, Reason: reason,
	}}})
}

// snapshot sends all keys as of one revision and returns it.
func (e *exporter) snapshot(ctx context.Context, reason string) (int64, error) {
	page, err := e.kv.List(ctx, e.prefix(), "", 1, 0)
	if err != nil {
		return 0, fmt.Errorf("begin snapshot: %w", err)
	}
	rev := page.Revision
	if err := e.announce(federationv1.Resync_MODE_SNAPSHOT, rev, rev, reason); err != nil {
		return 0, err
	}
	var changes []*federationv1.Change
	size := 0
	flush := func(end bool) error {
		err := e.sendBatch(ctx, taken{changes: changes, low: rev}, true, end)
		changes, size = nil, 0
		return err
	}
	err = e.walk(ctx, rev, func(kv kvstore.KV) error {
		n := len(kv.Key) + len(kv.Value)
		if len(changes) >= e.cfg.BatchChanges || len(changes) > 0 && size+n > e.cfg.BatchBytes {
			if err := flush(false); err != nil {
				return err
			}
		}
		size += n
		changes = append(changes, &federationv1.Change{Key: kv.Key[len(e.prefix()):], Value: kv.Value, ModRevision: kv.ModRevision})
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("snapshot at revision %d: %w", rev, err)
	}
	return rev, flush(true)
}

// walk visits all keys at rev: the public kinds in the order in which a receiver
// should store them, then the kinds that this version does not know.
func (e *exporter) walk(ctx context.Context, rev int64, fn func(kvstore.KV) error) error {
	for _, k := range kvstore.PublicKinds {
		prefix := kvstore.KindPrefix(kvstore.State, e.own, k)
		if err := e.list(ctx, prefix, rev, func(kv kvstore.KV) (string, error) {
			if k.Arity() == 0 && kv.Key != prefix {
				return "", nil // another kind whose name begins with this one's
			}
			return "", fn(kv)
		}); err != nil {
			return err
		}
	}
	return e.list(ctx, e.prefix(), rev, func(kv kvstore.KV) (string, error) {
		k, err := kvstore.ParseKey(kv.Key)
		if err != nil || !slices.Contains(kvstore.PublicKinds, k.Kind) {
			return "", fn(kv)
		}
		if k.Kind.Arity() == 0 {
			return "", nil
		}
		return kvstore.KindPrefix(kvstore.State, e.own, k.Kind) + "\xff", nil
	})
}

// list visits the wanted keys below prefix at rev; fn may name a key to go on
// after.
func (e *exporter) list(ctx context.Context, prefix string, rev int64, fn func(kvstore.KV) (skipTo string, err error)) error {
	for after := ""; ; {
		page, err := e.kv.List(ctx, prefix, after, int64(e.cfg.BatchChanges), rev)
		if err != nil {
			return err
		}
		skipped := false
		for _, kv := range page.KVs {
			after = kv.Key
			if !e.wanted(kv.Key[len(e.prefix()):]) {
				continue
			}
			to, err := fn(kv)
			if err != nil {
				return err
			}
			if to != "" {
				after, skipped = to, true
				break
			}
		}
		if !page.More && !skipped {
			return nil
		}
	}
}

// wanted reports whether the receiver asked for a key's kind; kinds that we do
// not know go to those who asked for all.
func (e *exporter) wanted(rel string) bool {
	if len(e.kinds) == 0 {
		return true
	}
	k, err := kvstore.ParseKey(e.prefix() + rel)
	return err == nil && e.kinds[k.Kind]
}

// follow sends what changes after rev until the context ends or history is
// gone.
func (e *exporter) follow(ctx context.Context, rev int64) error {
	q := newQueue(rev)
	e.mu.Lock()
	e.queue, e.unsynced, e.sentLow = q, 0, max(e.sentLow, rev)
	e.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.watch(ctx, q) })
	g.Go(func() error { return e.drain(ctx, q) })
	return g.Wait()
}

func (e *exporter) watch(ctx context.Context, q *queue) error {
	b := backoff.New(e.cfg.BackoffMin, e.cfg.BackoffMax)
	for {
		err := e.kv.Watch(ctx, e.prefix(), q.position()+1, func(w kvstore.WatchBatch) error {
			b.Reset()
			now := e.st.now()
			e.st.seen(w, now)
			q.add(w, e.prefix(), e.wanted, now.UnixNano())
			return nil
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, kvstore.ErrCompacted), errors.Is(err, kvstore.ErrFutureRevision):
			return err
		case err != nil:
			e.st.failed(fmt.Errorf("watch our own store: %w", err))
		}
		if err := b.Wait(ctx); err != nil {
			return err
		}
		if err := sameIncarnation(ctx, e.kv, e.own, e.incarnation); errors.Is(err, errIncarnation) {
			return err
		}
	}
}

func (e *exporter) drain(ctx context.Context, q *queue) error {
	for {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		for {
			// Room first: what waits for it may still be coalesced.
			if err := e.awaitRoom(ctx); err != nil {
				return err
			}
			t := q.take(e.cfg.BatchChanges, e.cfg.BatchBytes)
			if len(t.changes) == 0 {
				e.level(t.low)
				break
			}
			if err := e.sendBatch(ctx, t, false, false); err != nil {
				return err
			}
		}
	}
}

// level notes that all up to low was sent: with what the peer has acknowledged,
// or with the batches that it will.
func (e *exporter) level(low int64) {
	e.mu.Lock()
	e.sentLow = low
	stored := low
	if n := len(e.unacked); n > 0 {
		e.unacked[n-1].low, stored = max(e.unacked[n-1].low, low), 0
	}
	e.mu.Unlock()
	e.stored(stored)
}

// awaitRoom blocks until the window has a place.
func (e *exporter) awaitRoom(ctx context.Context) error {
	for {
		e.mu.Lock()
		room := e.sent-e.acked < e.cfg.Window
		e.mu.Unlock()
		if room {
			return nil
		}
		select {
		case <-e.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *exporter) sendBatch(ctx context.Context, t taken, snapshot, end bool) error {
	if err := e.awaitRoom(ctx); err != nil {
		return err
	}
	packed, err := e.codec.pack(t.changes)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.sent++
	seq := e.sent
	m := mark{seq: seq}
	if !snapshot || end {
		m.low = t.low
	}
	e.unacked = append(e.unacked, m)
	if len(e.unacked) == 1 {
		e.st.acks(time.Now(), true)
	}
	e.mu.Unlock()
	err = e.send(&federationv1.Frame{Body: &federationv1.Frame_Batch{Batch: &federationv1.Batch{
		Sequence: seq, ChangesZstd: packed, Revision: t.low, Snapshot: snapshot, SnapshotEnd: end,
		Count: uint32(len(t.changes)), OldestAt: t.oldest,
	}}})
	if err != nil {
		return err
	}
	e.st.do(func() { e.st.changesSent += uint64(len(t.changes)) })
	e.st.left(t.since)
	if !snapshot {
		e.mu.Lock()
		e.sentLow = t.low
		e.mu.Unlock()
	}
	return nil
}
