// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func newWriter(t *testing.T, e *etcdtest.Etcd, c kvstore.Client, prefixes ...string) *store.Writer {
	t.Helper()
	if prefixes == nil {
		prefixes = []string{kvstore.Prefix(kvstore.State, e.Cluster)}
	}
	w, err := store.NewWriter(store.WriterConfig{Client: c, Prefixes: prefixes})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func set(t *testing.T, w *store.Writer, k kvstore.Key, tunnel string) {
	t.Helper()
	m := vtepRecord(k, tunnel)
	m.UpdatedAt = 0
	if err := w.Set(k, m); err != nil {
		t.Fatal(err)
	}
}

func flush(t *testing.T, w *store.Writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func stored(t *testing.T, c kvstore.Client, k kvstore.Key) *kvstore.KV {
	t.Helper()
	kv, _, err := c.Get(t.Context(), k.String())
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func TestWriterWritesRemovesAndPrunes(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	put(t, api, vtep(e, 0), vtepRecord(vtep(e, 0), "192.0.2.1"))        // same as wanted
	old := put(t, api, vtep(e, 1), vtepRecord(vtep(e, 1), "192.0.2.1")) // differs
	put(t, api, vtep(e, 2), vtepRecord(vtep(e, 2), "192.0.2.1"))        // left over
	put(t, api, vtep(e, 3), vtepRecord(vtep(e, 3), "192.0.2.1"))        // removed
	w := newWriter(t, e, api)
	set(t, w, vtep(e, 0), "192.0.2.1")
	set(t, w, vtep(e, 1), "192.0.2.2")
	if err := w.Remove(vtep(e, 3)); err != nil {
		t.Fatal(err)
	}
	run(t, w.Run)
	flush(t, w)
	if kv := stored(t, api, vtep(e, 0)); kv.ModRevision != kv.CreateRevision {
		t.Error("rewrote an unchanged record")
	}
	if kv := stored(t, api, vtep(e, 1)); kv.ModRevision == old {
		t.Error("did not write a changed record")
	}
	if stored(t, api, vtep(e, 2)) == nil {
		t.Error("deleted a key before it was told what is wanted")
	}
	if stored(t, api, vtep(e, 3)) != nil {
		t.Error("did not remove")
	}
	w.Prune()
	etcdtest.Eventually(t, patience, "left-over key is pruned", func() bool { return stored(t, api, vtep(e, 2)) == nil })
	if stored(t, api, vtep(e, 0)) == nil || stored(t, api, vtep(e, 1)) == nil {
		t.Error("pruned what is wanted")
	}
	if s := w.Status(); s.Keys != 2 || s.Err != nil {
		t.Errorf("status %+v", s)
	}
}

func TestWriterRefusesWhatIsNotIts(t *testing.T) {
	e := etcdtest.Start(t)
	w := newWriter(t, e, e.Agent(t, "n1"), kvstore.KindPrefix(kvstore.State, e.Cluster, kvstore.KindVTEP))
	node := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindNode, "n1")
	if err := w.Set(node, &keyspacev1.Node{Name: "n1", Cluster: e.Cluster}); err == nil {
		t.Error("set a key outside of its prefixes")
	}
	var bad *kvstore.BadRecord
	if err := w.Set(vtep(e, 1), vtepRecord(vtep(e, 2), "192.0.2.1")); !errors.As(err, &bad) {
		t.Errorf("set a lie: %v", err)
	}
}

func TestWriterSetsAsideWhatTheStoreDenies(t *testing.T) {
	e := etcdtest.Start(t)
	agent := e.Agent(t, "n1")
	svc := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindService, "ns", "s")
	w := newWriter(t, e, agent)
	if err := w.Set(svc, &keyspacev1.Service{Namespace: "ns", Name: "s"}); err != nil {
		t.Fatal(err)
	}
	set(t, w, vtep(e, 0), "192.0.2.1")
	run(t, w.Run)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.Flush(ctx); !errors.Is(err, kvstore.ErrDenied) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush: %v, want denied at once", err)
	}
	if stored(t, agent, vtep(e, 0)) == nil {
		t.Error("a denied key held up the others")
	}
}

