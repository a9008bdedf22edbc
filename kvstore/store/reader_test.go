// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func TestReaderListsThenFollows(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	putMany(t, api, e, 0, 25)
	v := newView()
	r := follow(t, store.ReaderConfig{Client: e.Agent(t, "n1"), Page: 10}, v)
	reach(t, r, 1)
	if v.size() != 25 {
		t.Fatalf("listed %d keys of 25", v.size())
	}
	put(t, api, vtep(e, 25), vtepRecord(vtep(e, 25), "192.0.2.2"))
	reach(t, r, del(t, api, vtep(e, 0)))
	if v.size() != 25 || !v.has(vtep(e, 25)) || v.has(vtep(e, 0)) {
		t.Errorf("after a put and a delete: %v", v.names())
	}
	if s := r.Status(); !s.Connected || s.Lists != 1 || s.Keys != 25 || s.Err != "" {
		t.Errorf("status %+v", s)
	}
}

func TestReaderSkipsLies(t *testing.T) {
	etcdtest.Each(t, testSkipsLies)
}

func testSkipsLies(t *testing.T, e *etcdtest.Etcd) {
	api := e.APIServer(t)
	v := newView()
	r := follow(t, store.ReaderConfig{Client: e.Agent(t, "n1")}, v)
	honest := vtep(e, 1)
	reach(t, r, put(t, api, honest, vtepRecord(honest, "192.0.2.1")))
	lie, err := proto.Marshal(vtepRecord(vtep(e, 2), "192.0.2.6"))
	if err != nil {
		t.Fatal(err)
	}
	putRaw(t, api, honest.String(), lie)
	putRaw(t, api, vtep(e, 3).String(), []byte{0xff})
	putRaw(t, api, kvstore.Prefix(kvstore.State, e.Cluster)+"vteps/no/such", nil)
	putRaw(t, api, kvstore.Prefix(kvstore.State, e.Cluster)+"future/x", []byte("y"))
	reach(t, r, put(t, api, vtep(e, 4), vtepRecord(vtep(e, 4), "192.0.2.1")))

	unread := func() []string {
		v.mu.Lock()
		defer v.mu.Unlock()
		var out []string
		for _, k := range v.unread {
			out = append(out, fmt.Sprint(k.String(), " said: ", k.Said))
		}
		slices.Sort(out)
		return out
	}
	if got, want := unread(), []string{honest.String() + " said: true", vtep(e, 3).String() + " said: false"}; !slices.Equal(got, want) {
		t.Errorf("unreadable are %v, want %v", got, want)
	}
	v.mu.Lock()
	if len(v.keys) != 2 || v.keys[honest.String()] != "192.0.2.1" {
		t.Errorf("view is %v; want the last true record of %s and the one after the lies", v.keys, honest)
	}
	if want := []string{kvstore.ReasonMismatch, kvstore.ReasonDecode, kvstore.ReasonKey}; !slices.Equal(v.bad, want) {
		t.Errorf("skipped for %v, want %v", v.bad, want)
	}
	if s := r.Status(); s.Bad[kvstore.ReasonMismatch] != 1 {
		t.Errorf("counters %v", s.Bad)
	}
	v.mu.Unlock()

	// Read again, and gone.
	put(t, api, honest, vtepRecord(honest, "192.0.2.1"))
	if _, err := api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(vtep(e, 3).String())}, nil); err != nil {
		t.Fatal(err)
	}
	reach(t, r, put(t, api, vtep(e, 5), vtepRecord(vtep(e, 5), "192.0.2.1")))
	if got := unread(); len(got) != 0 {
		t.Errorf("still unreadable: %v", got)
	}
}

func TestReaderKeepsItsViewAndResumes(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	p := e.Proxy(t)
	putMany(t, api, e, 0, 10)
	v := newView()
	r := follow(t, store.ReaderConfig{Client: e.ClientAt(t, p.Endpoint(), "agent", "n1")}, v)
	reach(t, r, 1)
	v.watchSize()

	p.Cut()
	etcdtest.Eventually(t, patience, "reader notices the cut", func() bool { return !r.Status().Connected })
	del(t, api, vtep(e, 0))
	rev := put(t, api, vtep(e, 10), vtepRecord(vtep(e, 10), "192.0.2.1"))
	if v.size() != 10 {
		t.Errorf("a cut connection left %d keys of 10", v.size())
	}
	p.Heal()
	reach(t, r, rev)
	if v.has(vtep(e, 0)) || !v.has(vtep(e, 10)) || v.smallest < 9 {
		t.Errorf("after healing: %v, smallest size %d", v.names(), v.smallest)
	}
	if s := r.Status(); s.Lists != 1 {
		t.Errorf("listed %d times; a resume was possible", s.Lists)
	}
}

