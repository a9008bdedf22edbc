// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// model judges packets straight from the rules, one at a time. It shares no
// code with the engine beyond what a Requirement matches.
type model struct {
	cluster    string
	scope      Scope
	identities map[identity.Number]labels.Set
	ports      map[identity.Number][]NamedPort
	objects    map[string]api.Object
}

// endpoint is what a rule set is for.
type endpoint struct {
	labels labels.Set
	ports  []NamedPort
}

// far is the other side of a packet. Outside the mesh it has an address only.
type far struct {
	id   identity.Number
	addr netip.Addr
}

func (m *model) allowed(ep endpoint, d datapath.Direction, peer far, proto uint8, port uint16) bool {
	if d == datapath.Ingress && peer.id == identity.Host {
		return true
	}
	names := ep.ports
	if d == datapath.Egress {
		names = m.ports[peer.id]
	}
	closed, allow := false, false
	for _, o := range m.objects {
		for _, r := range o.Rules {
			if !matchAll(r.Endpoints, ep.labels) {
				continue
			}
			closed = closed || r.DefaultDeny[d]
			for _, p := range r.Parts {
				if p.Direction != d || !m.isPeer(p.Peers, peer) || !onPort(p.Ports, names, proto, port) {
					continue
				}
				if p.Deny {
					return false
				}
				allow = true
			}
		}
	}
	return allow || !closed
}

func matchAll(s api.Selector, ls labels.Set) bool {
	for _, r := range s.Requirements {
		if !r.Matches(ls) {
			return false
		}
	}
	return true
}

func onPort(ports []api.Port, names []NamedPort, proto uint8, port uint16) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p api.Port) bool {
		switch {
		case p.Protocol != proto:
			return false
		case p.Name != "":
			return slices.Contains(names, NamedPort{p.Name, proto, port})
		case p.End != 0:
			return p.Port <= port && port <= p.End
		}
		return p.Port == 0 || p.Port == port
	})
}