// recorder counts transactions and sees their order; it stalls while held.
type recorder struct {
	kvstore.Client
	hold chan struct{}
	ops  chan []kvstore.Op
}

func (r *recorder) Txn(ctx context.Context, c []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	r.ops <- slices.Clone(thens)
	<-r.hold
	return r.Client.Txn(ctx, c, thens, elses)
}

func TestWriterCoalescesAndOrders(t *testing.T) {
	e := etcdtest.Start(t)
	rec := &recorder{Client: e.APIServer(t), hold: make(chan struct{}), ops: make(chan []kvstore.Op, 100)}
	w := newWriter(t, e, rec)
	set(t, w, vtep(e, 0), "192.0.2.1")
	run(t, w.Run)
	<-rec.ops // the first transaction is under way
	for i := range 100 {
		set(t, w, vtep(e, 0), fmt.Sprintf("192.0.2.%d", i+1))
	}
	id := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, "65537")
	node := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindNode, "n1")
	ip := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIP, "10.0.0.1/32")
	for i := 1; i < 200; i++ {
		set(t, w, vtep(e, i), "192.0.2.1")
	}
	errs := errors.Join(
		w.Set(ip, &keyspacev1.IPEntry{Prefix: "10.0.0.1/32", Identity: 65537, Node: "n1"}),
		w.Set(node, &keyspacev1.Node{Name: "n1", Cluster: e.Cluster}),
		w.Set(id, &keyspacev1.Identity{Number: 65537, Labels: []string{"mesh:cluster=" + e.Cluster}}),
	)
	if errs != nil {
		t.Fatal(errs)
	}
	if n := w.Status().Pending; n != 203 {
		t.Errorf("%d keys pending, want one entry for each of 203", n)
	}
	close(rec.hold)
	flush(t, w)
	first, second := <-rec.ops, <-rec.ops
	if len(first) != 128 || len(second) != 203-128 {
		t.Errorf("transactions of %d and %d operations", len(first), len(second))
	}
	got := []string{first[0].Key, first[1].Key, first[2].Key}
	if want := []string{id.String(), node.String(), ip.String()}; !slices.Equal(got, want) {
		t.Errorf("wrote %v first, want %v", got, want)
	}
	m, err := kvstore.Decode(vtep(e, 0), stored(t, rec.Client, vtep(e, 0)).Value)
	if err != nil || m.(*keyspacev1.VTEP).GetTunnelAddress() != "192.0.2.100" {
		t.Errorf("the newest value is not what was written: %v, %v", m, err)
	}
}

func TestWriterFlushWaits(t *testing.T) {
	e := etcdtest.Start(t)
	p := e.Proxy(t)
	p.Cut()
	w := newWriter(t, e, e.ClientAt(t, p.Endpoint(), "apiserver", ""))
	run(t, w.Run)
	set(t, w, vtep(e, 0), "192.0.2.1")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := w.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush through a cut connection: %v", err)
	}
	p.Heal()
	flush(t, w)
	if stored(t, e.APIServer(t), vtep(e, 0)) == nil {
		t.Error("flushed, but not stored")
	}
}

func TestWriterRepairsAfterReconnect(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	p := e.Proxy(t)
	w := newWriter(t, e, e.ClientAt(t, p.Endpoint(), "apiserver", ""))
	set(t, w, vtep(e, 0), "192.0.2.1")
	set(t, w, vtep(e, 1), "192.0.2.1")
	run(t, w.Run)
	flush(t, w)
	p.Cut()
	del(t, api, vtep(e, 0))
	put(t, api, vtep(e, 1), vtepRecord(vtep(e, 1), "192.0.2.66"))
	p.Heal()
	etcdtest.Eventually(t, patience, "both keys are as they should be", func() bool {
		a, b := stored(t, api, vtep(e, 0)), stored(t, api, vtep(e, 1))
		if a == nil || b == nil {
			return false
		}
		m, err := kvstore.Decode(vtep(e, 1), b.Value)
		return err == nil && m.(*keyspacev1.VTEP).GetTunnelAddress() == "192.0.2.1"
	})
}