func TestReaderListsAgainAfterCompaction(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	p := e.Proxy(t)
	putMany(t, api, e, 0, 10)
	v := newView()
	r := follow(t, store.ReaderConfig{
		Client: e.ClientAt(t, p.Endpoint(), "agent", "n1"), Page: 3,
		Markers: store.SyncedMarkers{Client: api, Own: e.Cluster},
	}, v)
	reach(t, r, 1)
	v.watchSize()
	p.Cut()
	etcdtest.Eventually(t, patience, "reader notices the cut", func() bool { return !r.Status().Connected })
	del(t, api, vtep(e, 3))
	put(t, api, vtep(e, 4), vtepRecord(vtep(e, 4), "192.0.2.9"))
	rev := put(t, api, vtep(e, 10), vtepRecord(vtep(e, 10), "192.0.2.1"))
	if err := e.Root(t).Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	before := len(v.batches)
	p.Heal()
	reach(t, r, rev)
	if v.has(vtep(e, 3)) || !v.has(vtep(e, 10)) || v.keys[vtep(e, 4).String()] != "192.0.2.9" {
		t.Errorf("after compaction: %v", v.names())
	}
	if v.deletes != 1 || v.smallest < 9 || r.Status().Lists != 2 {
		t.Errorf("%d deletions, smallest size %d, %d listings", v.deletes, v.smallest, r.Status().Lists)
	}
	n := 0
	for _, b := range v.batches[before:] {
		n += len(b.Changes)
	}
	if n != 3 {
		t.Errorf("delivered %d changes; only 3 keys differ", n)
	}
}

// The wiped store has the same etcd cluster id; its revision may be behind or,
// when it was filled again, ahead of the reader's position.
func TestReaderFreezesInAnotherHistory(t *testing.T) {
	t.Parallel()
	for name, refill := range map[string]int{"behind": 3, "ahead": 300} {
		t.Run(name, func(t *testing.T) { testFreeze(t, refill) })
	}
}

func testFreeze(t *testing.T, refill int) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	for i := range 50 {
		put(t, api, vtep(e, 0), vtepRecord(vtep(e, 0), fmt.Sprintf("192.0.2.%d", i+1)))
	}
	putMany(t, api, e, 0, 10)
	mark(t, api, e, kvstore.KindVTEP, "first", keyspacev1.Synced_STATE_COMPLETE)
	v := newView()
	agent := e.Agent(t, "n1")
	r := follow(t, store.ReaderConfig{Client: agent, Markers: store.SyncedMarkers{Client: agent, Own: e.Cluster}}, v)
	reach(t, r, 1)
	v.watchSize()

	e.Stop()
	e.Wipe(t)
	cfg := e.Config
	cfg.Listen = e.Config.Listen
	e.Restart(t)
	// The store is filled again but for keys 5 to 9, before its reader is back.
	for range refill {
		put(t, api, vtep(e, 0), vtepRecord(vtep(e, 0), "192.0.2.200"))
	}
	putMany(t, api, e, 0, 5)
	etcdtest.Eventually(t, patience, "reader is back and has frozen what vanished", func() bool {
		s := r.Status()
		return s.Connected && s.Lists > 1 && s.Frozen == 5
	})
	mark(t, api, e, kvstore.KindVTEP, "second", keyspacev1.Synced_STATE_COPYING)
	rev := put(t, api, vtep(e, 5), vtepRecord(vtep(e, 5), "192.0.2.1"))
	reach(t, r, rev)
	if v.size() != 10 || v.deletes != 0 {
		t.Fatalf("while copying: %d keys, %d deletions", v.size(), v.deletes)
	}
	mark(t, api, e, kvstore.KindVTEP, "second", keyspacev1.Synced_STATE_COMPLETE)
	// The watch of state/ passes the marker with its next key.
	put(t, api, vtep(e, 6), vtepRecord(vtep(e, 6), "192.0.2.1"))
	etcdtest.Eventually(t, patience, "what is really gone is deleted", func() bool { return v.size() == 7 })
	if v.deletes != 3 || !v.has(vtep(e, 5)) || !v.has(vtep(e, 6)) || r.Status().Frozen != 0 {
		t.Errorf("after completion: %v, %d deletions", v.names(), v.deletes)
	}
}