func inCIDR(c api.CIDR, a netip.Addr) bool {
	return c.Prefix.Contains(a) && !slices.ContainsFunc(c.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

func (m *model) isPeer(p api.Peers, peer far) bool {
	if p.Any {
		return true
	}
	for _, c := range p.CIDRs {
		if inCIDR(c, peer.addr) && (c.Block || peer.id == 0) {
			return true
		}
	}
	n := peer.id
	if n == 0 {
		n = identity.World
	}
	ls, workload := m.identities[n]
	cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
	for _, s := range p.Selectors {
		local := m.scope == ScopeLocal && !s.Names(labels.Mesh, labels.ClusterKey)
		if workload && matchAll(s, ls) && (!local || cluster == m.cluster) {
			return true
		}
	}
	node := n == identity.Host || n == identity.RemoteNode || n == identity.Health || n == identity.Init
	for _, e := range p.Entities {
		switch e {
		case api.EntityWorld:
			if n == identity.World || n == identity.WorldIPv4 || n == identity.WorldIPv6 {
				return true
			}
		case api.EntityCluster:
			if node || workload && cluster == m.cluster {
				return true
			}
		case api.EntityMesh:
			if node || workload {
				return true
			}
		default:
			if name, ok := n.Reserved(); ok && name == string(e) {
				return true
			}
		}
	}
	return false
}

// world makes random identities, endpoints and policies out of few values, so
// that everything overlaps.
type world struct{ *rand.Rand }

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (w world) labels() labels.Set {
	ls := []labels.Label{
		{Source: labels.Mesh, Key: labels.ClusterKey, Value: pick(w.Rand, "east", "east", "west")},
		{Source: labels.Mesh, Key: labels.NamespaceKey, Value: pick(w.Rand, "demo", "other")},
	}
	for _, key := range []string{"app", "tier"} {
		if w.IntN(4) > 0 {
			ls = append(ls, labels.Label{Source: pick(w.Rand, labels.Kubernetes, labels.CNI), Key: key, Value: pick(w.Rand, "a", "b", "c")})
		}
	}
	return labels.New(ls...)
}

func (w world) requirement() api.Requirement {
	r := api.Requirement{
		Source:   pick(w.Rand, labels.Any, labels.Any, labels.Kubernetes, labels.CNI),
		Key:      pick(w.Rand, "app", "tier"),
		Operator: pick(w.Rand, api.In, api.In, api.In, api.NotIn, api.Exists, api.DoesNotExist),
	}
	if w.IntN(6) == 0 {
		r.Source, r.Key = labels.Mesh, labels.ClusterKey
	}
	if r.Operator == api.In || r.Operator == api.NotIn {
		for range 1 + w.IntN(2) {
			v := pick(w.Rand, "a", "b", "c")
			if r.Key == labels.ClusterKey {
				v = pick(w.Rand, "east", "west")
			}
			r.Values = append(r.Values, v)
		}
	}
	return r
}

func (w world) selector() api.Selector {
	var reqs []api.Requirement
	for range w.IntN(3) {
		reqs = append(reqs, w.requirement())
	}
	return api.NewSelector(reqs...)
}

func (w world) part() api.Part {
	p := api.Part{Direction: pick(w.Rand, datapath.Ingress, datapath.Egress), Deny: w.IntN(4) == 0, Path: fmt.Sprint(w.IntN(9))}
	switch w.IntN(6) {
	case 0:
		p.Peers.Any = true
	case 1, 2:
		for range 1 + w.IntN(2) {
			p.Peers.CIDRs = append(p.Peers.CIDRs, w.cidr())
		}
	case 3:
		p.Peers.Entities = append(p.Peers.Entities, pick(w.Rand, api.EntityWorld, api.EntityCluster, api.EntityMesh,
			api.EntityHost, api.EntityRemoteNode, api.EntityHealth, api.EntityInit))
	default:
		for range w.IntN(3) {
			p.Peers.Selectors = append(p.Peers.Selectors, w.selector())
		}
	}
	for range w.IntN(3) {
		// The parser refuses what asks prefixes for names.
		if port := w.port(); port.Name == "" || p.Direction == datapath.Ingress || len(p.Peers.CIDRs) == 0 {
			p.Ports = append(p.Ports, port)
		}
	}
	return p
}

func (w world) port() api.Port {
	p := api.Port{Protocol: pick(w.Rand, api.TCP, api.UDP)}
	switch w.IntN(4) {
	case 0:
		p.Name = pick(w.Rand, "web", "dns")
	case 1:
		p.Port = uint16(1 + w.IntN(90))
		p.End = p.Port + 1 + uint16(w.IntN(100))
		if w.IntN(4) == 0 {
			p.End = 65535
		}
	default:
		p.Port = pick[uint16](w.Rand, 0, 80, 81)
	}
	return p
}

func (w world) names() (out []NamedPort) {
	for range w.IntN(3) {
		out = append(out, NamedPort{pick(w.Rand, "web", "dns"), pick(w.Rand, api.TCP, api.UDP), pick[uint16](w.Rand, 80, 82)})
	}
	return out
}

func (w world) cidr() api.CIDR {
	all := []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.0.0.2/32", "192.0.2.0/24", "::/0", "2001:db8::/32"}
	c := api.CIDR{Prefix: netip.MustParsePrefix(pick(w.Rand, all...)), Block: w.IntN(2) == 0}
	for _, e := range all {
		if p := netip.MustParsePrefix(e); w.IntN(3) == 0 && p.Bits() > c.Prefix.Bits() && c.Prefix.Contains(p.Addr()) {
			c.Except = append(c.Except, p)
		}
	}
	return c
}

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

func (w world) object() api.Object {
	o := api.Object{Kind: api.KindRuleArray, Namespace: api.ClusterWide,
		Name: pick(w.Rand, "one", "two", "three", "four"), Source: fmt.Sprint(w.Uint64())}
	for i := range 1 + w.IntN(2) {
		r := api.Rule{Path: fmt.Sprintf("[%d]", i), Endpoints: w.selector(),
			DefaultDeny: [2]bool{w.IntN(3) > 0, w.IntN(3) > 0}}
		for range w.IntN(4) {
			r.Parts = append(r.Parts, w.part())
		}
		o.Rules = append(o.Rules, r)
	}
	return o
}

// TestEngineAgreesWithModel changes policies, identities and endpoints at
// random and compares every verdict, and the deltas with the full rule sets.
func TestEngineAgreesWithModel(t *testing.T) {
	for seed := range uint64(60) {
		scope := pick(rand.New(rand.NewPCG(seed, 9)), ScopeLocal, ScopeMesh)
		t.Run(fmt.Sprintf("seed %d %s", seed, scope), func(t *testing.T) {
			w := world{rand.New(rand.NewPCG(seed, 1))}
			e, err := New(Config{Cluster: "east", Scope: scope})
			if err != nil {
				t.Fatal(err)
			}
			m := &model{cluster: "east", scope: scope, identities: map[identity.Number]labels.Set{},
				ports: map[identity.Number][]NamedPort{}, objects: map[string]api.Object{}}
			mirror := map[uint32]datapath.RuleSet{}
			endpoints := map[string]endpoint{}
			tries := [2]trie{{}, {}}
			for step := range 40 {
				w.change(t, e, m, endpoints)
				if step%3 == 0 {
					continue // let changes pile up
				}
				follow(t, e, mirror)
				for _, c := range e.CIDRChanges() {
					tries[map[bool]int{true: 1}[c.Block]].take(c)
				}
				compare(t, e, m, endpoints, mirror, tries)
			}
			for id := range m.objects {
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

func (w world) change(t *testing.T, e *Engine, m *model, endpoints map[string]endpoint) {
	t.Helper()
	n := identity.Number(65536 + w.IntN(12))
	switch w.IntN(10) {
	case 8:
		e.DropRetired()
	case 9:
		if _, ok := m.identities[n]; ok {
			m.ports[n] = w.names()
			e.SetNamedPorts(n, m.ports[n])
		}
	case 0, 1, 2:
		ls := w.labels()
		cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
		if err := e.UpsertIdentity(n, cluster, ls); err != nil {
			t.Fatal(err)
		}
		m.identities[n] = ls
	case 3:
		e.DeleteIdentity(n)
		delete(m.identities, n)
		delete(m.ports, n)
	case 4, 5:
		o := w.object()
		e.UpsertObject(o)
		m.objects[o.ID()] = o
	case 6:
		o := w.object()
		e.DeleteObject(o.Namespace, o.Name)
		delete(m.objects, o.ID())
	case 7:
		ep := endpoint{w.labels(), w.names()}
		name := RuleSetName(ep.labels, ep.ports)
		if _, ok := endpoints[name]; ok {
			e.ReleaseRuleSet(ep.labels, ep.ports...)
			delete(endpoints, name)
			return
		}
		if _, err := e.AcquireRuleSet(ep.labels, ep.ports...); err != nil {
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

func compare(t *testing.T, e *Engine, m *model, endpoints map[string]endpoint, mirror map[uint32]datapath.RuleSet, tries [2]trie) {
	t.Helper()
	if len(mirror) != len(endpoints) {
		t.Fatalf("%d rule sets for %d sets of labels and ports", len(mirror), len(endpoints))
	}
	for _, ep := range endpoints {
		id, err := e.AcquireRuleSet(ep.labels, ep.ports...)
		if err != nil {
			t.Fatal(err)
		}
		e.ReleaseRuleSet(ep.labels, ep.ports...)
		rs, _ := e.RuleSet(id)
		if !rs.Equal(mirror[id]) {
			t.Fatalf("rule set %d: the deltas lead to\n%+v\nnot to\n%+v", id, mirror[id], rs)
		}
		for _, peer := range peers() {
			as := Peer{Identity: peer.id, Block: tries[1].lookup(peer.addr)}
			if peer.id == 0 {
				as.Identity = cmp.Or(tries[0].lookup(peer.addr), identity.World)
			}
			for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
				for _, proto := range []uint8{6, 17, 1} {
					for _, port := range []uint16{1, 63, 64, 80, 81, 82, 150, 40000} {
						got := Decide(rs, d, as, proto, port)
						if want := m.allowed(ep, d, peer, proto, port); got.Allow != want {
							t.Fatalf("%s of %s %v, peer %+v %+v (%s), %d/%d: %+v, the model says allow=%v",
								d, ep.labels, ep.ports, peer, as, m.identities[peer.id], proto, port, got, want)
						}
					}
				}
			}
		}
	}
}

func peers() (out []far) {
	for _, n := range []identity.Number{1, 2, 3, 4, 5, 6, 9, 10} {
		out = append(out, far{id: n})
	}
	for n := range identity.Number(12) {
		out = append(out, far{65536 + n, netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})})
	}
	for _, a := range []string{"10.1.2.3", "10.1.2.4", "10.1.9.9", "10.9.9.9", "192.0.2.9", "198.51.100.1", "2001:db8::1", "2001:db9::1"} {
		out = append(out, far{addr: netip.MustParseAddr(a)})
	}
	return out
}
