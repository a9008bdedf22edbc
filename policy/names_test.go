// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/policy/api"
)

const namesInBlock = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: names, namespace: demo}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - ports: [{port: web}]
    to: [{ipBlock: {cidr: 10.0.0.0/8}}]
`

// askingEngine has namesInBlock in force for one rule set.
func askingEngine(t *testing.T) (e *Engine, id uint32) {
	t.Helper()
	objects, err := api.Parse([]byte(namesInBlock))
	if err != nil {
		t.Fatal(err)
	}
	if e, err = New(Config{Cluster: "east"}); err != nil {
		t.Fatal(err)
	}
	if id, err = e.AcquireRuleSet(appLabels(1)); err != nil {
		t.Fatal(err)
	}
	e.UpsertObject(objects[0])
	return e, id
}

// letsOut reports whether an address is let out to on a port, by who it is.
func letsOut(t *testing.T, e *Engine, id uint32, a netip.Addr, port uint16) bool {
	t.Helper()
	e.Changes()
	rs, ok := e.RuleSet(id)
	if !ok {
		t.Fatalf("no rule set %d", id)
	}
	peer := Peer{Identity: 1 << 16}
	for p := range e.prefixes.used[1].Supernets(block(a).Prefix) {
		in, _ := e.prefixes.used[1].Get(p)
		peer.Block = in.number
		break
	}
	return Decide(rs, datapath.Egress, peer, api.TCP, port).Allow
}

func web(ports ...uint16) (out []NamedPort) {
	for _, p := range ports {
		out = append(out, NamedPort{"web", api.TCP, p})
	}
	return out
}

// A cluster that announces ports of a name without end gets the room of one
// cluster, by name of the object; others', and what was there, is not displaced.
func TestNamesInBlocksAreBounded(t *testing.T) {
	e, id := askingEngine(t)
	at := func(i int) netip.Addr { return netip.MustParseAddr(address(i)) }
	for i := range MaxBlockPorts + 100 {
		e.SetAddressPorts("west", at(i), web(80))
	}
	for i := range 3 { // new ones of the own cluster
		e.SetAddressPorts("east", at(1<<20+i), web(81))
	}
	e.Changes()
	rs, _ := e.RuleSet(id)
	if n, most := len(rs.Entries), MaxBlockPorts+10; n > most {
		t.Errorf("%d entries, want %d at most", n, most)
	}
	want := []Shortage{{"demo/names", "west", 100}}
	if got := e.Shortages(); !slices.Equal(got, want) {
		t.Errorf("shortages %v, want %v", got, want)
	}
	for i, allow := range map[int]bool{0: true, MaxBlockPorts - 1: true, MaxBlockPorts: false, MaxBlockPorts + 99: false} {
		if got := letsOut(t, e, id, at(i), 80); got != allow {
			t.Errorf("west's address %d: %v, want %v", i, got, allow)
		}
	}
	if !letsOut(t, e, id, at(1<<20+2), 81) {
		t.Error("west's addresses took the room of east's")
	}

	// What goes leaves its room to what waits.
	for i := range 100 {
		e.SetAddressPorts("west", at(i), nil)
	}
	if got := e.Shortages(); len(got) != 0 || !letsOut(t, e, id, at(MaxBlockPorts+99), 80) {
		t.Errorf("not given the room that is left: %v", got)
	}
	e.DeleteObject("demo", "names")
	e.Changes()
	e.DropRetired()
	e.DropRetired()
	if n := len(e.names.heard) + len(e.names.askers) + e.prefixes.used[1].Size(); n != 0 {
		t.Errorf("%d left behind", n)
	}
}

// Ports are counted, not addresses; and a name that has no room means nothing at
// an address that has room for another.
func TestNumbersOfOneNameAreCounted(t *testing.T) {
	e, id := askingEngine(t)
	many := make([]uint16, 256)
	for i := range many {
		many[i] = uint16(1000 + i)
	}
	at := func(i int) netip.Addr { return netip.MustParseAddr(address(i)) }
	for i := range MaxBlockPorts/256 + 1 {
		e.SetAddressPorts("west", at(i), web(many...))
	}
	last := at(MaxBlockPorts / 256)
	if !letsOut(t, e, id, at(0), 1255) || letsOut(t, e, id, last, 1000) || len(e.Shortages()) != 1 {
		t.Errorf("shortages %v", e.Shortages())
	}
	// Its other name is asked for, too, and has no room either: web still means nothing there.
	e.SetAddressPorts("west", last, append(web(many...), NamedPort{"dns", api.TCP, 53}))
	e.usePrefix(block(last)) // as an ipBlock of another object does
	if letsOut(t, e, id, last, 1000) {
		t.Error("a name without room means something where the address is in use")
	}
	for i := range 2 { // now there is room
		e.SetAddressPorts("west", at(i), web(80))
	}
	if !letsOut(t, e, id, last, 1000) || !letsOut(t, e, id, at(0), 80) || letsOut(t, e, id, at(0), 1255) {
		t.Errorf("after room was made: shortages %v", e.Shortages())
	}
}

// Room goes to what fits, past what does not, and in the order of addresses, then
// of names, also when an object begins to ask.
func TestRoomIsGivenInOrder(t *testing.T) {
	e, id := askingEngine(t)
	at := func(i int) netip.Addr { return netip.MustParseAddr(address(i)) }
	many := func(n int) (out []NamedPort) {
		for i := range n {
			out = append(out, NamedPort{"web", api.TCP, uint16(1 + i)})
		}
		return out
	}
	const full = MaxBlockPorts / 256
	for i := range full {
		e.SetAddressPorts("west", at(1000+i), many(256))
	}
	for i := 99; i >= 0; i-- { // they wait
		e.SetAddressPorts("west", at(i), many(2))
	}
	e.SetAddressPorts("west", at(0), many(256))
	check := func(when string, has func(i int) bool) {
		t.Helper()
		for i := range 100 {
			if got := letsOut(t, e, id, at(i), 1); got != has(i) {
				t.Errorf("%s: address %d is let out to: %v", when, i, got)
			}
		}
	}
	check("full", func(int) bool { return false })
	e.SetAddressPorts("west", at(1000), many(246))
	check("room for 10", func(i int) bool { return i >= 1 && i <= 5 })
	e.SetAddressPorts("west", at(1001), many(255))
	check("room for 11", func(i int) bool { return i >= 1 && i <= 5 })
	objects, err := api.Parse([]byte(strings.Replace(namesInBlock, "demo}", "demo, labels: {version: two}}", 1)))
	if err != nil {
		t.Fatal(err)
	}
	e.UpsertObject(objects[0])
	check("changed", func(int) bool { return true })
	if got := letsOut(t, e, id, at(1000+full-1), 1); got {
		t.Error("changed: the last by address has room")
	}
	// 0 to 99 have 454, so 30 of 256 or less fit beside; the last two do not.
	if got := e.Shortages(); !slices.Equal(got, []Shortage{{"demo/names", "west", 2}}) {
		t.Errorf("shortages %v", got)
	}
}

// Of clusters that have one address the own one's names count, then the first's by
// name; what another says, or takes back, changes nothing of that.
func TestAddressOfTwoClusters(t *testing.T) {
	e, id := askingEngine(t)
	a := netip.MustParseAddr("10.0.0.1")
	for _, step := range []struct {
		cluster string
		ports   []NamedPort
		counted string // where; "": nowhere
		port    uint16
	}{
		{"west", web(80), "west", 80},
		{"zeta", web(82), "west", 80},
		{"east", web(81), "east", 81}, // the own
		{"west", web(83), "east", 81},
		{"abel", web(84), "east", 81}, // before the own by name
		{"abel", nil, "east", 81},
		{"west", nil, "east", 81},
		{"east", nil, "zeta", 82},
		{"east", []NamedPort{}, "", 0}, // the own has no names
		{"zeta", web(84), "", 0},
		{"west", web(80), "", 0},
		{"zeta", nil, "", 0},
		{"east", nil, "west", 80},
		{"east", []NamedPort{}, "", 0},
		{"west", nil, "", 0},
		{"east", nil, "", 0},
	} {
		e.SetAddressPorts(step.cluster, a, step.ports)
		want := map[string]int{}
		if step.counted != "" {
			want[step.counted] = 1
		}
		if x := e.objects["demo/names"].names; !maps.Equal(x.ports, want) {
			t.Errorf("after %+v: counted %v", step, x.ports)
		}
		for port := uint16(80); port < 85; port++ {
			if got := letsOut(t, e, id, a, port); got != (port == step.port) {
				t.Errorf("after %+v: let out on %d: %v", step, port, got)
			}
		}
	}
	if n := len(e.names.at) + len(e.names.beside) + len(e.names.addrs); n != 0 {
		t.Errorf("%d left behind", n)
	}
}

// What denies is never left out: API servers' addresses, which operators name.
func TestDeniedNamesAreNotBounded(t *testing.T) {
	e, id := askingEngine(t)
	e.SetKubeAPIServers([]netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")})
	objects, err := api.Parse([]byte("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: deny, namespace: demo}\n" +
		"spec: {endpointSelector: {}, egress: [{toEntities: [all]}], egressDeny: [{toEntities: [cluster], toPorts: [{ports: [{port: web}]}]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	e.UpsertObject(objects[0])
	for i := range MaxBlockPorts + 10 {
		e.SetAddressPorts("west", netip.MustParseAddr(address(200<<16+i)), web(80))
	}
	last := netip.MustParseAddr(address(200<<16 + MaxBlockPorts + 9))
	if letsOut(t, e, id, last, 80) || !letsOut(t, e, id, last, 81) {
		t.Errorf("shortages %v", e.Shortages())
	}
}
