// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// meddled is a client whose owner may be held between what the store did and
// hearing of it.
type meddled struct {
	kvstore.Client
	txns atomic.Int64

	mu                  sync.Mutex
	afterTxn, afterList func()
}

func (m *meddled) once(f *func()) {
	m.mu.Lock()
	fn := *f
	*f = nil
	m.mu.Unlock()
	if fn != nil {
		fn()
	}
}

func (m *meddled) set(f *func(), fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*f = fn
}

func (m *meddled) Txn(ctx context.Context, c []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	m.txns.Add(1)
	r, err := m.Client.Txn(ctx, c, thens, elses)
	m.once(&m.afterTxn)
	return r, err
}

func (m *meddled) List(ctx context.Context, prefix, after string, limit, rev int64) (kvstore.Page, error) {
	p, err := m.Client.List(ctx, prefix, after, limit, rev)
	m.once(&m.afterList)
	return p, err
}

// watched is a Writer that is told of what a Reader sees.
type watched struct {
	*store.Writer
	client *meddled
	reader *store.Reader
	now    atomic.Int64 // of its clock, which stands still; ns
}

func newWatched(t *testing.T, e *etcdtest.Etcd) *watched {
	t.Helper()
	w := &watched{client: &meddled{Client: e.APIServer(t)}}
	w.now.Store(time.Unix(1e9, 0).UnixNano())
	var err error
	if w.Writer, err = store.NewWriter(store.WriterConfig{
		Client: w.client, Prefixes: []string{kvstore.Prefix(kvstore.State, e.Cluster)}, Now: func() time.Time { return time.Unix(0, w.now.Load()) },
	}); err != nil {
		t.Fatal(err)
	}
	if w.reader, err = store.NewReader(store.ReaderConfig{Client: w.client.Client, Prefix: kvstore.SubtreePrefix(kvstore.State), Apply: w.Observe}); err != nil {
		t.Fatal(err)
	}
	return w
}

// heard waits until all that is stored now was observed, and written for it.
func (w *watched) heard(t *testing.T, api kvstore.Client, k kvstore.Key) {
	t.Helper()
	_, rev, err := api.Get(t.Context(), k.String())
	if err != nil {
		t.Fatal(err)
	}
	reach(t, w.reader, rev)
	flush(t, w.Writer)
}

// says is the tunnel address of a prefix; "" when it is not there or unreadable.
func says(t *testing.T, c kvstore.Client, k kvstore.Key) string {
	t.Helper()
	kv := stored(t, c, k)
	if kv == nil {
		return ""
	}
	m, err := kvstore.Decode(k, kv.Value)
	if err != nil {
		return ""
	}
	return m.(*keyspacev1.VTEP).GetTunnelAddress()
}

func saysSoon(t *testing.T, c kvstore.Client, k kvstore.Key, want string) {
	t.Helper()
	etcdtest.Eventually(t, patience, k.String()+" says "+want, func() bool { return says(t, c, k) == want })
}

// What others remove, change and damage is written again; what the Writer wrote
// and removed itself costs nothing more, and stays.
func TestObservePutsBack(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	w := newWatched(t, e)
	run(t, w.reader.Run)
	run(t, w.Run)
	for i := range 4 {
		set(t, w.Writer, vtep(e, i), "192.0.2.1")
		w.heard(t, api, vtep(e, i))
	}
	if n := w.client.txns.Load(); n != 4 {
		t.Errorf("%d transactions for 4 keys", n)
	}
	del(t, api, vtep(e, 0))
	putRaw(t, api, vtep(e, 1).String(), []byte("zzz"))
	put(t, api, vtep(e, 2), vtepRecord(vtep(e, 2), "192.0.2.66"))
	for i := range 4 {
		saysSoon(t, api, vtep(e, i), "192.0.2.1")
	}
	if kv := stored(t, api, vtep(e, 3)); kv.ModRevision != kv.CreateRevision {
		t.Error("wrote a key again that nobody had touched")
	}
	before := w.client.txns.Load()
	if err := w.Remove(vtep(e, 3)); err != nil {
		t.Fatal(err)
	}
	flush(t, w.Writer)
	w.heard(t, api, vtep(e, 3))
	if stored(t, api, vtep(e, 3)) != nil || w.client.txns.Load() != before+1 {
		t.Errorf("removed by itself: there %v, %d transactions", stored(t, api, vtep(e, 3)) != nil, w.client.txns.Load()-before)
	}
}

