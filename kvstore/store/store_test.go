// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const patience = 45 * time.Second

// view is what a Reader delivered, as a consumer sees it.
type view struct {
	mu       sync.Mutex
	keys     map[string]string // key -> tunnel address of the VTEP
	deletes  int
	smallest int // fewest keys since watching began
	batches  []store.Batch
	bad      []string
	unread   []store.Unreadable
}

func newView() *view { return &view{keys: map[string]string{}, smallest: 1 << 30} }

func (v *view) apply(b store.Batch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range b.Changes {
		if c.Deleted {
			delete(v.keys, c.Key.String())
			v.deletes++
		} else if r, ok := c.Record.(*keyspacev1.VTEP); ok {
			v.keys[c.Key.String()] = r.GetTunnelAddress()
		} else {
			v.keys[c.Key.String()] = ""
		}
	}
	v.smallest = min(v.smallest, len(v.keys))
	v.unread = b.Unreadable
	v.batches = append(v.batches, b)
}

func (v *view) names() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.keys))
}

func (v *view) has(k kvstore.Key) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.keys[k.String()]
	return ok
}

func (v *view) size() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.keys)
}

// watchSize forgets the smallest size and counts from now on.
func (v *view) watchSize() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.smallest, v.deletes = len(v.keys), 0
}

func vtep(e *etcdtest.Etcd, i int) kvstore.Key {
	return kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindVTEP, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
}

func vtepRecord(k kvstore.Key, tunnel string) *keyspacev1.VTEP {
	return &keyspacev1.VTEP{Prefix: k.Names[0], TunnelAddress: tunnel, UpdatedAt: 1}
}

func put(t testing.TB, c kvstore.Client, k kvstore.Key, m proto.Message) int64 {
	t.Helper()
	b, err := kvstore.Encode(k, m)
	if err != nil {
		t.Fatal(err)
	}
	return putRaw(t, c, k.String(), b)
}

func putRaw(t testing.TB, c kvstore.Client, key string, value []byte) int64 {
	t.Helper()
	res, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, value)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

func del(t testing.TB, c kvstore.Client, k kvstore.Key) int64 {
	t.Helper()
	res, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(k.String())}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

func putMany(t testing.TB, c kvstore.Client, e *etcdtest.Etcd, from, to int) {
	t.Helper()
	var ops []kvstore.Op
	for i := from; i < to; i++ {
		k := vtep(e, i)
		b, err := kvstore.Encode(k, vtepRecord(k, "192.0.2.1"))
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, kvstore.Put(k.String(), b))
		if len(ops) == 128 || i == to-1 {
			if _, err := c.Txn(t.Context(), nil, ops, nil); err != nil {
				t.Fatal(err)
			}
			ops = ops[:0]
		}
	}
}

// follow runs a Reader over state/ until the test ends.
func follow(t testing.TB, cfg store.ReaderConfig, v *view) *store.Reader {
	t.Helper()
	cfg.Apply = v.apply
	if cfg.Prefix == "" {
		cfg.Prefix = kvstore.SubtreePrefix(kvstore.State)
	}
	cfg.OnBad = func(b *kvstore.BadRecord) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.bad = append(v.bad, b.Reason)
	}
	r, err := store.NewReader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, r.Run)
	return r
}

// run runs fn until the test ends.
func run(t testing.TB, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run ended with %v", err)
		}
	})
}

func reach(t testing.TB, r *store.Reader, rev int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.WaitRevision(ctx, rev); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, patience, "watch is served", func() bool { return r.Status().Connected })
}

func mark(t testing.TB, c kvstore.Client, e *etcdtest.Etcd, k kvstore.Kind, inc string, s keyspacev1.Synced_State) int64 {
	t.Helper()
	key := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindSynced, e.Cluster, string(k))
	return put(t, c, key, &keyspacev1.Synced{Incarnation: inc, State: s})
}
