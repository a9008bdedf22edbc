// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
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
	a := &Agent{view: testView(t), tables: datapath.NewTables()}
	named := func(_ context.Context, _, host string) ([]netip.Addr, error) {
		return map[string][]netip.Addr{"etcd.example": {netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}}[host], nil
	}
	// As an enrolment has them (https://), and as an operator may write them.
	a.outside = newOutside([]string{"https://192.0.2.1:2379", "https://[2001:db8::1]:2379", "192.0.2.2:2379", "https://192.0.2.3:2379/", "https://etcd.example:2379"},
		[]string{"192.0.2.4:4433"}, named, slog.New(slog.DiscardHandler))
	a.outside.resolve(t.Context())
	a.tables.Nodes.Set(netip.MustParseAddr("172.30.2.11"), datapath.Node{Cluster: "west", Name: "west-1"})
	own := []netip.Addr{netip.MustParseAddr("172.30.1.11"), netip.MustParseAddr("172.30.1.1")}
	for prefix, says := range map[string]string{
		"10.2.1.0/24":       "",
		"172.30.1.0/24":     "the host needs 172.30.1.11",
		"172.30.1.1/32":     "the host needs 172.30.1.1",
		"192.0.2.1/32":      "192.0.2.1 is this cluster's etcd",
		"192.0.2.2/32":      "192.0.2.2 is this cluster's etcd",
		"192.0.2.3/32":      "192.0.2.3 is this cluster's etcd",
		"192.0.2.4/32":      "192.0.2.4 is this cluster's API server",
		"192.0.2.5/32":      "",
		"2001:db8::/64":     "this cluster's etcd",
		"2001:db8::1/128":   "2001:db8::1 is this cluster's etcd",
		"2001:db8::7/128":   "2001:db8::7 is this cluster's etcd",
		"198.51.100.0/24":   "198.51.100.7 is this cluster's etcd",
		"2001:db8:0:1::/64": "",
		"172.30.2.11/32":    "node west/west-1",
		"128.0.0.0/1":       "it is not the mesh's",
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
	if ps := a.routeless.problems(); len(ps) != 12 || ps[0].GetObject() != "route 128.0.0.0/1" {
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
