// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
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
	objects    map[string]api.Object
}

func (m *model) allowed(endpoint labels.Set, d datapath.Direction, peer identity.Number, proto uint8, port uint16) bool {
	if d == datapath.Ingress && peer == identity.Host {
		return true
	}
	closed, allow := false, false
	for _, o := range m.objects {
		for _, r := range o.Rules {
			if !matchAll(r.Endpoints, endpoint) {
				continue
			}
			closed = closed || r.DefaultDeny[d]
			for _, p := range r.Parts {
				if p.Direction != d || !m.isPeer(p.Peers, peer) || !onPort(p.Ports, proto, port) {
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

func onPort(ports []api.Port, proto uint8, port uint16) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p api.Port) bool {
		return p.Protocol == proto && (p.Port == 0 || p.Port == port)
	})
}

func (m *model) isPeer(p api.Peers, n identity.Number) bool {
	if p.Any {
		return true
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
	switch w.IntN(4) {
	case 0:
		p.Peers.Any = true
	case 1:
		p.Peers.Entities = append(p.Peers.Entities, pick(w.Rand, api.EntityWorld, api.EntityCluster, api.EntityMesh,
			api.EntityHost, api.EntityRemoteNode, api.EntityHealth, api.EntityInit))
	default:
		for range w.IntN(3) {
			p.Peers.Selectors = append(p.Peers.Selectors, w.selector())
		}
	}
	for range w.IntN(3) {
		p.Ports = append(p.Ports, api.Port{Protocol: pick(w.Rand, api.TCP, api.UDP), Port: pick[uint16](w.Rand, 0, 80, 81)})
	}
	return p
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
			m := &model{cluster: "east", scope: scope, identities: map[identity.Number]labels.Set{}, objects: map[string]api.Object{}}
			mirror := map[uint32]datapath.RuleSet{}
			endpoints := map[string]labels.Set{}
			for step := range 40 {
				w.change(t, e, m, endpoints)
				if step%3 == 0 {
					continue // let changes pile up
				}
				follow(t, e, mirror)
				compare(t, e, m, endpoints, mirror)
			}
		})
	}
}

func (w world) change(t *testing.T, e *Engine, m *model, endpoints map[string]labels.Set) {
	t.Helper()
	n := identity.Number(65536 + w.IntN(12))
	switch w.IntN(8) {
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
	case 4, 5:
		o := w.object()
		e.UpsertObject(o)
		m.objects[o.ID()] = o
	case 6:
		o := w.object()
		e.DeleteObject(o.Namespace, o.Name)
		delete(m.objects, o.ID())
	case 7:
		ls := w.labels()
		if _, ok := endpoints[ls.Canonical()]; ok {
			e.ReleaseRuleSet(ls)
			delete(endpoints, ls.Canonical())
			return
		}
		if _, err := e.AcquireRuleSet(ls); err != nil {
			t.Fatal(err)
		}
		endpoints[ls.Canonical()] = ls
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

func compare(t *testing.T, e *Engine, m *model, endpoints map[string]labels.Set, mirror map[uint32]datapath.RuleSet) {
	t.Helper()
	if len(mirror) != len(endpoints) {
		t.Fatalf("%d rule sets for %d label sets", len(mirror), len(endpoints))
	}
	peers := []identity.Number{1, 2, 3, 4, 5, 6, 9, 10}
	for n := range identity.Number(12) {
		peers = append(peers, 65536+n)
	}
	for _, ls := range endpoints {
		id, err := e.AcquireRuleSet(ls)
		if err != nil {
			t.Fatal(err)
		}
		e.ReleaseRuleSet(ls)
		rs, _ := e.RuleSet(id)
		if !rs.Equal(mirror[id]) {
			t.Fatalf("rule set %d: the deltas lead to\n%+v\nnot to\n%+v", id, mirror[id], rs)
		}
		for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
			for _, peer := range peers {
				for _, proto := range []uint8{6, 17, 1} {
					for _, port := range []uint16{80, 81, 82} {
						got := Decide(rs, d, peer, proto, port)
						if want := m.allowed(ls, d, peer, proto, port); got.Allow != want {
							t.Fatalf("%s of %s, peer %d (%s), %d/%d: %+v, the model says allow=%v",
								d, ls, peer, m.identities[peer], proto, port, got, want)
						}
					}
				}
			}
		}
	}
}
