// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// fixture is the cache of node east-1 with its tables.
type fixture struct {
	*Cache
	t      *testing.T
	tables *datapath.Tables
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	c, err := New(Config{Cluster: "east", Node: "east-1", Tunnel: netip.MustParseAddr("192.0.2.1")})
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{c, t, datapath.NewTables()}
}

func (f *fixture) ip(cluster, prefix string, id uint32, tunnel string) {
	f.t.Helper()
	err := f.UpsertIP(cluster, &keyspacev1.IPEntry{Prefix: prefix, Identity: id, TunnelAddress: tunnel,
		Node: cluster + "-n", Namespace: "demo", Workload: "w"})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) vtep(cluster, prefix, tunnel, node string) {
	f.t.Helper()
	if err := f.UpsertVTEP(cluster, &keyspacev1.VTEP{Prefix: prefix, TunnelAddress: tunnel, Node: node}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) node(cluster, name, tunnel string, addrs ...string) {
	f.t.Helper()
	n := &keyspacev1.Node{Name: name, Cluster: cluster, TunnelAddress: tunnel, Mtu: 1500}
	for _, a := range addrs {
		n.Addresses = append(n.Addresses, &keyspacev1.NodeAddress{Ip: a})
	}
	if err := f.UpsertNode(cluster, n); err != nil {
		f.t.Fatal(err)
	}
}

// rows are the published tables in lines.
func (f *fixture) rows() []string {
	f.Publish(f.tables.IPCache, f.tables.Nodes)
	var out []string
	for k, e := range f.tables.IPCache.All() {
		out = append(out, fmt.Sprintf("%s id %d via %s flags %d", k.Prefix, e.Identity, e.Tunnel, e.Flags))
	}
	for k, n := range f.tables.Nodes.All() {
		if k != n.Tunnel {
			f.t.Errorf("row %+v is under %s", n, k)
		}
		out = append(out, fmt.Sprintf("node %s %s/%s id %d mtu %d", n.Tunnel, n.Cluster, n.Name, n.ClusterID, n.MTU))
	}
	slices.Sort(out)
	return out
}

func (f *fixture) want(lines ...string) {
	f.t.Helper()
	if got := f.rows(); !slices.Equal(got, lines) {
		f.t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestRows(t *testing.T) {
	f := newFixture(t)
	f.SetCluster("east", 1)
	f.node("east", "east-1", "192.0.2.1", "192.0.2.1", "198.51.100.1")
	f.node("east", "east-2", "192.0.2.2", "192.0.2.2")
	f.node("west", "west-1", "192.0.2.9", "192.0.2.9")
	f.vtep("east", "10.1.0.0/24", "192.0.2.1", "east-1")
	f.vtep("west", "10.2.0.0/24", "192.0.2.9", "west-1")
	f.vtep("east", "10.7.0.0/16", "192.0.2.77", "")
	f.ip("east", "10.1.0.5/32", 65536, "192.0.2.1")
	f.ip("west", "10.2.0.5/32", 131072, "192.0.2.9")
	f.SetEndpoint(addr("10.1.0.6"), 65537, "demo/x")
	f.want(
		"10.1.0.0/24 id 0 via invalid IP flags 4",
		"10.1.0.5/32 id 65536 via invalid IP flags 0",
		"10.1.0.6/32 id 65537 via invalid IP flags 0",
		"10.2.0.0/24 id 0 via 192.0.2.9 flags 4",
		"10.2.0.5/32 id 131072 via 192.0.2.9 flags 0",
		"10.7.0.0/16 id 2 via 192.0.2.77 flags 4",
		"192.0.2.1/32 id 1 via invalid IP flags 1",
		"192.0.2.2/32 id 6 via 192.0.2.2 flags 2",
		"192.0.2.9/32 id 6 via 192.0.2.9 flags 2",
		"198.51.100.1/32 id 1 via invalid IP flags 1",
		"node 192.0.2.2 east/east-2 id 1 mtu 1500",
		"node 192.0.2.77 east/vtep:10.7.0.0/16 id 4294967295 mtu 0",
		"node 192.0.2.9 west/west-1 id 0 mtu 1500",
	)
	f.SetCluster("west", 2)
	f.node("east", "east-2", "192.0.2.3", "192.0.2.3") // another address
	f.DeleteVTEP("east", netip.MustParsePrefix("10.7.0.0/16"))
	f.DeleteVTEP("east", netip.MustParsePrefix("10.1.0.0/24"))
	f.DeleteIP("east", netip.MustParsePrefix("10.1.0.5/32"))
	f.DeleteEndpoint(addr("10.1.0.6"))
	f.node("east", "east-1", "192.0.2.1") // one address less
	f.want(
		"10.2.0.0/24 id 0 via 192.0.2.9 flags 4",
		"10.2.0.5/32 id 131072 via 192.0.2.9 flags 0",
		"192.0.2.1/32 id 1 via invalid IP flags 1",
		"192.0.2.3/32 id 6 via 192.0.2.3 flags 2",
		"192.0.2.9/32 id 6 via 192.0.2.9 flags 2",
		"node 192.0.2.3 east/east-2 id 1 mtu 1500",
		"node 192.0.2.9 west/west-1 id 2 mtu 1500",
	)
	f.DeleteNode("west", "west-1")
	f.DeleteNode("east", "east-2")
	f.DeleteNode("east", "east-1")
	f.DeleteIP("west", netip.MustParsePrefix("10.2.0.5/32"))
	f.DeleteVTEP("west", netip.MustParsePrefix("10.2.0.0/24"))
	f.want()
	if n := f.Publish(f.tables.IPCache, f.tables.Nodes); n != 0 {
		t.Errorf("nothing happened, and %d changes", n)
	}
}

// TestNextClaimShows withdraws the best claim again and again.
func TestNextClaimShows(t *testing.T) {
	f := newFixture(t)
	const p = "10.1.0.5/32"
	f.ip("zeta", p, 4, "192.0.2.30")
	f.ip("west", p, 131072, "192.0.2.9")
	f.vtep("west", p, "192.0.2.8", "west-2")
	f.node("west", "west-1", "192.0.2.9", "10.1.0.5")
	f.vtep("east", p, "192.0.2.2", "east-2")
	f.ip("east", p, 65536, "192.0.2.2")
	f.SetEndpoint(addr("10.1.0.5"), 65537, "demo/x")
	prefix := netip.MustParsePrefix(p)
	steps := []struct {
		want     string
		withdraw func()
	}{
		{"endpoint east 65537", func() { f.DeleteEndpoint(addr("10.1.0.5")) }},
		{"ip east 65536", func() { f.DeleteIP("east", prefix) }},
		{"vtep east 0", func() { f.DeleteVTEP("east", prefix) }},
		{"node west 6", func() { f.DeleteNode("west", "west-1") }},
		{"ip west 131072", func() { f.DeleteIP("west", prefix) }},
		{"vtep west 0", func() { f.DeleteVTEP("west", prefix) }},
		{"ip zeta 4", func() { f.DeleteIP("zeta", prefix) }},
		{"reserved  2", func() {}},
	}
	for _, s := range steps {
		e, ok := f.Lookup(addr("10.1.0.5"))
		got := fmt.Sprintf("%s %s %d", e.Source, e.Cluster, e.Identity)
		if got != s.want || ok != (e.Source != KindReserved) {
			t.Errorf("got %q (%v), want %q", got, ok, s.want)
		}
		s.withdraw()
	}
}

func TestConflicts(t *testing.T) {
	f := newFixture(t)
	f.ip("east", "10.1.0.5/32", 65536, "192.0.2.2")
	f.ip("east", "10.1.0.6/32", 65536, "192.0.2.2")
	f.vtep("east", "10.1.0.0/24", "192.0.2.2", "east-2")
	if got := f.Conflicts(); len(got) != 0 {
		t.Errorf("conflicts of nobody: %+v", got)
	}
	f.ip("west", "10.1.0.6/32", 131072, "192.0.2.9")
	f.SetEndpoint(addr("10.1.0.5"), 65536, "demo/x") // moved here; the old node's record is still there
	got := f.Conflicts()
	if len(got) != 2 || got[0].Winner.Node != "east-1" || got[0].Loser.Node != "east-n" ||
		got[1].Winner.Cluster != "east" || got[1].Loser.Cluster != "west" {
		t.Errorf("conflicts %+v", got)
	}
	f.DeleteIP("west", netip.MustParsePrefix("10.1.0.6/32"))
	f.DeleteIP("east", netip.MustParsePrefix("10.1.0.5/32"))
	if got := f.Conflicts(); len(got) != 0 {
		t.Errorf("solved conflicts stay: %+v", got)
	}
}

// TestTwoNodesOneTunnel: a peer that claims our tunnel address, or another
// cluster's, takes nothing away.
func TestTwoNodesOneTunnel(t *testing.T) {
	f := newFixture(t)
	f.SetCluster("east", 1)
	f.SetCluster("west", 2)
	f.node("east", "east-1", "192.0.2.1")
	f.node("east", "east-2", "192.0.2.2")
	f.node("west", "liar", "192.0.2.2", "192.0.2.1")
	f.want(
		"192.0.2.1/32 id 1 via invalid IP flags 1",
		"192.0.2.2/32 id 6 via 192.0.2.2 flags 2",
		"node 192.0.2.2 east/east-2 id 1 mtu 1500",
	)
	f.vtep("east", "10.7.0.0/16", "192.0.2.2", "")
	f.want(
		"10.7.0.0/16 id 2 via 192.0.2.2 flags 4",
		"192.0.2.1/32 id 1 via invalid IP flags 1",
		"192.0.2.2/32 id 6 via 192.0.2.2 flags 2",
		"node 192.0.2.2 east/east-2 id 1 mtu 1500",
	)
	f.DeleteVTEP("east", netip.MustParsePrefix("10.7.0.0/16"))
	f.node("west", "liar", "192.0.2.1")
	f.DeleteNode("east", "east-2")
	f.want("192.0.2.1/32 id 1 via invalid IP flags 1")
}

// The smaller of what a node says and what the way there carries counts, and
// nothing is kept of a node that has gone.
func TestPathMTU(t *testing.T) {
	f := newFixture(t)
	f.SetCluster("east", 1)
	f.SetPathMTU(addr("192.0.2.2"), 1300) // nobody's
	f.node("east", "east-2", "192.0.2.2")
	const ip = "192.0.2.2/32 id 6 via 192.0.2.2 flags 2"
	for _, step := range []struct {
		told int
		want string
	}{
		{0, "1500"}, {1404, "1404"}, {0, "1404"}, {9000, "1500"}, {1404, "1404"},
	} {
		f.SetPathMTU(addr("192.0.2.2"), step.told)
		f.want(ip, "node 192.0.2.2 east/east-2 id 1 mtu "+step.want)
	}
	f.DeleteNode("east", "east-2")
	f.want()
	f.node("east", "east-2", "192.0.2.2")
	f.want(ip, "node 192.0.2.2 east/east-2 id 1 mtu 1500")
}

// What the programs went by before a restart stands until it is measured again; what
// was only what the node's record said does not.
func TestAssumePathMTUs(t *testing.T) {
	const ip = "192.0.2.2/32 id 6 via 192.0.2.2 flags 2"
	const node = "node 192.0.2.2 east/east-2 id 1 mtu "
	for name, tt := range map[string]struct {
		was     uint32
		want    string
		assumed bool
	}{
		"measured": {1404, "1404", true}, "the record's": {1500, "1500", false}, "the record is smaller now": {9000, "1500", false}, "unknown": {0, "1500", false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.AssumePathMTUs(map[netip.Addr]uint32{addr("192.0.2.2"): tt.was})
			f.SetCluster("east", 1)
			f.node("east", "east-2", "192.0.2.2")
			f.want(ip, node+tt.want)
			if got := f.PathAssumed(addr("192.0.2.2")); got != tt.assumed {
				t.Errorf("assumed is %t, want %t", got, tt.assumed)
			}
			f.node("east", "east-2", "192.0.2.2") // the record comes again, as after a reconnect
			f.want(ip, node+tt.want)
			f.SetPathMTU(addr("192.0.2.2"), 1500)
			f.want(ip, node+"1500")
			if f.PathAssumed(addr("192.0.2.2")) {
				t.Error("assumed, although it was measured")
			}
			f.DeleteNode("east", "east-2")
			f.node("east", "east-2", "192.0.2.2")
			f.want(ip, node+"1500")
		})
	}
}

func TestLookupAndList(t *testing.T) {
	f := newFixture(t)
	f.vtep("west", "10.2.0.0/24", "192.0.2.9", "west-1")
	f.ip("west", "10.2.0.5/32", 131072, "192.0.2.9")
	f.ip("west", "fd00::5/128", 131072, "192.0.2.9")
	for a, want := range map[string]string{
		"10.2.0.5":        "10.2.0.5/32 131072 demo/w",
		"::ffff:10.2.0.5": "10.2.0.5/32 131072 demo/w",
		"10.2.0.6":        "10.2.0.0/24 0 ",
		"10.3.0.6":        "10.3.0.6/32 2 ",
		"fd00::5":         "fd00::5/128 131072 demo/w",
		"fd00::6%eth0":    "fd00::6/128 2 ",
	} {
		e, _ := f.Lookup(addr(a))
		if got := fmt.Sprintf("%s %d %s", e.Prefix, e.Identity, e.Workload); got != want {
			t.Errorf("%s: got %q, want %q", a, got, want)
		}
	}
	if e, ok := f.Lookup(netip.Addr{}); ok || e.Identity != identity.World {
		t.Errorf("no address: %+v", e)
	}
	var got []string
	for _, e := range f.List() {
		got = append(got, e.Prefix.String())
	}
	if !slices.Equal(got, []string{"10.2.0.0/24", "10.2.0.5/32", "fd00::5/128"}) {
		t.Errorf("list %v", got)
	}
}

func TestRefusedRecords(t *testing.T) {
	f := newFixture(t)
	for name, r := range map[string]*keyspacev1.IPEntry{
		"no prefix":         {Identity: 131072, TunnelAddress: "192.0.2.9"},
		"host bits":         {Prefix: "10.2.0.5/24", Identity: 131072, TunnelAddress: "192.0.2.9"},
		"everything":        {Prefix: "0.0.0.0/0", Identity: 131072, TunnelAddress: "192.0.2.9"},
		"loopback":          {Prefix: "127.0.0.1/32", Identity: 131072, TunnelAddress: "192.0.2.9"},
		"multicast":         {Prefix: "224.0.0.0/4", Identity: 131072, TunnelAddress: "192.0.2.9"},
		"mapped":            {Prefix: "::ffff:10.2.0.5/128", Identity: 131072, TunnelAddress: "192.0.2.9"},
		"no tunnel":         {Prefix: "10.2.0.5/32", Identity: 131072},
		"tunnel is nowhere": {Prefix: "10.2.0.5/32", Identity: 131072, TunnelAddress: "0.0.0.0"},
		"identity host":     {Prefix: "10.2.0.5/32", Identity: 1, TunnelAddress: "192.0.2.9"},
		"identity unknown":  {Prefix: "10.2.0.5/32", TunnelAddress: "192.0.2.9"},
		"identity 200":      {Prefix: "10.2.0.5/32", Identity: 200, TunnelAddress: "192.0.2.9"},
		"identity local":    {Prefix: "10.2.0.5/32", Identity: 1<<24 + 1, TunnelAddress: "192.0.2.9"},
	} {
		if err := f.UpsertIP("west", r); err == nil {
			t.Errorf("ip, %s: accepted", name)
		}
	}
	f.ip("west", "10.2.0.5/32", 131072, "192.0.2.9")
	if err := f.UpsertIP("west", &keyspacev1.IPEntry{Prefix: "10.2.0.5/32", Identity: 1, TunnelAddress: "192.0.2.9"}); err == nil {
		t.Error("a changed identity host is accepted")
	}
	if err := f.UpsertVTEP("west", &keyspacev1.VTEP{Prefix: "10.2.0.0/24", TunnelAddress: "x"}); err == nil {
		t.Error("vtep without tunnel address: accepted")
	}
	if err := f.UpsertVTEP("west", &keyspacev1.VTEP{Prefix: "x", TunnelAddress: "192.0.2.9"}); err == nil {
		t.Error("vtep without prefix: accepted")
	}
	f.node("west", "west-1", "192.0.2.9")
	for _, bad := range []string{"x", "10.0.0.0/8", "0.0.0.0"} {
		err := f.UpsertNode("west", &keyspacev1.Node{Name: "west-1", TunnelAddress: "192.0.2.9",
			Addresses: []*keyspacev1.NodeAddress{{Ip: bad}}})
		if err == nil {
			t.Errorf("node address %s: accepted", bad)
		}
	}
	if err := f.UpsertNode("west", &keyspacev1.Node{Name: "west-2"}); err == nil {
		t.Error("node without tunnel address: accepted")
	}
	f.want() // bad records withdraw the good ones before them
	if _, err := New(Config{Cluster: "east", Node: "n"}); err == nil {
		t.Error("no own tunnel address: accepted")
	}
}

// TestOrderDoesNotMatter applies the same claims in random orders, with some
// withdrawn and repeated on the way.
func TestOrderDoesNotMatter(t *testing.T) {
	var first []string
	for seed := range uint64(50) {
		f := newFixture(t)
		var steps []func()
		for _, cluster := range []string{"east", "west", "north"} {
			for i := range 3 {
				p := fmt.Sprintf("10.0.0.%d/32", i)
				tunnel := fmt.Sprintf("192.0.2.%d", 1+i+len(cluster)%3)
				steps = append(steps, func() { f.ip(cluster, p, uint32(65536+i), tunnel) },
					func() { f.vtep(cluster, p, tunnel, "") },
					func() { f.node(cluster, fmt.Sprint(cluster, i), tunnel, fmt.Sprintf("10.0.0.%d", 2-i)) })
			}
		}
		steps = append(steps, func() { f.SetEndpoint(addr("10.0.0.1"), 65999, "") },
			func() { f.SetCluster("east", 1) }, func() { f.SetCluster("west", 2) })
		r := rand.New(rand.NewPCG(seed, 3))
		r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for i, step := range steps {
			step()
			if r.IntN(4) == 0 {
				f.DeleteIP("west", netip.MustParsePrefix("10.0.0.1/32"))
				f.DeleteNode("north", "north1")
				f.rows()
				for _, again := range steps[:i+1] {
					again()
				}
			}
		}
		if got := f.rows(); first == nil {
			first = got
		} else if !slices.Equal(got, first) {
			t.Fatalf("seed %d:\n%s\nfirst:\n%s", seed, strings.Join(got, "\n"), strings.Join(first, "\n"))
		}
	}
}

func BenchmarkUpsertIP(b *testing.B) {
	c, err := New(Config{Cluster: "east", Node: "east-1", Tunnel: addr("192.0.2.1")})
	if err != nil {
		b.Fatal(err)
	}
	tables := datapath.NewTables()
	r := &keyspacev1.IPEntry{TunnelAddress: "192.0.2.9", Node: "west-1", Identity: 131072}
	for i := range b.N {
		r.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32).String()
		if err := c.UpsertIP("west", r); err != nil {
			b.Fatal(err)
		}
		c.Publish(tables.IPCache, tables.Nodes)
	}
}
