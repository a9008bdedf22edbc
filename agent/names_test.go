// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/agent/dns"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

func TestNamesFollowTheRecords(t *testing.T) {
	lb, err := loadbalancer.NewDesired("east")
	if err != nil {
		t.Fatal(err)
	}
	n := newNames("east", lb, make(chan struct{}), make(chan struct{}))
	n.judged.Store(true)
	addr := netip.MustParseAddr
	record := func(a, ns, name string) *keyspacev1.IPEntry {
		return &keyspacev1.IPEntry{Prefix: a + "/32", Namespace: ns, Workload: name}
	}
	called := func(a string, want ...string) {
		t.Helper()
		if got := n.Names(addr(a)); !slices.Equal(got, want) {
			t.Errorf("%s is called %v, want %v", a, got, want)
		}
	}
	set := func(cluster string, r *keyspacev1.IPEntry) {
		n.setAddress(cluster, netip.MustParsePrefix(r.GetPrefix()), r)
	}
	gone := func(cluster, a string) { n.setAddress(cluster, netip.PrefixFrom(addr(a), 32), nil) }
	set("east", record("10.1.1.2", "demo", "client"))
	set("west", record("10.2.1.2", "demo", "client"))
	set("west", record("10.2.1.3", "theirs", "spy"))
	set("west", &keyspacev1.IPEntry{Prefix: "10.2.7.0/24", Namespace: "theirs", Workload: "wide"})
	if n.Workload("west", "theirs", "wide") != nil {
		t.Error("a range has a name")
	}
	called("10.1.1.2", "client.demo")
	called("10.2.1.2", "west.client.demo")
	if got := n.Workload("", "demo", "client"); !slices.Equal(got, []netip.Addr{addr("10.1.1.2")}) {
		t.Errorf("client without a cluster is %v", got)
	}
	if n.Workload("", "theirs", "spy") != nil || n.Namespace("theirs") || !n.Namespace("demo") {
		t.Error("a peer's workload made a name of this cluster")
	}

	// A pod that got another address, and one that took over an address.
	gone("east", "10.1.1.2")
	set("east", record("10.1.1.9", "demo", "client"))
	called("10.1.1.2")
	called("10.1.1.9", "client.demo")
	set("east", record("10.1.1.9", "demo", "other"))
	called("10.1.1.9", "other.demo")
	if n.Workload("east", "demo", "client") != nil {
		t.Error("client is still there")
	}

	echo := serviceName{"shop", "echo"}
	n.setService(echo, &keyspacev1.Service{Vips: []string{"172.31.1.10"}})
	set("east", record("10.1.1.4", "shop", "echo"))
	called("172.31.1.10", "echo.shop")
	called("10.1.1.4") // its name is the service's
	if vips, ok := n.Service("shop", "echo"); !ok || len(vips) != 1 {
		t.Errorf("the service has %v %v", vips, ok)
	}
	n.setService(echo, &keyspacev1.Service{Vips: []string{"172.31.1.11"}})
	called("172.31.1.10")
	n.setService(echo, nil)
	n.setService(echo, nil)
	called("172.31.1.11")
	called("10.1.1.4", "echo.shop")
	gone("east", "10.1.1.4")
	gone("east", "10.1.1.4")
	if n.Namespace("shop") {
		t.Error("a namespace outlived its last name")
	}
	gone("east", "10.1.1.9")
	gone("west", "10.2.1.2")
	gone("west", "10.2.1.3")
	if n.workloads.len()+len(n.workloads.byName)+len(n.namespaces)+len(n.vips)+len(n.services) != 0 {
		t.Errorf("something is left: %+v", n)
	}
}