// A revision of another history means nothing, even if it is the same number.
func TestReaderIsNotFooledByEqualRevisions(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	old := put(t, api, vtep(e, 0), vtepRecord(vtep(e, 0), "192.0.2.1"))
	mark(t, api, e, kvstore.KindVTEP, "first", keyspacev1.Synced_STATE_COMPLETE)
	v := newView()
	p := e.Proxy(t)
	r := follow(t, store.ReaderConfig{
		Client:  e.ClientAt(t, p.Endpoint(), "agent", "n1"),
		Markers: store.SyncedMarkers{Client: api, Own: e.Cluster},
	}, v)
	reach(t, r, 1)
	p.Cut() // so that it is back only after the store was filled again
	e.Stop()
	e.Wipe(t)
	e.Restart(t)
	etcdtest.Eventually(t, patience, "server is back", func() bool {
		_, _, err := api.Get(t.Context(), vtep(e, 0).String())
		return err == nil
	})
	if now := put(t, api, vtep(e, 0), vtepRecord(vtep(e, 0), "192.0.2.2")); now != old {
		t.Fatalf("revision %d in the new history, %d in the old one", now, old)
	}
	p.Heal()
	etcdtest.Eventually(t, patience, "the new history's value is seen", func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.keys[vtep(e, 0).String()] == "192.0.2.2"
	})
}

// The history's name is learned while the watch goes on: after a restore it comes
// late, and markers of the former name may have been read. Without markers it keeps
// its name.
func TestReaderLearnsTheHistorysName(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	putMany(t, api, e, 0, 3)
	v := newView()
	agent := e.Agent(t, "n1")
	r := follow(t, store.ReaderConfig{Client: agent, Markers: store.SyncedMarkers{Client: agent, Own: e.Cluster}}, v)
	reach(t, r, 1)
	for _, name := range []string{"first", "second"} {
		mark(t, api, e, kvstore.KindVTEP, name, keyspacev1.Synced_STATE_COMPLETE)
		etcdtest.Eventually(t, patience, "the name is "+name, func() bool { return r.Status().Incarnation == name })
	}
	lists := r.Status().Lists
	del(t, api, kvstore.SyncedKey(e.Cluster, e.Cluster, kvstore.KindVTEP))
	mark(t, api, e, kvstore.KindVTEP, "second", keyspacev1.Synced_STATE_COMPLETE)
	reach(t, r, put(t, api, vtep(e, 4), vtepRecord(vtep(e, 4), "192.0.2.9")))
	if s := r.Status(); s.Incarnation != "second" || s.Lists != lists || !s.Connected {
		t.Errorf("after the markers were removed and came back: %+v", s)
	}
	if v.deletes != 0 || v.size() != 4 {
		t.Errorf("%d deletions, %v", v.deletes, v.names())
	}
}

func TestReaderDeliversRaw(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	putRaw(t, api, kvstore.Prefix(kvstore.State, e.Cluster)+"future/x", []byte("y"))
	v := newView()
	r := follow(t, store.ReaderConfig{Client: api, Raw: true}, v)
	reach(t, r, 1)
	if c := v.batches[0].Changes; len(c) != 1 || !bytes.Equal(c[0].KV.Value, []byte("y")) || c[0].Record != nil {
		t.Errorf("delivered %+v", c)
	}
}

func TestReaderOfTenThousandKeys(t *testing.T) {
	const n = 10_000
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	putMany(t, api, e, 0, n)
	v := newView()
	start := time.Now()
	r := follow(t, store.ReaderConfig{Client: e.Agent(t, "n1")}, v)
	// Writes while it lists: each page is read at the same revision, the rest
	// comes with the watch.
	putMany(t, api, e, n, n+1000)
	rev := del(t, api, vtep(e, 1))
	reach(t, r, rev)
	if v.size() != n+1000-1 {
		t.Errorf("view has %d keys, want %d", v.size(), n+1000-1)
	}
	t.Logf("%d keys in %v", v.size(), time.Since(start).Round(time.Millisecond))
}
