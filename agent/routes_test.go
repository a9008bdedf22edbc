// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// Whatever the keyspace says, the host keeps its own addresses, its etcd and the
// nodes of the mesh outside of the tunnel.
func TestRoutesSpareWhatTheHostNeeds(t *testing.T) {
	a := &Agent{cfg: Config{EtcdEndpoints: []string{"192.0.2.1:2379"}}, view: testView(t), tables: datapath.NewTables()}
	a.tables.Nodes.Set(netip.MustParseAddr("172.30.2.11"), datapath.Node{Cluster: "west", Name: "west-1"})
	own := []netip.Addr{netip.MustParseAddr("172.30.1.11"), netip.MustParseAddr("172.30.1.1")}
	for prefix, says := range map[string]string{
		"10.2.1.0/24":    "",
		"172.30.1.0/24":  "the host needs 172.30.1.11",
		"172.30.1.1/32":  "the host needs 172.30.1.1",
		"192.0.2.1/32":   "this cluster's etcd",
		"172.30.2.11/32": "node west/west-1",
		"128.0.0.0/1":    "it is not the mesh's",
	} {
		p := netip.MustParsePrefix(prefix)
		a.view.podRoutes.Set(p, struct{}{})
		err := a.spares(p, own)
		if says == "" && err != nil || says != "" && (!errors.Is(err, netdev.ErrForeignRoute) || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v, want %q", prefix, err, says)
		}
		if a.routeless.note(p, err) != (says != "") || a.routeless.note(p, err) {
			t.Errorf("%s: told wrongly", prefix)
		}
	}
	if ps := a.routeless.problems(); len(ps) != 5 || ps[0].GetObject() != "route 128.0.0.0/1" {
		t.Errorf("problems %v", ps)
	}
	if !holdsAny(netip.MustParsePrefix("172.30.2.0/24"), map[netip.Addr]struct{}{netip.MustParseAddr("172.30.2.12"): {}}) ||
		holdsAny(netip.MustParsePrefix("10.2.0.0/16"), map[netip.Addr]struct{}{netip.MustParseAddr("172.30.2.12"): {}}) {
		t.Error("a node that comes is not seen in the routes that hold it")
	}
}

// A prefix may be wanted for more than one reason: whoever withdraws its tunnel
// endpoint takes neither the services' route nor that of the own pods.
func TestRoutesStayWhileSomethingNeedsThem(t *testing.T) {
	v := testView(t)
	own, services, pods := netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("10.2.1.0/24")
	v.routeOwn(own)
	vtep := func(cluster string, p netip.Prefix) store.Change {
		return changeOf(kvstore.NewKey(kvstore.State, cluster, kvstore.KindVTEP, p.String()), &keyspacev1.VTEP{Prefix: p.String(), TunnelAddress: "192.168.2.1", Node: "n"})
	}
	say := func(cs ...store.Change) {
		v.apply(store.Batch{Changes: cs})
	}
	serviceRange := func(cidrs ...string) store.Change {
		return changeOf(kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster), &keyspacev1.Cluster{Name: "east", Id: 1, ServiceCidrs: cidrs})
	}
	routed := func(step string, p netip.Prefix, want bool) {
		t.Helper()
		if _, got := v.podRoutes.Get(p); got != want {
			t.Errorf("%s: route to %s: %v", step, p, got)
		}
	}
	say(serviceRange(services.String()), vtep("east", services), vtep("east", own), vtep("west", pods))
	say(without(vtep("east", services)), without(vtep("east", own)), without(vtep("west", pods)))
	routed("withdrawn tunnel endpoints", services, true)
	routed("withdrawn tunnel endpoints", own, true)
	routed("withdrawn tunnel endpoints", pods, false)
	say(vtep("west", services), serviceRange())
	routed("services gone, a tunnel endpoint left", services, true)
	say(without(vtep("west", services)))
	routed("nothing left", services, false)
}
