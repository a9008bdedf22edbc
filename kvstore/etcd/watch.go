// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
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
	go c.askProgress(wctx)
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

// askProgress asks for progress notifications until the context ends: an
// external etcd gives them every ten minutes of itself. At first it asks often,
// since who resumes wants to know when nothing is missing any more.
func (c *Client) askProgress(ctx context.Context) {
	wait := progressFirst
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		wait = min(2*wait, progressInterval)
		t.Reset(wait)
		if c.etcd.RequestProgress(ctx) != nil {
			return // the watch ends, too
		}
	}
}
