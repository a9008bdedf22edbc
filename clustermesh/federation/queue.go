// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"sync"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// queue holds the changes that a receiver has not been sent yet: the newest of
// each key only, so that it is bounded by the number of keys however slow the
// receiver is. It is safe for concurrent use.
type queue struct {
	wake chan struct{} // has a token when there may be news for the taker

	mu    sync.Mutex
	byKey map[string]*queued
	order []string // keys of byKey, the longest waiting first
	seen  int64    // the watch has reached this revision
}

type queued struct {
	change *federationv1.Change
	at     int64     // when the oldest coalesced change was seen, Unix ns
	since  time.Time // the same, monotonic
}

// taken is what take took out.
type taken struct {
	changes []*federationv1.Change
	low     int64     // nothing at or below it waits any more
	oldest  int64     // Unix ns
	since   time.Time // since when the oldest waited, monotonic; zero in a snapshot
}

func newQueue(seen int64) *queue {
	return &queue{wake: make(chan struct{}, 1), byKey: map[string]*queued{}, seen: seen}
}

// add takes over what a watch saw at time now (Unix ns). It never blocks.
func (q *queue) add(b kvstore.WatchBatch, prefix string, wanted func(rel string) bool, now int64) {
	since := time.Now()
	q.mu.Lock()
	for _, e := range b.Events {
		rel := e.Key[len(prefix):]
		if !wanted(rel) {
			continue
		}
		c := &federationv1.Change{Key: rel, Value: e.Value, Deleted: e.Deleted, ModRevision: e.ModRevision}
		if old, ok := q.byKey[rel]; ok {
			old.change = c
			continue
		}
		q.byKey[rel] = &queued{change: c, at: now, since: since}
		q.order = append(q.order, rel)
	}
	q.seen = max(q.seen, b.Revision)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes up to n changes of about size bytes together, at least one if
// there is any.
func (q *queue) take(n, size int) taken {
	q.mu.Lock()
	defer q.mu.Unlock()
	var t taken
	i := 0
	for ; i < len(q.order) && len(t.changes) < n; i++ {
		e := q.byKey[q.order[i]]
		bytes := len(e.change.GetKey()) + len(e.change.GetValue())
		if size -= bytes; size < 0 && len(t.changes) > 0 {
			break
		}
		delete(q.byKey, q.order[i])
		t.changes = append(t.changes, e.change)
		if t.oldest == 0 || e.at < t.oldest {
			t.oldest, t.since = e.at, e.since
		}
	}
	if q.order = q.order[i:]; len(q.order) == 0 {
		q.order = nil // let the array go
	}
	t.low = q.seen
	for _, e := range q.byKey {
		t.low = min(t.low, e.change.GetModRevision()-1)
	}
	return t
}

// position is the revision that the watch has reached.
func (q *queue) position() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.seen
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.byKey)
}
