// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

func backendsOf(v *view) (out []netip.Addr) {
	for _, f := range v.tables.Frontends.All() {
		for _, b := range f.Backends {
			out = append(out, b.Addr)
		}
	}
	return out
}

// What is said of a node reaches the frontends, and only of that cluster's node:
// a peer that calls a node of ours dead says it of one of its own.
func TestHealthReachesFrontends(t *testing.T) {
	v := testView(t)
	web := &keyspacev1.Service{
		Namespace: "demo", Name: "web", Id: 65537, Vips: []string{"10.9.0.1"}, Global: true, Shared: true,
		Ports: []*keyspacev1.ServicePort{{Name: "http", Protocol: 6, Port: 80}},
	}
	slice := func(node, ip string) *keyspacev1.BackendSlice {
		return &keyspacev1.BackendSlice{Namespace: "demo", Service: "web", Name: node, Backends: []*keyspacev1.Backend{
			{Ip: ip, Node: node, Ports: []*keyspacev1.BackendPort{{Name: "http", Protocol: 6, Port: 8080}}},
		}}
	}
	for cluster, id := range map[string]uint32{"east": 1, "west": 2} {
		v.lb.SetCluster(cluster, id)
		v.lb.UpsertService(loadbalancer.Source{Cluster: cluster}, web)
	}
	v.lb.UpsertSlice(loadbalancer.Source{Cluster: "east"}, slice("n2", "10.1.0.5"))
	v.lb.UpsertSlice(loadbalancer.Source{Cluster: "west"}, slice("w1", "10.2.0.5"))
	say := func(cluster, node string, s keyspacev1.NodeHealth_State) {
		k := kvstore.NewKey(kvstore.State, cluster, kvstore.KindHealth, node)
		v.apply(store.Batch{Changes: []store.Change{{Key: k, KV: kvstore.KV{Key: k.String()},
			Record: &keyspacev1.NodeHealth{Node: node, Cluster: cluster, State: s, Process: "down"}}}})
	}
	want := func(what string, addrs ...string) {
		t.Helper()
		got := backendsOf(v)
		if len(got) != len(addrs) {
			t.Fatalf("%s: %v, want %v", what, got, addrs)
		}
		for i, a := range addrs {
			if got[i].String() != a {
				t.Errorf("%s: %v, want %v", what, got, addrs)
			}
		}
	}
	v.flush()
	want("at first", "10.1.0.5", "10.2.0.5")
	say("west", "n2", keyspacev1.NodeHealth_STATE_DEAD)
	want("west buries a node of ours", "10.1.0.5", "10.2.0.5")
	say("west", "w1", keyspacev1.NodeHealth_STATE_AGENT_DOWN)
	want("an agent is down", "10.1.0.5", "10.2.0.5")
	say("west", "w1", keyspacev1.NodeHealth_STATE_DEAD)
	want("a node is dead", "10.1.0.5")
	v.alive.SetPath(liveness.PathChange{NodeID: liveness.NodeID{Cluster: "west", Node: "w1"}, Path: liveness.PathUp, Since: time.Now()})
	v.flush()
	want("and answers us", "10.1.0.5", "10.2.0.5")
	v.alive.SetPath(liveness.PathChange{NodeID: liveness.NodeID{Cluster: "west", Node: "w1"}, Path: liveness.PathDown, Since: time.Now()})
	say("east", "n2", keyspacev1.NodeHealth_STATE_DEAD)
	want("none would be left", "10.1.0.5", "10.2.0.5")
}

// An agent denies that it does not run, of itself only, and once for each record
// that says so.
func TestAgentDeniesItsDeath(t *testing.T) {
	told := 0
	w := &watchman{self: liveness.NodeID{Cluster: "east", Node: "n1"}, log: slog.New(slog.DiscardHandler), tell: func() { told++ }}
	say := func(cluster, node, process string, rev int64) {
		k := kvstore.NewKey(kvstore.State, cluster, kvstore.KindHealth, node)
		w.state(store.Batch{Changes: []store.Change{
			{Key: k, KV: kvstore.KV{Key: k.String(), ModRevision: rev}, Record: &keyspacev1.NodeHealth{Node: node, Cluster: cluster, Process: process}},
			{Key: k, Deleted: true},
		}})
	}
	say("east", "n1", "up", 5)
	say("east", "n2", "down", 6)
	say("west", "n1", "down", 7)
	if told != 0 || w.refutes.Load() != 0 {
		t.Errorf("told %d times, of revision %d", told, w.refutes.Load())
	}
	say("east", "n1", "down", 8)
	if told != 1 || w.refutes.Load() != 8 {
		t.Errorf("told %d times, of revision %d; want once, of 8", told, w.refutes.Load())
	}
}
