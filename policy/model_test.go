// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/policymodel"
)

// trie is the kernel's: one for both families, IPv4 mapped into IPv6.
type trie map[netip.Prefix]identity.Number

func (t trie) take(c CIDR) {
	p := c.Prefix
	if p.Addr().Is4() {
		p = netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+96)
	}
	if delete(t, p); !c.Gone {
		t[p] = c.Number
	}
}

func (t trie) lookup(a netip.Addr) (n identity.Number) {
	longest := -1
	if !a.IsValid() {
		return 0
	}
	a = netip.AddrFrom16(a.As16())
	for p, number := range t {
		same := netip.PrefixFrom(a, p.Bits()).Masked() == p
		if same && p.Bits() > longest {
			longest, n = p.Bits(), number
		}
	}
	return n
}

func named(ports []policymodel.NamedPort) (out []NamedPort) {
	for _, p := range ports {
		out = append(out, NamedPort(p))
	}
	return out
}

// tellServices is what an agent does when a service came into use.
func tellServices(e *Engine, m *policymodel.Model) {
	names, fresh := e.Services()
	for _, name := range names {
		if fresh {
			e.SetService(name, m.Services[name].IDs, m.Services[name].Outside)
		}
	}
}

// TestEngineAgreesWithModel changes policies, identities and endpoints at
// random and compares every verdict, and the deltas with the full rule sets.
func TestEngineAgreesWithModel(t *testing.T) {
	for seed := range uint64(60) {
		scope := policymodel.Pick(rand.New(rand.NewPCG(seed, 9)), ScopeLocal, ScopeMesh)
		t.Run(fmt.Sprintf("seed %d %s", seed, scope), func(t *testing.T) {
			w := policymodel.NewWorld(seed)
			e, err := New(Config{Cluster: "east", Scope: scope})
			if err != nil {
				t.Fatal(err)
			}
			m := policymodel.New("east", scope == ScopeMesh)
			mirror := map[uint32]datapath.RuleSet{}
			endpoints := map[string]policymodel.Endpoint{}
			tries := [2]trie{{}, {}}
			for step := range 40 {
				change(t, w, e, m, endpoints)
				if step%3 == 0 {
					continue // let changes pile up
				}
				follow(t, e, mirror)
				for _, c := range e.CIDRChanges() {
					tries[map[bool]int{true: 1}[c.Block]].take(c)
				}
				compare(t, e, m, endpoints, mirror, tries)
			}
			for id := range m.Objects {
				namespace, name, _ := strings.Cut(id, "/")
				e.DeleteObject(namespace, name)
			}
			e.DropRetired()
			e.DropRetired()
			for n := range e.identities {
				if n.IsLocal() {
					t.Errorf("identity %d of a prefix is left behind", n)
				}
			}
		})
	}
}

func change(t *testing.T, w policymodel.World, e *Engine, m *policymodel.Model, endpoints map[string]policymodel.Endpoint) {
	t.Helper()
	n := policymodel.Workload(w.IntN(policymodel.Workloads))
	switch w.IntN(13) {
	case 12:
		m.APIServers = w.APIServers()
		e.SetKubeAPIServers(m.APIServers)
	case 11:
		peers := policymodel.Peers()
		for range 6 {
			a := policymodel.Pick(w.Rand, peers[8:]...).Addr // those have one
			m.AddrPorts[a] = w.Names()
			e.SetAddressPorts("east", a, named(m.AddrPorts[a]))
		}
	case 10:
		name, served := w.Service(), w.Served()
		m.Services[name] = served
		e.SetService(name, served.IDs, served.Outside)
	case 8:
		e.DropRetired()
	case 9:
		if _, ok := m.Identities[n]; ok {
			m.Ports[n] = w.Names()
			e.SetNamedPorts(n, named(m.Ports[n]))
		}
	case 0, 1, 2:
		ls := w.Labels()
		cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
		if err := e.UpsertIdentity(n, cluster, ls); err != nil {
			t.Fatal(err)
		}
		m.Identities[n] = ls
	case 3:
		e.DeleteIdentity(n)
		delete(m.Identities, n)
		delete(m.Ports, n)
	case 4, 5:
		o := w.Object()
		e.UpsertObject(o)
		tellServices(e, m)
		m.Objects[o.ID()] = o
	case 6:
		o := w.Object()
		e.DeleteObject(o.Namespace, o.Name)
		delete(m.Objects, o.ID())
	case 7:
		ep := policymodel.Endpoint{Labels: w.Labels(), Ports: w.Names()}
		name := Subject{Labels: ep.Labels, Ports: named(ep.Ports)}.Name()
		if _, ok := endpoints[name]; ok {
			e.ReleaseRuleSet(ep.Labels, named(ep.Ports)...)
			delete(endpoints, name)
			return
		}
		if _, err := e.AcquireRuleSet(ep.Labels, named(ep.Ports)...); err != nil {
			t.Fatal(err)
		}
		endpoints[name] = ep
	}
}

