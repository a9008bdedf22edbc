// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/table"
)

const (
	active      = keyspacev1.Backend_STATE_ACTIVE
	terminating = keyspacev1.Backend_STATE_TERMINATING
	quarantined = keyspacev1.Backend_STATE_QUARANTINED
	maintenance = keyspacev1.Backend_STATE_MAINTENANCE
)

// bench is a Desired of cluster east with its table.
type bench struct {
	*Desired
	t     *testing.T
	table *table.Table[datapath.FrontendKey, datapath.Frontend]
}

func newBench(t *testing.T) *bench {
	t.Helper()
	d, err := NewDesired("east")
	if err != nil {
		t.Fatal(err)
	}
	d.SetCluster("east", 1)
	d.SetCluster("west", 2)
	return &bench{d, t, table.New[datapath.FrontendKey]("frontends", datapath.Frontend.Equal)}
}

func service(vip string, global, shared bool) *keyspacev1.Service {
	return &keyspacev1.Service{Namespace: "demo", Name: "echo", Id: 65537, Vips: []string{vip}, Global: global, Shared: shared,
		Ports: []*keyspacev1.ServicePort{{Name: "http", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 80}}}
}

// slice makes backends from "10.1.0.5" or "10.1.0.5 terminating".
func slice(name string, backends ...string) *keyspacev1.BackendSlice {
	s := &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: name}
	for _, b := range backends {
		ip, state, _ := strings.Cut(b, " ")
		value := map[string]keyspacev1.Backend_State{"": active, "terminating": terminating, "quarantined": quarantined, "maintenance": maintenance}[state]
		s.Backends = append(s.Backends, &keyspacev1.Backend{Ip: ip, State: value, Node: name, Workload: "demo/echo-" + ip,
			Ports: []*keyspacev1.BackendPort{{Name: "http", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 8080},
				{Name: "other", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 9090}}})
	}
	return s
}

