// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/table"
	"github.com/hawser-mesh/hawser/loadbalancer"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// toEcho lets all endpoints of demo out to a service and nowhere else.
const toEcho = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: demo}
spec:
  endpointSelector: {}
  egress: [{toServices: [{k8sService: {serviceName: echo, namespace: demo}}]}]
`

// A rule for a service follows its backends: those that come and go, an address
// that another identity gets, one that is outside the mesh, and a policy that comes
// after the service.
func TestBackingFollowsServices(t *testing.T) {
	e, err := policy.New(policy.Config{Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	ips, err := ipcache.New(ipcache.Config{Cluster: "east", Node: "n1", Tunnel: netip.MustParseAddr("192.0.2.1")})
	if err != nil {
		t.Fatal(err)
	}
	lb, err := loadbalancer.NewDesired("east")
	if err != nil {
		t.Fatal(err)
	}
	lb.SetCluster("east", 1)
	own := func(app string) labels.Set {
		return labels.New(labels.Label{Source: labels.Kubernetes, Key: "app", Value: app},
			labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"}, labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: "demo"})
	}
	const one, two identity.Number = 65537, 65538
	for n, app := range map[identity.Number]string{one: "one", two: "two"} {
		if err := e.UpsertIdentity(n, "east", own(app)); err != nil {
			t.Fatal(err)
		}
	}
	b := newBacking()
	rules := table.New[uint32]("rulesets", datapath.RuleSet.Equal)
	id, err := e.AcquireRuleSet(own("client"))
	if err != nil {
		t.Fatal(err)
	}
	ip := func(addr string, n identity.Number) {
		t.Helper()
		if err := ips.UpsertIP("east", &keyspacev1.IPEntry{Prefix: addr + "/32", Identity: uint32(n), Node: "n2", TunnelAddress: "192.0.2.2"}); err != nil {
			t.Fatal(err)
		}
		b.prefix(netip.MustParsePrefix(addr + "/32"))
	}
	backends := func(addrs ...string) {
		slice := &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: "s"}
		for _, a := range addrs {
			slice.Backends = append(slice.Backends, &keyspacev1.Backend{Ip: a, Ports: []*keyspacev1.BackendPort{{Name: "http", Port: 80, Protocol: keyspacev1.Protocol_PROTOCOL_TCP}}})
		}
		lb.UpsertSlice(loadbalancer.Source{Cluster: "east"}, slice)
		b.service("demo", "echo")
	}
	expect := func(what string, want ...identity.Number) {
		t.Helper()
		b.tell(e, lb, ips)
		e.Publish(rules)
		rs, _ := rules.Get(id)
		wanted := map[identity.Number]bool{}
		for _, n := range want {
			wanted[n] = true
		}
		for _, n := range []identity.Number{one, two} {
			if got := policy.Decide(rs, datapath.Egress, policy.Peer{Identity: n}, api.TCP, 80).Allow; got != wanted[n] {
				t.Errorf("%s: identity %d is allowed: %v", what, n, got)
			}
		}
		for _, c := range e.CIDRChanges() {
			if c.Gone {
				ips.DeleteCIDR(c.Prefix)
			} else {
				ips.SetCIDR(c.Prefix, c.Number)
			}
		}
	}
	outside := func(addr string) bool {
		t.Helper()
		rs, _ := rules.Get(id)
		entry, _ := ips.Lookup(netip.MustParseAddr(addr))
		return policy.Decide(rs, datapath.Egress, policy.Peer{Identity: entry.Identity}, api.TCP, 80).Allow
	}
	ip("10.1.0.1", one)
	ip("10.1.0.2", two)
	lb.UpsertService(loadbalancer.Source{Cluster: "east", Local: true}, &keyspacev1.Service{Namespace: "demo", Name: "echo", Id: 65537})
	backends("10.1.0.1")
	expect("no policy", one, two)
	objects, err := api.Parse([]byte(toEcho))
	if err != nil {
		t.Fatal(err)
	}
	e.UpsertObject(objects[0])
	expect("a policy after the service", one)
	backends("10.1.0.1", "10.1.0.2")
	expect("a backend more", one, two)
	backends("10.1.0.2")
	expect("a backend less", two)
	ip("10.1.0.2", one)
	expect("the address is another's", one)
	backends("10.1.0.2", "198.51.100.7")
	expect("a backend outside", one)
	if !outside("198.51.100.7") || outside("198.51.100.8") {
		t.Errorf("outside: the backend %v, its neighbour %v", outside("198.51.100.7"), outside("198.51.100.8"))
	}
	backends()
	expect("no backend left")
	if outside("198.51.100.7") {
		t.Error("the backend outside is allowed after it went")
	}
	backends("10.1.0.2")
	e.UpsertObject(parseOne(t, strings.Replace(toEcho, "serviceName: echo", "serviceName: other", 1)))
	expect("another service")
	e.DeleteObject("demo", "p")
	expect("no policy again", one, two)
	if len(b.addrs) != 0 {
		t.Errorf("addresses are kept of services that nobody names: %v", b.addrs)
	}
}

func parseOne(t *testing.T, source string) api.Object {
	t.Helper()
	objects, err := api.Parse([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	return objects[0]
}
