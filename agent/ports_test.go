// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

func TestNamedPortsOfIdentities(t *testing.T) {
	web := policy.NamedPort{Name: "web", Protocol: api.TCP, Port: 80}
	alt := policy.NamedPort{Name: "web", Protocol: api.TCP, Port: 8080}
	p := newNamedPorts()
	step := func(key string, n identity.Number, ports []policy.NamedPort, changed ...identity.Number) {
		t.Helper()
		if got := p.set(key, n, ports); !slices.Equal(got, changed) {
			t.Errorf("%s: %v changed, want %v", key, got, changed)
		}
	}
	step("a", 300, nil)
	step("a", 300, []policy.NamedPort{web}, 300)
	step("b", 300, []policy.NamedPort{alt}, 300)
	if len(p.of(300)) != 2 {
		t.Errorf("two addresses with one identity: %v", p.of(300))
	}
	step("a", 301, []policy.NamedPort{web}, 300, 301)
	if !slices.Equal(p.of(300), []policy.NamedPort{alt}) || !slices.Equal(p.of(301), []policy.NamedPort{web}) {
		t.Errorf("after a move: %v and %v", p.of(300), p.of(301))
	}
	step("a", 0, nil, 301)
	step("b", 0, nil, 300)
	if len(p.byKey) != 0 || len(p.byID) != 0 {
		t.Errorf("left behind: %+v", p)
	}
}

func TestParseNamedPorts(t *testing.T) {
	got, err := parseNamedPorts([]string{"web=80/tcp", "dns=53/UDP", "x-1=9"})
	want := []policy.NamedPort{{Name: "web", Protocol: api.TCP, Port: 80}, {Name: "dns", Protocol: api.UDP, Port: 53}, {Name: "x-1", Protocol: api.TCP, Port: 9}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, error %v", got, err)
	}
	for _, bad := range []string{"web", "=80", "web=0/tcp", "web=65536", "web=80/icmp", "Web=80", "web=80/tcp/x", strings.Repeat("x", 16) + "=80"} {
		if _, err := parseNamedPorts([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := parseNamedPorts(slices.Repeat([]string{"web=80"}, maxNamedPorts+1)); err == nil {
		t.Error("any number of names is accepted")
	}
}

// What an object has no room for is told by its name, with the cluster that it is
// about and what can be done there.
func TestShortOfRoomIsTold(t *testing.T) {
	got := shortOfRoom("east", []policy.Shortage{{Object: "demo/a", Cluster: "east", Names: 2}, {Object: "demo/a", Cluster: "west", Names: 3}})
	if len(got) != 2 || got[0].GetObject() != "policy demo/a" || strings.Contains(got[0].GetFix(), "mesh grant") {
		t.Fatalf("got %v", got)
	}
	if !strings.HasPrefix(got[1].GetProblem(), "3 names at addresses of cluster west ") || !strings.HasSuffix(got[1].GetFix(), "hawser mesh grant west --max-ips NUMBER") {
		t.Errorf("got %v", got[1])
	}
}

// viewOfNames is a view with a policy that lets all pods out to the ports that
// addresses of a block call web.
func viewOfNames(t *testing.T) *view {
	t.Helper()
	v := testView(t)
	objects, err := api.Parse([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: names, namespace: demo}\n" +
		"spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}], to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	v.engine.UpsertObject(objects[0])
	return v
}

// A view counts ports by name at the addresses of the cluster that published them.
func TestViewKnowsWhosePortsTheyAre(t *testing.T) {
	v := viewOfNames(t)
	var ports []*keyspacev1.NamedPort
	for i := range kvstore.MaxNamedPorts {
		ports = append(ports, &keyspacev1.NamedPort{Name: "web", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: uint32(1 + i)})
	}
	for i := range policy.MaxBlockPorts/kvstore.MaxNamedPorts + 1 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}), 32)
		key := kvstore.Key{Subtree: kvstore.State, Cluster: "west", Kind: kvstore.KindIP, Names: []string{p.String()}}
		if err := v.change(store.Change{Key: key, Record: &keyspacev1.IPEntry{
			Prefix: p.String(), Identity: 2<<16 + 1, Node: "w1", TunnelAddress: "192.0.2.9", NamedPorts: ports}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := v.engine.Shortages(); !slices.Equal(got, []policy.Shortage{{Object: "demo/names", Cluster: "west", Names: 1}}) {
		t.Errorf("got %v", got)
	}
}

// A peer's record with the address of a pod of ours gives our egress no port of it,
// and its withdrawal takes none away.
func TestPeersNameNoPortsOfOurPods(t *testing.T) {
	v := viewOfNames(t)
	id, err := v.engine.AcquireRuleSet(labels.Set{{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"}, {Source: labels.Mesh, Key: labels.NamespaceKey, Value: "demo"}})
	if err != nil {
		t.Fatal(err)
	}
	change := func(cluster string, gone bool, ports ...uint32) {
		t.Helper()
		r := &keyspacev1.IPEntry{Prefix: "10.1.0.5/32", Identity: 1<<16 + 1, Node: "n1", TunnelAddress: "192.0.2.9"}
		for _, p := range ports {
			r.NamedPorts = append(r.NamedPorts, &keyspacev1.NamedPort{Name: "web", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: p})
		}
		key := kvstore.Key{Subtree: kvstore.State, Cluster: cluster, Kind: kvstore.KindIP, Names: []string{r.GetPrefix()}}
		if err := v.change(store.Change{Key: key, Record: r, Deleted: gone}); err != nil {
			t.Fatal(err)
		}
	}
	allowed := func(want ...uint16) {
		t.Helper()
		v.engine.Changes()
		rs, _ := v.engine.RuleSet(id)
		var got []uint16
		for k, e := range rs.Entries {
			if !e.Deny {
				got = append(got, k.Port)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("let out on %v, want %v", got, want)
		}
	}
	change("west", false, 22)
	allowed(22) // nobody else is known to have it
	change("east", false)
	allowed()
	change("east", false, 80)
	allowed(80)
	change("west", false, 23)
	change("west", true)
	allowed(80)
}