// want compares the table with lines like "10.9.0.1:80 = 1/10.1.0.5 2/10.2.0.5".
func (b *bench) want(lines ...string) {
	b.t.Helper()
	b.Publish(b.table)
	var got []string
	for k, f := range b.table.All() {
		line := fmt.Sprintf("%s:%d =", k.Addr, k.Port)
		for _, be := range f.Backends {
			line += fmt.Sprintf(" %d/%s", be.ClusterID, be.Addr)
			if be.Port != 8080 {
				b.t.Errorf("backend port %d", be.Port)
			}
		}
		got = append(got, line)
	}
	slices.Sort(got)
	if !slices.Equal(got, lines) {
		b.t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

func TestMerge(t *testing.T) {
	b := newBench(t)
	east, eastLocal, west := Source{Cluster: "east"}, Source{Cluster: "east", Local: true}, Source{Cluster: "west"}
	b.UpsertService(west, service("10.8.0.1", true, true))
	b.UpsertSlice(west, slice("west-1", "10.2.0.5"))
	b.want() // a peer's service is none of ours
	b.UpsertSlice(eastLocal, slice("east-1", "10.1.0.6", "10.1.0.5"))
	b.UpsertService(eastLocal, service("10.9.0.1", false, false))
	b.want("10.9.0.1:80 = 1/10.1.0.5 1/10.1.0.6") // ours is not global
	b.DeleteService(eastLocal, "demo", "echo")
	b.UpsertService(east, service("10.9.0.1", true, true))
	b.want("10.9.0.1:80 = 1/10.1.0.5 1/10.1.0.6 2/10.2.0.5")
	b.DeleteSlice(eastLocal, "demo", "echo", "east-1")
	b.want("10.9.0.1:80 = 2/10.2.0.5") // no local backend is needed
	b.UpsertService(west, service("10.8.0.1", true, false))
	b.want("10.9.0.1:80 =") // theirs is not shared
	b.UpsertService(west, service("10.8.0.1", false, true))
	b.want("10.9.0.1:80 =") // theirs is not global
	b.DeleteService(west, "demo", "echo")
	b.want("10.9.0.1:80 =") // they have none
	b.UpsertService(west, service("10.8.0.1", true, true))
	b.want("10.9.0.1:80 = 2/10.2.0.5")
	b.UpsertService(east, service("10.9.0.1", false, false))
	b.want("10.9.0.1:80 =")
	b.UpsertService(east, service("10.9.0.2", true, false)) // another address; unshared still consumes
	b.want("10.9.0.2:80 = 2/10.2.0.5")
	b.DeleteCluster("west")
	b.want("10.9.0.2:80 =")
	b.SetCluster("west", 2)
	b.want("10.9.0.2:80 = 2/10.2.0.5")
	b.DeleteService(east, "demo", "echo")
	b.want()
	b.DeleteService(west, "demo", "echo")
	b.DeleteSlice(west, "demo", "echo", "west-1")
	b.want()
	if len(b.entries) != 0 || len(b.claims) != 0 {
		t.Errorf("left behind: %v, %v", b.entries, b.claims)
	}
	if n := b.Publish(b.table); n != 0 {
		t.Errorf("nothing happened, and %d changes", n)
	}
}

func TestStates(t *testing.T) {
	east, west := Source{Cluster: "east"}, Source{Cluster: "west"}
	for _, c := range []struct {
		east, west []string
		want       string
	}{
		{[]string{"10.1.0.5", "10.1.0.6 terminating"}, nil, "10.9.0.1:80 = 1/10.1.0.5"},
		{[]string{"10.1.0.5 terminating"}, []string{"10.2.0.5"}, "10.9.0.1:80 = 2/10.2.0.5"},
		{[]string{"10.1.0.5 terminating"}, []string{"10.2.0.5 terminating"}, "10.9.0.1:80 = 1/10.1.0.5 2/10.2.0.5"},
		{[]string{"10.1.0.5 terminating"}, []string{"10.2.0.5 quarantined"}, "10.9.0.1:80 = 1/10.1.0.5"},
		{[]string{"10.1.0.5 maintenance"}, []string{"10.2.0.5 quarantined"}, "10.9.0.1:80 ="},
		{[]string{"10.1.0.5", "10.1.0.5 terminating"}, nil, "10.9.0.1:80 = 1/10.1.0.5"},
		{[]string{"bad", "0.0.0.0", "127.0.0.1", "::ffff:10.1.0.1", "224.0.0.1", "10.1.0.5"}, nil, "10.9.0.1:80 = 1/10.1.0.5"},
	} {
		b := newBench(t)
		b.UpsertService(east, service("10.9.0.1", true, true))
		b.UpsertService(west, service("10.8.0.1", true, true))
		b.UpsertSlice(east, slice("east-1", c.east...))
		b.UpsertSlice(west, slice("west-1", c.west...))
		b.want(c.want)
	}
}

// Backends on nodes that nobody reaches are passed over while there are others,
// and are all there is when there are none.
func TestNodesPassedOver(t *testing.T) {
	east, west := Source{Cluster: "east"}, Source{Cluster: "west"}
	b := newBench(t)
	b.UpsertService(east, service("10.9.0.1", true, true))
	b.UpsertService(west, service("10.8.0.1", true, true))
	b.UpsertSlice(east, slice("n1", "10.1.0.5"))
	b.UpsertSlice(east, slice("n2", "10.1.0.6 terminating"))
	b.UpsertSlice(west, slice("n1", "10.2.0.5"))
	kept := func(want ...string) {
		t.Helper()
		var got []string
		for _, f := range b.table.All() {
			for _, k := range f.Keeping {
				got = append(got, k.Addr.String())
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("kept %v, want %v", got, want)
		}
	}
	set := func(cluster, node string, s Standing) { b.SetNodes([]Node{{cluster, node, s}}) }
	b.want("10.9.0.1:80 = 1/10.1.0.5 2/10.2.0.5")
	kept("10.1.0.6")
	set("west", "n1", Away) // only that cluster's n1
	b.want("10.9.0.1:80 = 1/10.1.0.5")
	kept("10.1.0.6", "10.2.0.5")
	set("west", "n1", Gone)
	b.want("10.9.0.1:80 = 1/10.1.0.5")
	kept("10.1.0.6")
	set("east", "n1", Away) // one that ends is better than one that nobody reaches
	b.want("10.9.0.1:80 = 1/10.1.0.6")
	kept("10.1.0.5")
	set("east", "n2", Gone)
	b.want("10.9.0.1:80 = 1/10.1.0.5 2/10.2.0.5")
	v, _ := b.Get("demo", "echo")
	for _, x := range v.Backends {
		if x.StateName() != "quarantined" {
			t.Errorf("%s on %s is %s", x.Addr, x.Node, x.StateName())
		}
	}
	b.SetNodes([]Node{{"east", "n1", Reached}, {"east", "n2", Reached}, {"west", "n1", Reached}})
	b.want("10.9.0.1:80 = 1/10.1.0.5 2/10.2.0.5")
	kept("10.1.0.6")
	if n := b.Publish(b.table); n != 0 {
		t.Errorf("%d services changed by nothing", n)
	}
	set("west", "n1", Reached)
	if n := b.Publish(b.table); n != 0 {
		t.Errorf("%d services changed by what was known", n)
	}
	set("west", "n9", Gone) // before its first backend comes
	b.UpsertSlice(west, slice("n9", "10.2.0.9"))
	b.want("10.9.0.1:80 = 1/10.1.0.5 2/10.2.0.5")
	if s := b.Serving(); len(s) != 4 || !s[[2]string{"west", "n9"}] {
		t.Errorf("serving %v", s)
	}
}

// What the operator took out stays out, whoever is reached.
func TestPassedOverIsNotMaintenance(t *testing.T) {
	b := newBench(t)
	b.UpsertService(Source{Cluster: "east"}, service("10.9.0.1", true, true))
	b.UpsertSlice(Source{Cluster: "east"}, slice("n1", "10.1.0.5"))
	b.UpsertSlice(Source{Cluster: "east"}, slice("n2", "10.1.0.6 maintenance"))
	b.SetNodes([]Node{{"east", "n1", Gone}})
	b.want("10.9.0.1:80 = 1/10.1.0.5")
}

// What is in maintenance keeps the flows that it has, unless its node is gone or
// its cluster is not believed any more.
func TestMaintenanceKeepsFlows(t *testing.T) {
	west := Source{Cluster: "west"}
	b := newBench(t)
	b.UpsertService(Source{Cluster: "east"}, service("10.9.0.1", true, true))
	b.UpsertService(west, service("10.8.0.1", true, true))
	b.UpsertSlice(Source{Cluster: "east"}, slice("n1", "10.1.0.5"))
	b.UpsertSlice(west, slice("n2", "10.2.0.6 maintenance"))
	kept := func(want int) {
		t.Helper()
		b.want("10.9.0.1:80 = 1/10.1.0.5")
		for _, f := range b.table.All() {
			if len(f.Keeping) != want {
				t.Errorf("kept %v, want %d", f.Keeping, want)
			}
		}
	}
	kept(1)
	b.SetNodes([]Node{{"west", "n2", Away}})
	kept(1)
	b.SetNodes([]Node{{"west", "n2", Gone}})
	kept(0)
	b.SetNodes([]Node{{"west", "n2", Reached}})
	kept(1)
	b.SetAge("west", Expired)
	kept(0)
}

func TestBothSubtrees(t *testing.T) {
	b := newBench(t)
	east, eastLocal := Source{Cluster: "east"}, Source{Cluster: "east", Local: true}
	older, newer := service("10.9.0.1", false, false), service("10.9.0.2", true, true)
	older.UpdatedAt, newer.UpdatedAt = 1, 2
	b.UpsertService(eastLocal, older)
	b.UpsertService(east, newer)
	b.UpsertSlice(eastLocal, slice("east-1", "10.1.0.5"))
	b.UpsertSlice(east, slice("east-1", "10.1.0.5"))
	b.want("10.9.0.2:80 = 1/10.1.0.5")
	older = service("10.9.0.1", false, false)
	older.UpdatedAt = 3
	b.UpsertService(eastLocal, older)
	b.want("10.9.0.1:80 = 1/10.1.0.5")
}

func TestNoNumberNoFrontend(t *testing.T) {
	b := newBench(t)
	s := service("10.9.0.1", false, false)
	s.Id = 0
	b.UpsertService(Source{Cluster: "east"}, s)
	b.want()
	if v, ok := b.Get("demo", "echo"); !ok || v.Service.GetName() != "echo" {
		t.Error("a service without a number is not listed")
	}
}

func TestTwoServicesOneAddress(t *testing.T) {
	b := newBench(t)
	east := Source{Cluster: "east"}
	b.UpsertService(east, service("10.9.0.1", false, false))
	b.UpsertSlice(east, slice("east-1", "10.1.0.5"))
	other := service("10.9.0.1", false, false)
	other.Name, other.Id = "other", 65536
	b.UpsertService(east, other)
	b.want("10.9.0.1:80 =") // the lower number's
	b.DeleteService(east, "demo", "other")
	b.want("10.9.0.1:80 = 1/10.1.0.5")
}

func TestView(t *testing.T) {
	b := newBench(t)
	b.UpsertService(Source{Cluster: "east"}, service("10.9.0.1", true, true))
	b.UpsertService(Source{Cluster: "west"}, service("10.8.0.1", true, true))
	b.UpsertSlice(Source{Cluster: "west"}, slice("west-1", "10.2.0.5 quarantined"))
	views := b.List()
	if len(views) != 1 || !slices.Equal(views[0].Clusters, []string{"west"}) || len(views[0].Backends) != 2 {
		t.Fatalf("views %+v", views)
	}
	got := views[0].Backends[0]
	want := BackendView{Cluster: "west", ClusterID: 2, Addr: netip.MustParseAddr("10.2.0.5"), Port: 8080, Protocol: 6,
		PortName: "http", Node: "west-1", Workload: "demo/echo-10.2.0.5", State: quarantined}
	if got != want || StateName(got.State) != "quarantined" {
		t.Errorf("got %+v", got)
	}
	if _, ok := b.Get("demo", "none"); ok {
		t.Error("a service that does not exist is shown")
	}
}

func TestLocalSlices(t *testing.T) {
	s := &keyspacev1.Service{Namespace: "demo", Name: "echo", Selector: map[string]string{"app": "echo"}, Ports: []*keyspacev1.ServicePort{
		{Name: "a", Protocol: 6, Port: 80}, {Name: "b", Protocol: 6, Port: 81, Target: "8080"}, {Name: "c", Protocol: 17, Port: 53, Target: "dns"}}}
	ep := func(ns, name, ip string, ls ...string) LocalEndpoint {
		set, err := labels.ParseSet(ls, labels.CNI)
		if err != nil {
			t.Fatal(err)
		}
		return LocalEndpoint{Namespace: ns, Name: name, Addr: netip.MustParseAddr(ip), Labels: set}
	}
	named := ep("demo", "two", "10.1.0.4", "k8s:app=echo", "x=y")
	named.NamedPorts = []NamedPort{{"dns", 53, 6}, {"dns", 5353, 17}}
	named.State = terminating
	endpoints := []LocalEndpoint{
		ep("demo", "one", "10.1.0.5", "app=echo"), named,
		ep("demo", "other", "10.1.0.6", "app=other"),
		ep("demo", "forged", "10.1.0.7", "mesh:app=echo"),
		ep("other", "one", "10.1.0.8", "app=echo"),
	}
	got := LocalSlices(s, "east-1", "z", endpoints)
	want := &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "east-1", Backends: []*keyspacev1.Backend{
		{Ip: "10.1.0.4", Node: "east-1", Zone: "z", Workload: "demo/two", State: terminating, Ports: []*keyspacev1.BackendPort{
			{Name: "a", Protocol: 6, Port: 80}, {Name: "b", Protocol: 6, Port: 8080}, {Name: "c", Protocol: 17, Port: 5353}}},
		{Ip: "10.1.0.5", Node: "east-1", Zone: "z", Workload: "demo/one", Ports: []*keyspacev1.BackendPort{
			{Name: "a", Protocol: 6, Port: 80}, {Name: "b", Protocol: 6, Port: 8080}}},
	}}
	if len(got) != 1 || !proto.Equal(got[0], want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	if got := LocalSlices(&keyspacev1.Service{Namespace: "demo", Name: "echo", Ports: s.Ports}, "east-1", "", endpoints); got != nil {
		t.Errorf("a service without selector has backends: %v", got)
	}
	var many []LocalEndpoint
	for i := range 2*MaxSlice + 1 {
		many = append(many, ep("demo", fmt.Sprint(i), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String(), "app=echo"))
	}
	var names []string
	total := 0
	for _, s := range LocalSlices(s, "east-1", "", many) {
		names = append(names, s.GetName())
		total += len(s.GetBackends())
	}
	if !slices.Equal(names, []string{"east-1", "east-1~1", "east-1~2"}) || total != len(many) {
		t.Errorf("slices %v with %d backends", names, total)
	}
}

func TestAllocation(t *testing.T) {
	used := map[uint32]bool{1<<16 | 1: true, 1<<16 | 2: true}
	if id, err := NextServiceID(1, func(n uint32) bool { return used[n] }); err != nil || id != 65539 {
		t.Errorf("id %d, %v", id, err)
	}
	if id, err := NextServiceID(255, func(uint32) bool { return false }); err != nil || id != 255<<16|1 {
		t.Errorf("id %d, %v", id, err)
	}
	if _, err := NextServiceID(1, func(uint32) bool { return true }); !errors.Is(err, ErrExhausted) {
		t.Errorf("full range: %v", err)
	}
	if _, err := NextServiceID(0, func(uint32) bool { return false }); err == nil {
		t.Error("cluster 0 is accepted")
	}
	for _, c := range []struct {
		prefix, want string
		used         []string
	}{
		{"10.9.0.0/16", "10.9.0.1", nil},
		{"10.9.0.0/16", "10.9.0.3", []string{"10.9.0.1", "10.9.0.2"}},
		{"10.9.0.0/30", "10.9.0.2", []string{"10.9.0.1"}},
		{"10.9.0.0/30", "", []string{"10.9.0.1", "10.9.0.2"}},
		{"10.9.0.7/32", "", nil},
		{"fd00::/126", "fd00::3", []string{"fd00::1", "fd00::2"}},
		{"fd00::/126", "", []string{"fd00::1", "fd00::2", "fd00::3"}},
	} {
		got, err := NextVIP(netip.MustParsePrefix(c.prefix), func(a netip.Addr) bool { return slices.Contains(c.used, a.String()) })
		if c.want == "" && !errors.Is(err, ErrExhausted) || c.want != "" && got.String() != c.want {
			t.Errorf("%s without %v: %s, %v", c.prefix, c.used, got, err)
		}
	}
	if _, err := NextVIP(netip.Prefix{}, func(netip.Addr) bool { return false }); err == nil {
		t.Error("no range is accepted")
	}
	ranges := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}
	for ip, ok := range map[string]bool{"10.9.0.1": true, "10.9.0.0": false, "10.9.0.255": false, "10.8.0.1": false} {
		if err := CheckVIP(ranges, netip.MustParseAddr(ip)); (err == nil) != ok {
			t.Errorf("%s: %v", ip, err)
		}
	}
}
