// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"net/netip"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/table"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

func testView(t *testing.T) *view {
	t.Helper()
	space, err := identity.NewSpace(8)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.New(policy.Config{Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	ips, err := ipcache.New(ipcache.Config{Cluster: "east", Node: "n1", Tunnel: netip.MustParseAddr("192.168.1.1")})
	if err != nil {
		t.Fatal(err)
	}
	lb, err := loadbalancer.NewDesired("east")
	if err != nil {
		t.Fatal(err)
	}
	return newView(liveness.NodeID{Cluster: "east", Node: "n1"}, space, slog.New(slog.DiscardHandler), datapath.NewTables(), engine, ips, lb, newNames("east", lb, nil, nil))
}

func identityOf(cluster string, n uint32) store.Change {
	k := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIdentity, kvstore.NumberName(n))
	return store.Change{Key: k, KV: kvstore.KV{Key: k.String()}, Record: &keyspacev1.Identity{Number: n, Labels: []string{"k8s:app=echo", "mesh:cluster=" + cluster}}}
}

func aged(peer, data string) store.Change {
	k := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPeerView, peer)
	return store.Change{Key: k, KV: kvstore.KV{Key: k.String()}, Record: &keyspacev1.PeerView{Peer: peer, Data: data}}
}

// The identities of a peer whose data has expired count as unknown until it is
// not expired any more; those of others are not touched.
func TestExpiredPeerIsNotBelieved(t *testing.T) {
	v := testView(t)
	const own, west, north = 1<<16 + 1, 2<<16 + 1, 3<<16 + 1
	apply := func(cs ...store.Change) { v.apply(store.Batch{Changes: cs}) }
	check := func(when string, n identity.Number, want bool) {
		t.Helper()
		_, known := v.engine.Labels(n)
		_, row := v.tables.Identities.Get(n)
		if known != want || row != want {
			t.Errorf("%s: identity %d: known to policy %v, to the datapath %v; want %v", when, n, known, row, want)
		}
	}
	apply(identityOf("east", own), identityOf("west", west), identityOf("north", north))
	check("before local/ is read", own, true)
	check("before local/ is read", west, false)
	apply(aged("west", "expired"), aged("north", "stale"))
	v.verdictsRead()
	check("expired before the agent began", west, false)
	check("stale", north, true)
	apply(aged("west", "fresh"))
	check("back", west, true)
	apply(aged("west", "stale"))
	check("stale", west, true)

	apply(aged("west", "expired"))
	check("expired", west, false)
	check("expired", north, true)
	check("expired", own, true)
	apply(identityOf("west", west+1)) // a resume brings more
	check("while a resume catches up", west+1, false)
	apply(without(identityOf("west", west)))
	apply(aged("west", "fresh"))
	check("caught up", west+1, true)
	check("deleted meanwhile", west, false)
	if !v.knows(west + 1) {
		t.Error("not known to who asks")
	}
	apply(aged("west", "expired"))
	apply(without(aged("west", ""))) // the peering ends: its keys go by themselves
	check("left", west+1, true)
	apply(aged("east", "expired")) // nobody says that of ourselves
	check("own cluster", own, true)
}

// An identity is known to the datapath only when the rule sets have what denies it,
// and not known any more before that goes: also when it comes back.
func TestIdentityIsKnownAfterItsDenies(t *testing.T) {
	v := testView(t)
	const west = 2<<16 + 1
	objects, err := api.Parse([]byte(`{"apiVersion": "hawser.io/v1", "kind": "MeshPolicy", "metadata": {"name": "p", "namespace": "demo"},
		"spec": {"endpointSelector": {}, "egress": [{"toEntities": ["all"]}], "egressDeny": [{"toEndpoints": [{"matchLabels": {"mesh:cluster": "west"}}]}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	v.engine.UpsertObject(objects[0])
	ls, err := labels.ParseSet([]string{"mesh:cluster=east", "mesh:namespace=demo", "k8s:app=x"}, labels.Any)
	if err != nil {
		t.Fatal(err)
	}
	set, err := v.engine.Acquire(policy.Subject{Labels: ls})
	if err != nil {
		t.Fatal(err)
	}
	denied := func() bool {
		rs, _ := v.tables.RuleSets.Get(set)
		return rs.Entries[datapath.PolicyKey{Direction: datapath.Egress, Identity: west}].Deny
	}
	// Comparing with the row of before is in the middle of Set.
	sets := 0
	v.tables.Identities = table.New[identity.Number]("identities", func(_, _ datapath.Identity) bool {
		if sets++; !denied() {
			t.Error("known before it is denied")
		}
		return false
	})
	v.tables.Identities.Set(west, datapath.Identity{Number: west, ClusterID: 99})
	v.verdictsRead()
	c := identityOf("west", west)
	c.Record = &keyspacev1.Identity{Number: west, Labels: []string{"k8s:app=echo", "mesh:namespace=demo", "mesh:cluster=west"}}
	v.apply(store.Batch{Changes: []store.Change{c}})
	if sets != 1 || !denied() {
		t.Fatalf("set %d times, denied %v", sets, denied())
	}
	v.mu.Lock()
	if err := v.change(aged("west", "expired")); err != nil {
		t.Error(err)
	}
	if _, ok := v.tables.Identities.Get(west); ok || !denied() {
		t.Error("its denies went before it")
	}
	v.publish()
	v.mu.Unlock()
	if denied() {
		t.Error("its denies are still there")
	}
}
