// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/hawser-mesh/hawser/kvstore"
)

// errDisconnected ends a watch whose connection broke.
var errDisconnected = errors.New("connection to etcd is lost")

// Watch implements kvstore.Client. Once it is established it says so by a batch
// without events at rev-1.
//
// etcd's client would resume a broken watch on its own; Watch ends instead, so
// that the position is checked against the store again: one that was wiped in
// between would accept the old revision and then stay silent for ever.
func (c *Client) Watch(ctx context.Context, prefix string, rev int64, fn func(kvstore.WatchBatch) error) (err error) {
	defer c.ended("watch", time.Now(), &err)
	if err := c.checkRevision(ctx, prefix, rev); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go c.cancelOnDisconnect(ctx, cancel)

	wctx := clientv3.WithRequireLeader(ctx)
	defer c.progress.join(wctx, c.etcd)()
	ch := c.etcd.Watch(wctx, prefix,
		clientv3.WithPrefix(), clientv3.WithRev(rev), clientv3.WithProgressNotify(),
		clientv3.WithCreatedNotify())
	seen := rev - 1 // nothing up to here is missing
	store := uint64(0)
	for r := range ch {
		// etcd's client moves a watch to another member by itself; one of
		// another store is none.
		if store == 0 {
			store = r.Header.ClusterId
		} else if id := r.Header.ClusterId; id != 0 && id != store {
			return fmt.Errorf("watch %s: another store answers: %w", prefix, errDisconnected)
		}
		b, err := c.batch(r, seen)
		if err != nil {
			return fmt.Errorf("watch %s from %d: %w", prefix, rev, err)
		}
		if b.Revision <= seen && len(b.Events) == 0 && !r.Created {
			continue
		}
		seen = b.Revision
		if err := fn(b); err != nil {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("watch %s: %w", prefix, err)
	}
	return fmt.Errorf("watch %s: %w", prefix, errDisconnected)
}

// checkRevision says ErrFutureRevision if revision rev-1 has not happened yet.
func (c *Client) checkRevision(ctx context.Context, prefix string, rev int64) error {
	if rev <= 0 {
		return fmt.Errorf("watch %s: revision %d: must be above 0", prefix, rev)
	}
	_, now, err := c.Get(ctx, prefix)
	if err != nil {
		return err
	}
	if rev > now+1 {
		return fmt.Errorf("watch %s from %d: the store is at %d: %w", prefix, rev, now, kvstore.ErrFutureRevision)
	}
	return nil
}

// batch turns an answer into what the caller sees. An empty batch at a revision
// not above seen says nothing.
func (c *Client) batch(r clientv3.WatchResponse, seen int64) (kvstore.WatchBatch, error) {
	if r.CompactRevision != 0 {
		return kvstore.WatchBatch{}, fmt.Errorf("history begins at %d: %w", r.CompactRevision, kvstore.ErrCompacted)
	}
	if err := r.Err(); err != nil {
		return kvstore.WatchBatch{}, c.mapError(err)
	}
	if r.Created {
		// Its history is still to come. The revision is that of the member
		// that serves the watch, which may lag behind the others.
		return kvstore.WatchBatch{Revision: seen}, nil
	}
	if r.Header.Revision < seen {
		// A member that lags behind, or another store: checkRevision tells.
		return kvstore.WatchBatch{}, fmt.Errorf("the store answers from revision %d, seen is %d: %w", r.Header.Revision, seen, errDisconnected)
	}
	if r.IsProgressNotify() {
		return kvstore.WatchBatch{Revision: r.Header.Revision}, nil
	}
	b := kvstore.WatchBatch{Events: make([]kvstore.Event, len(r.Events)), Revision: seen}
	for i, e := range r.Events {
		b.Events[i] = fromEvent(e)
	}
	if n := len(b.Events); n > 0 {
		b.Revision = b.Events[n-1].ModRevision
	}
	return b, nil
}

// cancelOnDisconnect returns with the context.
func (c *Client) cancelOnDisconnect(ctx context.Context, cancel context.CancelCauseFunc) {
	conn := c.etcd.ActiveConnection()
	for {
		s := conn.GetState()
		if s != connectivity.Ready {
			cancel(errDisconnected)
			return
		}
		if !conn.WaitForStateChange(ctx, s) {
			return
		}
	}
}

// asker asks etcd for progress notifications while there are watches: an external
// etcd gives them every ten minutes of itself. All watches of a client share a
// stream, and an answer goes to all of them: it asks once for all.
type asker struct {
	mu      sync.Mutex
	watches int
	stop    context.CancelFunc
	joined  chan struct{} // capacity 1: there is one more watch
}

// join has it ask for a watch, too, until leave is called.
func (a *asker) join(ctx context.Context, of clientv3.Watcher) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.watches++; a.watches == 1 {
		a.joined = make(chan struct{}, 1)
		ctx, a.stop = context.WithCancel(context.WithoutCancel(ctx)) // it outlives its first watch
		go ask(ctx, of, a.joined)
	}
	select {
	case a.joined <- struct{}{}:
	default:
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.watches--; a.watches == 0 {
			a.stop()
		}
	}
}

// ask asks until the context ends. After a watch has joined it asks often at first,
// since who resumes wants to know when nothing is missing any more.
func ask(ctx context.Context, of clientv3.Watcher, joined <-chan struct{}) {
	wait := progressFirst
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-joined:
			wait = progressFirst
		case <-t.C:
			_ = of.RequestProgress(ctx) // without a stream there is nothing to ask
			wait = min(2*wait, progressInterval)
		}
		t.Reset(wait)
	}
}