// What somebody removes or changes while the connection stands is put right when the
// store is compared again.
func TestWriterComparesNowAndThen(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	w, err := store.NewWriter(store.WriterConfig{
		Client: api, Prefixes: []string{kvstore.Prefix(kvstore.State, e.Cluster)}, Resync: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	set(t, w, vtep(e, 0), "192.0.2.1")
	set(t, w, vtep(e, 1), "192.0.2.1")
	run(t, w.Run)
	flush(t, w)
	del(t, api, vtep(e, 0))
	putRaw(t, api, vtep(e, 1).String(), []byte("zzz"))
	etcdtest.Eventually(t, patience, "both keys are as they should be", func() bool {
		a, b := stored(t, api, vtep(e, 0)), stored(t, api, vtep(e, 1))
		if a == nil || b == nil {
			return false
		}
		_, err := kvstore.Decode(vtep(e, 1), b.Value)
		return err == nil
	})
}

func TestWriterFillsAWipedStore(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	w := newWriter(t, e, e.Agent(t, "n1"))
	for i := range 200 {
		set(t, w, vtep(e, i), "192.0.2.1")
	}
	run(t, w.Run)
	flush(t, w)
	e.Stop()
	e.Wipe(t)
	e.Restart(t)
	etcdtest.Eventually(t, patience, "all keys are back", func() bool {
		p, err := api.List(t.Context(), kvstore.Prefix(kvstore.State, e.Cluster), "", 0, 0)
		return err == nil && len(p.KVs) == 200
	})
}

func TestWriterLeavesOthersAlone(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	w, err := store.NewWriter(store.WriterConfig{
		Client: api, Prefixes: []string{kvstore.Prefix(kvstore.State, e.Cluster)},
		Owned: func(k kvstore.Key, value []byte) bool {
			m, err := kvstore.Decode(k, value)
			v, ok := m.(*keyspacev1.VTEP)
			return err == nil && ok && v.GetNode() == "n1"
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := vtepRecord(vtep(e, 0), "192.0.2.1"), vtepRecord(vtep(e, 1), "192.0.2.2")
	mine.Node, theirs.Node = "n1", "n2"
	put(t, api, vtep(e, 0), mine)
	put(t, api, vtep(e, 1), theirs)
	put(t, api, vtep(e, 2), theirs2(e))
	w.Prune()
	if err := w.Remove(vtep(e, 2)); err != nil {
		t.Fatal(err)
	}
	run(t, w.Run)
	etcdtest.Eventually(t, patience, "own left-over key is pruned", func() bool { return stored(t, api, vtep(e, 0)) == nil })
	flush(t, w)
	if stored(t, api, vtep(e, 1)) == nil {
		t.Error("pruned another node's key")
	}
	if stored(t, api, vtep(e, 2)) != nil {
		t.Error("did not remove a key that it was told to")
	}
}

func theirs2(e *etcdtest.Etcd) *keyspacev1.VTEP {
	m := vtepRecord(vtep(e, 2), "192.0.2.2")
	m.Node = "n2"
	return m
}

func TestUpdateKeepsWhatItDoesNotKnow(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	k := vtep(e, 0)
	future := []byte{0x9a, 0x06, 0x03, 'n', 'e', 'w'} // field 99
	b, err := kvstore.Encode(k, vtepRecord(k, "192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	putRaw(t, api, k.String(), append(b, future...))
	other := true
	err = store.Update(t.Context(), api, k, time.Unix(7, 0), func(m *keyspacev1.VTEP) error {
		if other { // someone else writes in between: fn runs again
			other = false
			x := vtepRecord(k, "192.0.2.50")
			x.ProtoReflect().SetUnknown(future)
			put(t, api, k, x)
		}
		m.Node = "n1"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := kvstore.Decode(k, stored(t, api, k).Value)
	if err != nil {
		t.Fatal(err)
	}
	v := m.(*keyspacev1.VTEP)
	if v.GetNode() != "n1" || v.GetTunnelAddress() != "192.0.2.50" || v.GetUpdatedAt() != 7e9 || len(v.ProtoReflect().GetUnknown()) == 0 {
		t.Errorf("updated to %v", v)
	}
	at := stored(t, api, k).ModRevision
	if err := store.Update(t.Context(), api, k, time.Now(), func(*keyspacev1.VTEP) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if stored(t, api, k).ModRevision != at {
		t.Error("wrote although nothing changed")
	}
}