// A peer whose data has expired has no names, as it has no backends: neither its
// pods, nor their addresses, nor what stands behind a headless service. A stale
// one's are the last. They come back; the own cluster's are not touched.
func TestExpiredPeerHasNoNames(t *testing.T) {
	v := testView(t)
	addr := netip.MustParseAddr
	pod := func(cluster, a, name string) store.Change {
		k := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIP, a+"/32")
		return store.Change{Key: k, KV: kvstore.KV{Key: k.String()}, Record: &keyspacev1.IPEntry{Prefix: a + "/32", Namespace: "demo", Workload: name}}
	}
	apply := func(cs ...store.Change) { v.apply(store.Batch{Changes: cs}) }
	check := func(when string, west bool, called ...string) {
		t.Helper()
		if got := v.names.Workload("west", "demo", "web"); (len(got) == 1) != west {
			t.Errorf("%s: west's web is %v", when, got)
		}
		if got := v.names.Names(addr("10.2.1.2")); (len(got) == 1) != west {
			t.Errorf("%s: the address of west's web is called %v", when, got)
		}
		if got := v.names.Backends("demo", "db"); slices.ContainsFunc(got, func(b dns.Backend) bool { return b.Cluster == "west" }) != west || len(got) == 0 {
			t.Errorf("%s: behind the headless service are %v", when, got)
		}
		if got := v.names.Names(addr("10.9.1.9")); !slices.Equal(got, called) {
			t.Errorf("%s: an address that several claim is called %v, want %v", when, got, called)
		}
		if got := v.names.Workload("", "demo", "web"); !slices.Equal(got, []netip.Addr{addr("10.1.1.2")}) {
			t.Errorf("%s: our own web is %v", when, got)
		}
	}
	for cluster, a := range map[string]string{"east": "10.1.1.3", "west": "10.2.1.3"} {
		from := loadbalancer.Source{Cluster: cluster}
		v.lb.SetCluster(cluster, 1)
		v.lb.UpsertService(from, &keyspacev1.Service{Namespace: "demo", Name: "db", Headless: true, Global: true, Shared: true})
		v.lb.UpsertSlice(from, &keyspacev1.BackendSlice{Namespace: "demo", Service: "db", Name: "n", Backends: []*keyspacev1.Backend{
			{Ip: a, Workload: "demo/db-" + cluster, State: keyspacev1.Backend_STATE_ACTIVE, Ports: []*keyspacev1.BackendPort{{Port: 1}}},
		}})
	}
	apply(pod("east", "10.1.1.2", "web"), pod("west", "10.2.1.2", "web"))
	apply(pod("north", "10.9.1.9", "x"), pod("west", "10.9.1.9", "x"), pod("east", "10.9.1.9", "x"))
	if got := v.names.Workload("west", "demo", "web"); got != nil {
		t.Errorf("before it is known whether it has expired: %v", got)
	}
	v.verdictsRead()
	check("fresh", true, "north.x.demo", "west.x.demo", "x.demo")
	apply(aged("north", "stale"))
	check("another one is stale", true, "west.x.demo", "x.demo", "north.x.demo")
	apply(aged("west", "stale"))
	check("stale", true, "x.demo", "north.x.demo", "west.x.demo")
	apply(aged("west", "expired"))
	check("expired", false, "x.demo", "north.x.demo")
	apply(aged("north", "fresh"), aged("west", "fresh"))
	check("back", true, "north.x.demo", "west.x.demo", "x.demo")
}

