// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// The suite: what readers and writers promise, on an embedded etcd of one and of
// three members and on an external one.

// asAgent follows state/ as an agent does.
func asAgent(t *testing.T, e *etcdtest.Etcd, v *view) *store.Reader {
	t.Helper()
	c := e.Agent(t, "n1")
	return follow(t, store.ReaderConfig{Client: c, Markers: store.SyncedMarkers{Client: c, Own: e.Cluster}}, v)
}

func compact(t *testing.T, e *etcdtest.Etcd, rev int64) {
	t.Helper()
	if err := e.Root(t).Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
}

func TestSuiteCompactionUnderAWatch(t *testing.T) {
	etcdtest.Each(t, func(t *testing.T, e *etcdtest.Etcd) {
		api := e.APIServer(t)
		p := e.Proxy(t)
		putMany(t, api, e, 0, 10)
		mark(t, api, e, kvstore.KindVTEP, "first", keyspacev1.Synced_STATE_COMPLETE)
		cut, still := newView(), newView()
		through := e.ClientAt(t, p.Endpoint(), "agent", "n1")
		away := follow(t, store.ReaderConfig{Client: through, Markers: store.SyncedMarkers{Client: through, Own: e.Cluster}}, cut)
		here := asAgent(t, e, still)
		reach(t, away, 1)
		reach(t, here, 1)
		cut.watchSize()
		p.Cut()
		etcdtest.Eventually(t, patience, "reader notices the cut", func() bool { return !away.Status().Connected })
		del(t, api, vtep(e, 3))
		rev := put(t, api, vtep(e, 10), vtepRecord(vtep(e, 10), "192.0.2.1"))
		compact(t, e, rev)
		reach(t, here, put(t, api, vtep(e, 11), vtepRecord(vtep(e, 11), "192.0.2.1")))
		if s := here.Status(); s.Lists != 1 {
			t.Errorf("a reader that kept up listed %d times", s.Lists)
		}
		p.Heal()
		reach(t, away, rev+1)
		if cut.has(vtep(e, 3)) || !cut.has(vtep(e, 11)) || cut.deletes != 1 || cut.smallest < 9 || away.Status().Lists != 2 {
			t.Errorf("view %v, %d deletions, smallest %d, %d listings", cut.names(), cut.deletes, cut.smallest, away.Status().Lists)
		}
	})
}

// A leader that ends is succeeded by another; of one member the only one
// restarts.
func TestSuiteLeaderChange(t *testing.T) {
	etcdtest.Each(t, func(t *testing.T, e *etcdtest.Etcd) {
		api := e.APIServer(t)
		putMany(t, api, e, 0, 50)
		mark(t, api, e, kvstore.KindVTEP, "first", keyspacev1.Synced_STATE_COMPLETE)
		v := newView()
		r := asAgent(t, e, v)
		reach(t, r, 1)
		v.watchSize()
		w, err := store.NewWriter(store.WriterConfig{Client: e.Agent(t, "n1"), Prefixes: []string{kvstore.KindPrefix(kvstore.State, e.Cluster, kvstore.KindVTEP)},
			Owned: func(k kvstore.Key, _ []byte) bool { return k.String() >= vtep(e, 100).String() }})
		if err != nil {
			t.Fatal(err)
		}
		run(t, w.Run)
		for i := 100; i < 200; i++ {
			set(t, w, vtep(e, i), "192.0.2.1")
			if i == 150 {
				changeLeader(t, e)
			}
		}
		flush(t, w)
		etcdtest.Eventually(t, patience, "all keys are seen", func() bool { return v.size() == 150 })
		if v.deletes != 0 || v.smallest < 50 {
			t.Errorf("%d deletions, smallest size %d", v.deletes, v.smallest)
		}
		if s := r.Status(); s.Lists != 1 {
			t.Errorf("listed %d times; a resume was possible", s.Lists)
		}
	})
}

