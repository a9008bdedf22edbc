// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

var errEnough = errors.New("seen enough")

func TestWatchDeliversInOrder(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	first := put(t, c, prefix+"nodes/n0", "0")
	for i := 1; i < 5; i++ {
		put(t, c, prefix+fmt.Sprintf("nodes/n%d", i), fmt.Sprint(i))
	}
	if _, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(prefix + "nodes/n0")}, nil); err != nil {
		t.Fatal(err)
	}
	var got []kvstore.Event
	err := c.Watch(t.Context(), prefix, first, func(b kvstore.WatchBatch) error {
		got = append(got, b.Events...)
		if len(got) == 6 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	for i, ev := range got[:5] {
		if string(ev.Value) != fmt.Sprint(i) || ev.ModRevision != first+int64(i) || ev.Deleted {
			t.Errorf("event %d: %+v", i, ev)
		}
	}
	if last := got[5]; !last.Deleted || last.Value != nil || last.Key != prefix+"nodes/n0" {
		t.Errorf("deletion: %+v", last)
	}
}

func TestWatchTellsPositionsThatCannotBeServed(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	ignore := func(kvstore.WatchBatch) error { return nil }
	old := put(t, c, prefix+"nodes/n1", "1")
	now := put(t, c, prefix+"nodes/n1", "2")
	if err := e.Server.Compact(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if err := e.Server.Compact(t.Context(), now); err != nil {
		t.Errorf("compacting twice: %v", err)
	}
	if err := c.Watch(t.Context(), prefix, old, ignore); !errors.Is(err, kvstore.ErrCompacted) {
		t.Errorf("watch of compacted history: %v", err)
	}
	if _, err := c.List(t.Context(), prefix, "", 0, old); !errors.Is(err, kvstore.ErrCompacted) {
		t.Errorf("list of compacted history: %v", err)
	}
	if err := c.Watch(t.Context(), prefix, now+2, ignore); !errors.Is(err, kvstore.ErrFutureRevision) {
		t.Errorf("watch of the future: %v", err)
	}
	if _, err := c.List(t.Context(), prefix, "", 0, now+100); !errors.Is(err, kvstore.ErrFutureRevision) {
		t.Errorf("list of the future: %v", err)
	}
}

// A wiped store has the same etcd cluster id. A watch that goes on silently
// would wait for revisions that the new store reaches only much later.
func TestWatchEndsWhenTheStoreWasWiped(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	var rev int64
	for i := range 20 {
		rev = put(t, c, prefix+"nodes/n1", fmt.Sprint(i))
	}
	started := make(chan struct{})
	var once sync.Once
	ended := make(chan error, 1)
	go func() {
		ended <- c.Watch(t.Context(), prefix, rev, func(kvstore.WatchBatch) error {
			once.Do(func() { close(started) })
			return nil
		})
	}()
	<-started
	e.Stop()
	if err := <-ended; err == nil || errors.Is(err, kvstore.ErrFutureRevision) {
		t.Fatalf("watch of a stopped server ended with %v", err)
	}
	e.Wipe(t)
	e.Restart(t)
	etcdtest.Eventually(t, 30*time.Second, "the position is refused", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		err := c.Watch(ctx, prefix, rev+1, func(kvstore.WatchBatch) error { return nil })
		return errors.Is(err, kvstore.ErrFutureRevision)
	})
}

// answers is a watch that is served what it holds.
type answers struct{ of []clientv3.WatchResponse }

func (a answers) Watch(context.Context, string, ...clientv3.OpOption) clientv3.WatchChan {
	ch := make(chan clientv3.WatchResponse, len(a.of))
	for _, r := range a.of {
		ch <- r
	}
	return ch
}

func (answers) RequestProgress(context.Context) error { return nil }

func (answers) Close() error { return nil }

// etcd's client moves a watch to another endpoint by itself. Should that be another
// store, its events are not of the history that is watched: none is delivered.
func TestWatchEndsWhenAnotherStoreAnswers(t *testing.T) {
	e := etcdtest.Start(t)
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	_, rev, err := e.APIServer(t).Get(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	event := func(store uint64, n int64) clientv3.WatchResponse {
		kv := &mvccpb.KeyValue{Key: []byte(prefix + "cluster"), ModRevision: rev + n}
		return clientv3.WatchResponse{Header: &pb.ResponseHeader{ClusterId: store, Revision: rev + n}, Events: []*clientv3.Event{{Type: mvccpb.PUT, Kv: kv}}}
	}
	for what, c := range map[string]struct {
		second uint64
		want   int
	}{"the same": {7, 2}, "another": {8, 1}} {
		client := e.APIServer(t)
		client.WatchThrough(func(clientv3.Watcher) clientv3.Watcher {
			return answers{of: []clientv3.WatchResponse{event(7, 1), event(c.second, 2)}}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		got := 0
		err := client.Watch(ctx, prefix, rev+1, func(b kvstore.WatchBatch) error {
			if got += len(b.Events); got == 2 {
				return errEnough
			}
			return nil
		})
		cancel()
		if got != c.want || errors.Is(err, errEnough) != (c.want == 2) || err == nil {
			t.Errorf("%s store: %d events, %v", what, got, err)
		}
		if c.want == 1 && !strings.Contains(err.Error(), "another store answers") {
			t.Errorf("ended with %v", err)
		}
	}
}

// counted is a client's watches, and how often they asked for progress.
type counted struct {
	clientv3.Watcher
	asked atomic.Int64
}

func (c *counted) RequestProgress(ctx context.Context) error {
	c.asked.Add(1)
	return c.Watcher.RequestProgress(ctx)
}

// An answer to one watch goes to all of the client's: a question of each would
// cost the square of their number.
func TestWatchesOfAClientAskTogether(t *testing.T) {
	const watches = 100
	e := etcdtest.Start(t)
	c, other := e.APIServer(t), e.APIServer(t)
	through := &counted{}
	c.WatchThrough(func(w clientv3.Watcher) clientv3.Watcher { through.Watcher = w; return through })
	key := kvstore.Prefix(kvstore.State, e.Cluster) + "nodes/n1"
	first := put(t, other, key, "1")
	var heard atomic.Int64
	hear := func() error { // of several revisions, each after all have heard of the one before
		ctx, cancel := contextFor(t, 20*time.Second)
		defer cancel()
		next := first
		return c.Watch(ctx, kvstore.Prefix(kvstore.State, "quiet"), first, func(b kvstore.WatchBatch) error {
			if b.Revision < next {
				return nil
			}
			if next = b.Revision + 1; next > first+3 {
				return errEnough
			}
			if heard.Add(1)%watches == 0 {
				put(t, other, key, "again")
			}
			return nil
		})
	}
	var g errgroup.Group
	for range watches {
		g.Go(hear)
	}
	if err := g.Wait(); !errors.Is(err, errEnough) {
		t.Errorf("a watch heard of no progress: %v", err)
	}
	if n := through.asked.Load(); n == 0 || n > watches/2 {
		t.Errorf("%d watches asked %d times", watches, n)
	}
	if err := hear(); !errors.Is(err, errEnough) {
		t.Errorf("a watch after all had ended heard of no progress: %v", err)
	}
}

func TestWatchReportsProgressWhenIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for etcd's progress notification, every 5 s")
	}
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	quiet := kvstore.Prefix(kvstore.State, e.Cluster)
	_, rev, err := c.Get(t.Context(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	busy := put(t, c, kvstore.Prefix(kvstore.Local, e.Cluster)+"status/n1", "x")
	ctx, cancel := contextFor(t, 15*time.Second)
	defer cancel()
	err = c.Watch(ctx, quiet, rev+1, func(b kvstore.WatchBatch) error {
		if len(b.Events) == 0 && b.Revision >= busy {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Errorf("no progress: %v", err)
	}
}

func TestListPagesAtOneRevision(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	prefix := kvstore.KindPrefix(kvstore.State, e.Cluster, kvstore.KindNode)
	for i := range 25 {
		put(t, c, fmt.Sprintf("%sn%02d", prefix, i), "old")
	}
	var got []string
	after, rev := "", int64(0)
	for pages := 0; ; pages++ {
		p, err := c.List(t.Context(), prefix, after, 10, rev)
		if err != nil {
			t.Fatal(err)
		}
		rev = p.Revision
		for _, kv := range p.KVs {
			if string(kv.Value) != "old" {
				t.Errorf("%s is newer than the listing", kv.Key)
			}
			got = append(got, kv.Key)
		}
		// Writes between the pages: before, behind and after the cursor.
		for _, k := range []string{"n00", "n24", "n99", fmt.Sprintf("n%02dx", pages*10)} {
			put(t, c, prefix+k, "new")
		}
		if !p.More {
			break
		}
		after = p.KVs[len(p.KVs)-1].Key
	}
	if len(got) != 25 {
		t.Errorf("listed %d keys of 25: %v", len(got), got)
	}
}

func TestLeaseEndsWithItsContext(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.Agent(t, "n1")
	ctx, cancel := context.WithCancel(t.Context())
	l, done, err := c.Grant(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	k := kvstore.Prefix(kvstore.Local, e.Cluster) + "presence/n1"
	op := kvstore.Put(k, nil)
	op.Lease = l
	if _, err := c.Txn(t.Context(), nil, []kvstore.Op{op}, nil); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	etcdtest.Eventually(t, 30*time.Second, "leased key is gone", func() bool {
		kv, _, err := c.Get(t.Context(), k)
		return err == nil && kv == nil
	})
}