// follow applies the deltas to a mirror.
func follow(t *testing.T, e *Engine, mirror map[uint32]datapath.RuleSet) {
	t.Helper()
	for _, c := range e.Changes() {
		if c.Gone {
			delete(mirror, c.ID)
			continue
		}
		rs, ok := mirror[c.ID]
		if !ok {
			rs.Entries = map[datapath.PolicyKey]datapath.PolicyEntry{}
		}
		rs.ID, rs.Ingress, rs.Egress = c.ID, c.Ingress, c.Egress
		for _, k := range c.Delete {
			if _, ok := rs.Entries[k]; !ok {
				t.Fatalf("rule set %d: delete of %+v, which is not there", c.ID, k)
			}
			delete(rs.Entries, k)
		}
		for _, u := range c.Upsert {
			rs.Entries[u.Key] = u.PolicyEntry
		}
		mirror[c.ID] = rs
	}
}

func compare(t *testing.T, e *Engine, m *policymodel.Model, endpoints map[string]policymodel.Endpoint, mirror map[uint32]datapath.RuleSet, tries [2]trie) {
	t.Helper()
	if len(mirror) != len(endpoints) {
		t.Fatalf("%d rule sets for %d sets of labels and ports", len(mirror), len(endpoints))
	}
	for _, ep := range endpoints {
		id, err := e.AcquireRuleSet(ep.Labels, named(ep.Ports)...)
		if err != nil {
			t.Fatal(err)
		}
		e.ReleaseRuleSet(ep.Labels, named(ep.Ports)...)
		rs, _ := e.RuleSet(id)
		if !rs.Equal(mirror[id]) {
			t.Fatalf("rule set %d: the deltas lead to\n%+v\nnot to\n%+v", id, mirror[id], rs)
		}
		eachPacket(tries, func(d datapath.Direction, peer policymodel.Far, as Peer, proto uint8, port uint16) {
			got := Decide(rs, d, as, proto, port)
			if want := m.Allowed(ep, d, peer, proto, port); got.Allow != want {
				t.Fatalf("%s of %s %v, peer %+v %+v (%s), %d/%d: %+v, the model says allow=%v",
					d, ep.Labels, ep.Ports, peer, as, m.Identities[peer.ID], proto, port, got, want)
			}
		})
	}
}

// eachPacket has judge called for packets from and to all peers.
func eachPacket(tries [2]trie, judge func(d datapath.Direction, peer policymodel.Far, as Peer, proto uint8, port uint16)) {
	for _, peer := range policymodel.Peers() {
		as := Peer{Identity: peer.ID, Block: tries[1].lookup(peer.Addr)}
		if peer.ID == 0 {
			as.Identity = cmp.Or(tries[0].lookup(peer.Addr), identity.World)
		}
		for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
			for _, proto := range []uint8{6, 17, 132, 1} {
				for _, port := range []uint16{1, 63, 64, 80, 81, 82, 150, 40000} {
					judge(d, peer, as, proto, port)
				}
			}
		}
	}
}