func changeLeader(t *testing.T, e *etcdtest.Etcd) {
	t.Helper()
	if e.Kind != etcdtest.Members {
		e.Stop()
		e.Restart(t)
		return
	}
	old := e.Leader(t)
	e.Servers[old].Close()
	etcdtest.Eventually(t, patience, "another leads", func() bool {
		for i, s := range e.Servers {
			if i != old && s.Leads() {
				return true
			}
		}
		return false
	})
}

func TestSuiteConnectionCut(t *testing.T) {
	etcdtest.Each(t, func(t *testing.T, e *etcdtest.Etcd) {
		api := e.APIServer(t)
		p := e.Proxy(t)
		putMany(t, api, e, 0, 10)
		v := newView()
		r := follow(t, store.ReaderConfig{Client: e.ClientAt(t, p.Endpoint(), "agent", "n1")}, v)
		reach(t, r, 1)
		v.watchSize()
		for i := range 3 {
			p.Cut()
			etcdtest.Eventually(t, patience, "reader notices the cut", func() bool { return !r.Status().Connected })
			del(t, api, vtep(e, i))
			rev := put(t, api, vtep(e, 10+i), vtepRecord(vtep(e, 10+i), "192.0.2.1"))
			p.Heal()
			reach(t, r, rev)
		}
		if v.size() != 10 || v.deletes != 3 || v.smallest < 9 || r.Status().Lists != 1 {
			t.Errorf("%d keys, %d deletions, smallest %d, %d listings", v.size(), v.deletes, v.smallest, r.Status().Lists)
		}
	})
}