// What is heard late is not mistaken for what somebody else did since.
func TestObserveKnowsEchoes(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	w := newWatched(t, e) // its reader does not run
	run(t, w.Run)
	k := vtep(e, 0)
	heard := func(kv *kvstore.KV, rev int64) {
		c := store.Change{Key: k, KV: kvstore.KV{Key: k.String(), ModRevision: rev}, Deleted: kv == nil}
		if kv != nil {
			c.KV.Value = kv.Value
		}
		w.Observe(store.Batch{Changes: []store.Change{c}, Revision: rev})
	}
	set(t, w.Writer, k, "192.0.2.1")
	flush(t, w.Writer)
	first := stored(t, api, k)
	if err := w.Remove(k); err != nil {
		t.Fatal(err)
	}
	flush(t, w.Writer)
	_, removed, err := api.Get(t.Context(), k.String())
	if err != nil {
		t.Fatal(err)
	}
	// While another transaction is under way it is set again, and the echo of when
	// it was first set comes.
	busy, free := make(chan struct{}), make(chan struct{})
	w.client.set(&w.client.afterTxn, func() { close(busy); <-free })
	set(t, w.Writer, vtep(e, 1), "192.0.2.1")
	<-busy
	set(t, w.Writer, k, "192.0.2.1")
	heard(first, first.ModRevision)
	close(free)
	flush(t, w.Writer)
	again := stored(t, api, k)
	if again == nil {
		t.Fatal("took an echo for what is stored")
	}
	heard(nil, removed)
	heard(first, first.ModRevision)
	w.Observe(store.Batch{Unreadable: []store.Unreadable{{Key: k}}, Revision: again.ModRevision - 1})
	w.Observe(store.Batch{Unreadable: []store.Unreadable{{Key: k}}}) // in the middle of a listing
	w.Observe(store.Batch{Changes: []store.Change{{Key: k, KV: kvstore.KV{Key: k.String()}, Deleted: true}}, Revision: again.ModRevision - 1})
	if n := w.Status().Pending; n != 0 {
		t.Errorf("%d keys are to be written for echoes", n)
	}
	w.Observe(store.Batch{Changes: []store.Change{{Key: k, KV: kvstore.KV{Key: k.String()}, Deleted: true}}, Revision: again.ModRevision + 1})
	etcdtest.Eventually(t, patience, "what a listing missed is written", func() bool { return stored(t, api, k).ModRevision > again.ModRevision })
}

// A change by others that is heard of before the answer to an own write, or while
// the keys are listed, is not lost.
func TestObserveBetweenTheStoreAndItsAnswer(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	w := newWatched(t, e)
	k := vtep(e, 0)
	put(t, api, k, vtepRecord(k, "192.0.2.1"))
	run(t, w.reader.Run)
	reach(t, w.reader, 1)
	meddled := make(chan struct{}, 2)
	meddle := func() {
		defer func() { meddled <- struct{}{} }()
		r, err := api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(k.String())}, nil)
		if err == nil {
			err = w.reader.WaitRevision(t.Context(), r.Revision)
		}
		if err != nil {
			t.Error(err)
		}
	}
	w.client.set(&w.client.afterList, meddle)
	set(t, w.Writer, k, "192.0.2.1")
	run(t, w.Run)
	<-meddled
	saysSoon(t, api, k, "192.0.2.1")
	flush(t, w.Writer)
	w.now.Add(int64(time.Hour)) // it is the first time in long
	w.client.set(&w.client.afterTxn, meddle)
	set(t, w.Writer, k, "192.0.2.2")
	flush(t, w.Writer)
	if got := says(t, api, k); got != "192.0.2.2" || w.client.txns.Load() != 3 {
		t.Errorf("says %q after %d transactions, want 3: twice put back, once set", got, w.client.txns.Load())
	}
}

// Who changes a key again and again is not answered each time at once, nor does
// it hold up what else is written.
func TestObserveIsDamped(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	w := newWatched(t, e)
	run(t, w.reader.Run)
	run(t, w.Run)
	k := vtep(e, 0)
	set(t, w.Writer, k, "192.0.2.1")
	flush(t, w.Writer)
	foreign := func() {
		put(t, api, k, vtepRecord(k, "192.0.2.66"))
		w.heard(t, api, k) // does not wait for what has to wait
		set(t, w.Writer, vtep(e, 1), "192.0.2.1")
		flush(t, w.Writer)
	}
	foreign()
	saysSoon(t, api, k, "192.0.2.1")
	for _, wait := range []time.Duration{time.Second, 2 * time.Second} {
		foreign()
		w.now.Add(int64(wait - 10*time.Millisecond))
		foreign()
		if says(t, api, k) != "192.0.2.66" || w.Status().Pending != 1 {
			t.Fatalf("put back at once, although it was %v ago", wait)
		}
		w.now.Add(int64(10 * time.Millisecond))
		saysSoon(t, api, k, "192.0.2.1")
	}
	// What its owner sets does not wait.
	foreign()
	set(t, w.Writer, k, "192.0.2.2")
	flush(t, w.Writer)
	if got := says(t, api, k); got != "192.0.2.2" {
		t.Errorf("what was set is not written: %s", got)
	}
	// After a while it is the first time again.
	w.now.Add(int64(time.Hour))
	foreign()
	saysSoon(t, api, k, "192.0.2.2")
}

// Two that want one key to be different do not fight for it.
func TestObserveEndsFights(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	k := vtep(e, 0)
	both := []*watched{newWatched(t, e), newWatched(t, e)}
	for i, w := range both {
		run(t, w.reader.Run)
		run(t, w.Run)
		set(t, w.Writer, k, []string{"192.0.2.1", "192.0.2.2"}[i])
		flush(t, w.Writer)
	}
	etcdtest.Eventually(t, patience, "one of them waits", func() bool { return both[0].Status().Pending+both[1].Status().Pending == 1 })
	for _, w := range both {
		w.heard(t, api, k)
		if n := w.client.txns.Load(); n > 2 {
			t.Errorf("%d transactions", n)
		}
	}
}
