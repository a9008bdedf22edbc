// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func TestPresenceIsMadeAgain(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	p, err := store.NewPresence(store.PresenceConfig{Client: e.Agent(t, "n1"), Cluster: e.Cluster, Node: "n1", TTL: 2})
	if err != nil {
		t.Fatal(err)
	}
	k := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindPresence, "n1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	present := func() bool { return stored(t, api, k) != nil }
	etcdtest.Eventually(t, patience, "present", present)
	etcdtest.Eventually(t, patience, "present again after a deletion", func() bool {
		rev := del(t, api, k)
		deadline := time.Now().Add(time.Second)
		for time.Now().Before(deadline) {
			if kv := stored(t, api, k); kv != nil && kv.ModRevision > rev {
				return true
			}
		}
		return false
	})
	e.Stop()
	e.Wipe(t)
	e.Restart(t)
	etcdtest.Eventually(t, patience, "present in a wiped store", func() bool {
		kv, _, err := api.Get(t.Context(), k.String())
		return err == nil && kv != nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !present() {
		t.Error("absent at once when the agent ended")
	}
	etcdtest.Eventually(t, patience, "absent after the lease", func() bool { return !present() })
}

// Only presence carries a lease: what an agent publishes outlives it.
func TestDataOutlivesItsWriter(t *testing.T) {
	e := etcdtest.Start(t)
	api, agent := e.APIServer(t), e.Agent(t, "n1")
	p, err := store.NewPresence(store.PresenceConfig{Client: agent, Cluster: e.Cluster, Node: "n1", TTL: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	k := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindPresence, "n1")
	etcdtest.Eventually(t, patience, "present", func() bool { return stored(t, api, k) != nil })
	w := newWriter(t, e, agent)
	wctx, stop := context.WithCancel(t.Context())
	written := make(chan error, 1)
	go func() { written <- w.Run(wctx) }()
	set(t, w, vtep(e, 1), "192.0.2.1")
	flush(t, w)
	stop()
	<-written
	cancel()
	<-done
	_ = agent.Close()
	etcdtest.Eventually(t, patience, "absent", func() bool { return stored(t, api, k) == nil })
	if stored(t, api, vtep(e, 1)) == nil {
		t.Error("its data went with its lease")
	}
}

// Presence and markers do not ask what time it is: a node or an API server whose
// clock is an hour off is as present, and its kinds are as complete.
func TestWrongClocksChangeNothing(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	const ttl = 5 // seconds: a busy machine may stand still for some
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 2)
	made := map[string]int64{} // when each presence was, by node
	key := func(node string) kvstore.Key {
		return kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindPresence, node)
	}
	for node, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		clock := func() time.Time { return time.Now().Add(off) }
		p, err := store.NewPresence(store.PresenceConfig{Client: e.Agent(t, node), Cluster: e.Cluster, Node: node, TTL: ttl, Now: clock})
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- p.Run(ctx) }()
		etcdtest.Eventually(t, patience, "present", func() bool { return stored(t, api, key(node)) != nil })
		made[node] = stored(t, api, key(node)).CreateRevision

		put(t, api, kvstore.SyncedKey(e.Cluster, e.Cluster, kvstore.KindIP),
			&keyspacev1.Synced{Incarnation: node, State: keyspacev1.Synced_STATE_COMPLETE, UpdatedAt: clock().UnixNano()})
		m := store.SyncedMarkers{Client: api, Own: e.Cluster}
		if inc, err := m.Incarnation(t.Context()); err != nil || inc != node {
			t.Errorf("%s: incarnation %q, %v: not the newest", node, inc, err)
		}
		if _, ok, err := m.Complete(t.Context(), e.Cluster, kvstore.KindIP); err != nil || !ok {
			t.Errorf("%s: complete %v, %v", node, ok, err)
		}
	}
	for end := time.Now().Add((ttl + 1) * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for node, rev := range made {
			if kv := stored(t, api, key(node)); kv == nil || kv.CreateRevision != rev {
				t.Fatalf("%s: the presence was lost while its agent runs", node)
			}
		}
	}
	cancel()
	for node := range made {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		etcdtest.Eventually(t, patience, "absent after the lease", func() bool { return stored(t, api, key(node)) == nil })
	}
}