// A reader that takes its time misses nothing and stops nobody else.
func TestSuiteSlowReader(t *testing.T) {
	etcdtest.Each(t, func(t *testing.T, e *etcdtest.Etcd) {
		api := e.APIServer(t)
		slow, quick := newView(), newView()
		gate := make(chan struct{})
		r, err := store.NewReader(store.ReaderConfig{
			Client: e.Agent(t, "n1"), Prefix: kvstore.SubtreePrefix(kvstore.State),
			Apply: func(b store.Batch) {
				if len(b.Changes) > 0 {
					<-gate
				}
				slow.apply(b)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		run(t, r.Run)
		other := asAgent(t, e, quick)
		reach(t, r, 1)
		const n = 5000
		putMany(t, api, e, 0, n)
		rev := del(t, api, vtep(e, 0))
		reach(t, other, rev)
		if slow.size() != 0 || quick.size() != n-1 {
			t.Errorf("slow reader has %d keys, quick one %d", slow.size(), quick.size())
		}
		close(gate)
		reach(t, r, rev)
		if slow.size() != n-1 || slow.deletes != 1 {
			t.Errorf("slow reader has %d keys, %d deletions", slow.size(), slow.deletes)
		}
	})
}

func TestSuiteWipedDirectory(t *testing.T) {
	etcdtest.Each(t, func(t *testing.T, e *etcdtest.Etcd) {
		api := e.APIServer(t)
		putMany(t, api, e, 0, 50)
		mark(t, api, e, kvstore.KindVTEP, "first", keyspacev1.Synced_STATE_COMPLETE)
		v := newView()
		r := asAgent(t, e, v)
		reach(t, r, 1)
		v.watchSize()
		e.Stop()
		e.Wipe(t)
		e.Restart(t)
		etcdtest.Eventually(t, patience, "the empty store is listed", func() bool {
			s := r.Status()
			return s.Connected && s.Lists > 1 && s.Frozen == 50
		})
		if v.size() != 50 || v.deletes != 0 {
			t.Fatalf("in an empty store: %d keys, %d deletions", v.size(), v.deletes)
		}
		becomes(t, e, v, r, "second", 40)
	})
}

// becomes fills the store up to n keys in a new history and expects the view to
// shrink to that once the markers say that this is all.
func becomes(t *testing.T, e *etcdtest.Etcd, v *view, r *store.Reader, incarnation string, n int) {
	t.Helper()
	api := e.APIServer(t)
	had := v.size()
	mark(t, api, e, kvstore.KindVTEP, incarnation, keyspacev1.Synced_STATE_COPYING)
	putMany(t, api, e, 0, n)
	reach(t, r, put(t, api, vtep(e, 0), vtepRecord(vtep(e, 0), "192.0.2.77")))
	if v.size() != had || v.deletes != 0 {
		t.Fatalf("while copying: %d keys of %d, %d deletions", v.size(), had, v.deletes)
	}
	mark(t, api, e, kvstore.KindVTEP, incarnation, keyspacev1.Synced_STATE_COMPLETE)
	put(t, api, vtep(e, 0), vtepRecord(vtep(e, 0), "192.0.2.78")) // its watch passes the marker
	etcdtest.Eventually(t, patience, "what is really gone is deleted", func() bool { return v.size() == n })
	if v.deletes != had-n || r.Status().Frozen != 0 {
		t.Errorf("%d deletions, %d still frozen", v.deletes, r.Status().Frozen)
	}
}

// The backup says, truly in its time, that 30 keys are all there are; there were
// 50 since. Nothing may be believed gone until it is said anew.
func TestSuiteRestoreFromAnOlderBackup(t *testing.T) {
	etcdtest.Each(t, func(t *testing.T, e *etcdtest.Etcd) {
		api := e.APIServer(t)
		incarnation, err := store.EnsureIncarnation(t.Context(), api, e.Cluster)
		if err != nil {
			t.Fatal(err)
		}
		putMany(t, api, e, 0, 30)
		mark(t, api, e, kvstore.KindVTEP, incarnation, keyspacev1.Synced_STATE_COMPLETE)
		backup := e.Snapshot(t)
		putMany(t, api, e, 30, 50)
		v := newView()
		r := asAgent(t, e, v)
		reach(t, r, 1)
		v.watchSize()
		e.Stop()
		var fresh string
		e.Restore(t, backup, func(ctx context.Context, c kvstore.Client) error {
			fresh, err = store.Reincarnate(ctx, c, e.Cluster)
			return err
		})
		etcdtest.Eventually(t, patience, "the older store is listed", func() bool {
			s := r.Status()
			return s.Connected && s.Lists > 1 && s.Frozen == 20
		})
		if now, err := store.EnsureIncarnation(t.Context(), api, e.Cluster); err != nil || now == incarnation || now != fresh {
			t.Errorf("incarnation %q after %q: %v", now, incarnation, err)
		}
		time.Sleep(2 * thawing) // the backup's own markers would thaw it by now
		if v.size() != 50 || v.deletes != 0 {
			t.Fatalf("in the older store: %d keys, %d deletions", v.size(), v.deletes)
		}
		becomes(t, e, v, r, fresh, 40)
	})
}

// thawing is how often a frozen reader looks at the markers.
const thawing = 250 * time.Millisecond

func TestSuiteHundredThousandKeys(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 100,000 keys to each kind of etcd")
	}
	const n, bound = 100_000, 60 * time.Second
	etcdtest.Each(t, func(t *testing.T, e *etcdtest.Etcd) {
		api := e.APIServer(t)
		start := time.Now()
		var ops []kvstore.Op
		for i := range n {
			ip := fmt.Sprintf("10.%d.%d.%d/32", i>>16, i>>8&255, i&255)
			k := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIP, ip)
			value, err := kvstore.Encode(k, &keyspacev1.IPEntry{Prefix: ip, Identity: 65537, Node: "n1", TunnelAddress: "192.0.2.1"})
			if err != nil {
				t.Fatal(err)
			}
			if ops = append(ops, kvstore.Put(k.String(), value)); len(ops) == kvstore.MaxTxnOps || i == n-1 {
				if _, err := api.Txn(t.Context(), nil, ops, nil); err != nil {
					t.Fatal(err)
				}
				ops = ops[:0]
			}
		}
		wrote := time.Since(start)
		start = time.Now()
		v := newView()
		r := asAgent(t, e, v)
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		defer cancel()
		if err := r.WaitRevision(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if v.size() != n {
			t.Errorf("view has %d keys of %d", v.size(), n)
		}
		t.Logf("written in %v, listed in %v", wrote.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	})
}