func TestBackendsThatTakeConnectionsHaveNames(t *testing.T) {
	lb, err := loadbalancer.NewDesired("east")
	if err != nil {
		t.Fatal(err)
	}
	n := newNames("east", lb, nil, nil)
	lb.SetCluster("east", 1)
	from := loadbalancer.Source{Cluster: "east"}
	lb.UpsertService(from, &keyspacev1.Service{Namespace: "demo", Name: "db", Headless: true})
	backend := func(a, name string, s keyspacev1.Backend_State) *keyspacev1.Backend {
		return &keyspacev1.Backend{Ip: a, Workload: "demo/" + name, State: s, Ports: []*keyspacev1.BackendPort{{Port: 1}, {Port: 2, Name: "b"}}}
	}
	is := func(want ...string) {
		t.Helper()
		var got []string
		all := n.Backends("demo", "db")
		for _, b := range all {
			if b.Rank == all[0].Rank && !slices.Contains(got, b.Workload) {
				got = append(got, b.Workload)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("backends %v, want %v", got, want)
		}
	}
	is()
	lb.UpsertSlice(from, &keyspacev1.BackendSlice{Namespace: "demo", Service: "db", Name: "n", Backends: []*keyspacev1.Backend{
		backend("10.1.1.2", "db-0", keyspacev1.Backend_STATE_ACTIVE), backend("10.1.1.3", "db-1", keyspacev1.Backend_STATE_TERMINATING),
		backend("10.1.1.4", "db-2", keyspacev1.Backend_STATE_QUARANTINED),
	}})
	is("db-0")
	lb.UpsertSlice(from, &keyspacev1.BackendSlice{Namespace: "demo", Service: "db", Name: "n", Backends: []*keyspacev1.Backend{
		backend("10.1.1.3", "db-1", keyspacev1.Backend_STATE_TERMINATING), backend("10.1.1.4", "db-2", keyspacev1.Backend_STATE_QUARANTINED),
	}})
	is("db-1")
}

func TestWhoMayAskForNames(t *testing.T) {
	n := newNames("east", nil, nil, nil)
	n.setRanges("east", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")})
	n.setRanges("west", []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")})
	may := n.mayAsk(netip.MustParseAddr("172.30.1.11"), []netip.Prefix{netip.MustParsePrefix("10.9.1.0/24"), netip.MustParsePrefix("fd00:9:1::/64")})
	for a, want := range map[string]bool{
		"172.30.1.11": true, "127.0.0.1": true, "10.9.1.7": true, "fd00:9:1::7": true, "10.1.2.3": true, // the node, its pods, its cluster's
		"10.2.1.1": false, "172.30.1.12": false, "192.0.2.1": false,
	} {
		if may(netip.MustParseAddr(a)) != want {
			t.Errorf("%s may ask: %v, want %v", a, !want, want)
		}
	}
}

// The index is compared with a plain map.
func TestAddressesFollowAModel(t *testing.T) {
	type place struct {
		addr    netip.Addr
		cluster string
	}
	x, model := newAddresses(), map[place]workload{}
	random := rand.New(rand.NewPCG(1, 2))
	addrs := []netip.Addr{netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("10.1.1.2"), netip.MustParseAddr("fd00::1")}
	clusters, namesOf := []string{"east", "west", "south"}, []string{"a", "b"}
	for step := range 20_000 {
		p := place{addrs[random.IntN(3)], clusters[random.IntN(3)]}
		w := workload{p.cluster, "demo", namesOf[random.IntN(2)]}
		if random.IntN(2) == 0 {
			x.set(p.addr, w)
			model[p] = w
		} else {
			got, was := x.remove(p.addr, p.cluster)
			if want, there := model[p]; got != want || was != there {
				t.Fatalf("step %d: removed %v, want %v", step, got, want)
			}
			delete(model, p)
		}
		for _, a := range addrs {
			var want []workload
			for p, w := range model {
				if p.addr == a {
					want = append(want, w)
				}
			}
			order := func(a, b workload) int { return strings.Compare(a.cluster, b.cluster) }
			if got := slices.SortedFunc(x.workloads(a), order); !slices.Equal(got, slices.SortedFunc(slices.Values(want), order)) {
				t.Fatalf("step %d: %s is of %v, want %v", step, a, got, want)
			}
		}
		for _, c := range clusters {
			for _, name := range namesOf {
				var want []netip.Addr
				for p, w := range model {
					if w == (workload{c, "demo", name}) {
						want = append(want, p.addr)
					}
				}
				slices.SortFunc(want, netip.Addr.Compare)
				if got := slices.SortedFunc(x.of(workload{c, "demo", name}), netip.Addr.Compare); !slices.Equal(got, want) {
					t.Fatalf("step %d: %s/%s has %v, want %v", step, c, name, got, want)
				}
			}
		}
	}
	if len(x.rows) > len(addrs)*len(clusters) {
		t.Errorf("%d rows for %d places", len(x.rows), len(addrs)*len(clusters))
	}
}
