// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

type marks struct {
	*markers
	ready, all int
	unreadable bool
}

func newMarks() *marks {
	m := &marks{}
	m.markers = newMarkers("east", func() bool { return m.unreadable }, func() { m.ready++ }, func() { m.all++ })
	return m
}

func synced(cluster string, rev int64, state keyspacev1.Synced_State, kinds ...kvstore.Kind) store.Batch {
	b := store.Batch{Revision: rev}
	for _, k := range kinds {
		b.Changes = append(b.Changes, store.Change{
			Key: kvstore.SyncedKey("east", cluster, k), KV: kvstore.KV{ModRevision: rev}, Record: &keyspacev1.Synced{State: state},
		})
	}
	return b
}

var allKinds = []kvstore.Kind{
	kvstore.KindPolicy, kvstore.KindIdentity, kvstore.KindNode, kvstore.KindIP, kvstore.KindVTEP, kvstore.KindService, kvstore.KindSlice,
}

func TestMarkerCountsOnlyOnceStateHasReachedIt(t *testing.T) {
	m := newMarks()
	m.state(5)
	m.local(synced("east", 10, keyspacev1.Synced_STATE_COMPLETE, kvstore.KindPolicy, kvstore.KindIdentity))
	if m.markers.ready || m.ready != 0 {
		t.Fatal("ready although state/ is behind the marker")
	}
	m.state(10)
	if m.ready != 1 {
		t.Fatalf("ready %d times, want once", m.ready)
	}
	m.state(11)
	if m.ready != 1 {
		t.Fatal("ready was told twice")
	}
}

// A policy that cannot be read may be the one that denies: no endpoint is judged
// without it.
func TestUnreadablePolicyIsNotComplete(t *testing.T) {
	m := newMarks()
	m.unreadable = true
	m.state(10)
	m.local(synced("east", 10, keyspacev1.Synced_STATE_COMPLETE, allKinds...))
	if m.ready != 0 || m.all != 0 {
		t.Fatal("complete although a policy cannot be read")
	}
	m.unreadable = false
	m.local(store.Batch{Revision: 11})
	if m.ready != 1 || m.all != 1 {
		t.Fatalf("once it can be read: ready %d, all %d times", m.ready, m.all)
	}
}

func TestCopyingIsNotComplete(t *testing.T) {
	m := newMarks()
	m.state(20)
	m.local(synced("east", 10, keyspacev1.Synced_STATE_COPYING, allKinds...))
	if m.ready != 0 || m.all != 0 {
		t.Fatal("a marker that says copying counts as complete")
	}
}

func TestAllWaitsForEveryPeer(t *testing.T) {
	m := newMarks()
	m.state(20)
	view := store.Batch{Revision: 10, Changes: []store.Change{{
		Key: kvstore.NewKey(kvstore.Local, "east", kvstore.KindPeerView, "west"), Record: &keyspacev1.PeerView{},
	}}}
	m.local(view)
	m.local(synced("east", 11, keyspacev1.Synced_STATE_COMPLETE, allKinds...))
	if m.ready != 1 || m.all != 0 {
		t.Fatalf("ready %d, all %d before the peer is copied; want 1, 0", m.ready, m.all)
	}
	m.local(synced("west", 12, keyspacev1.Synced_STATE_COMPLETE, allKinds[1:]...))
	if m.all != 1 {
		t.Fatal("not complete although own cluster and peer are")
	}
}
