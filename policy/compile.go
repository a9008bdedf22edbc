// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// object is a policy object in use.
type object struct {
	spec  api.Object
	rules []*rule
	names *asker // nil: it asks for none
}

// rule is one rule and the rule sets whose endpoints it selects.
type rule struct {
	object   string // namespace/name
	spec     api.Rule
	parts    []*part
	ruleSets map[*ruleSet]struct{}
}

// part is one item of a rule, with its peers as shared selectors.
type part struct {
	dir       int
	any       bool
	deny      bool
	selectors []*selector
	nets      []*net      // prefixes that are its peers
	prefixes  []prefixKey // that it uses
	services  []string    // that it names
	origin    uint32
	verdicts  []verdict // for ports by number
	named     []namedPort
}

// namedPort is a port by its name.
type namedPort struct {
	name  string
	proto uint8
}

// compile resolves an object's peers. Every part holds its selectors until
// removeObject.
func (e *Engine) compile(o api.Object) *object {
	out := &object{spec: o}
	for _, spec := range o.Rules {
		r := &rule{object: o.ID(), spec: spec, ruleSets: map[*ruleSet]struct{}{}}
		for _, p := range spec.Parts {
			text := o.ID() + " "
			if len(o.Rules) > 1 {
				text += spec.Path + "."
			}
			r.parts = append(r.parts, e.compilePart(p, text+p.Path))
			if last := r.parts[len(r.parts)-1]; last.any && last.dir == int(datapath.Egress) && len(last.named) > 0 {
				r.parts = append(r.parts, e.namedEgress(last, text+p.Path))
			}
		}
		out.rules = append(out.rules, r)
	}
	out.names = e.startAsking(out)
	return out
}

func (e *Engine) compilePart(spec api.Part, origin string) *part {
	p := &part{dir: int(spec.Direction), any: spec.Peers.Any, deny: spec.Deny, origin: e.origins.acquire(origin)}
	ports := spec.Ports
	if len(ports) == 0 {
		ports = []api.Port{{}}
	}
	for _, port := range ports {
		if port.Name != "" {
			p.named = append(p.named, namedPort{port.Name, port.Protocol})
			continue
		}
		for _, c := range cellsOf(port) {
			p.verdicts = append(p.verdicts, verdict{cell: c, deny: spec.Deny, origin: p.origin})
		}
	}
	p.verdicts = slices.Clip(unique(p.verdicts))
	e.compilePeers(p, spec.Peers)
	return p
}

// namedEgress is what a part says about ports by their name when its peers are
// any: only workloads have names for ports, each its own.
func (e *Engine) namedEgress(p *part, origin string) *part {
	all := api.NewSelector(api.Requirement{Source: labels.Mesh, Key: labels.ClusterKey, Operator: api.Exists})
	out := &part{dir: p.dir, deny: p.deny, named: p.named, origin: e.origins.acquire(origin),
		selectors: []*selector{e.useSelector(all)}}
	p.named = nil
	return out
}

func (e *Engine) compilePeers(p *part, peers api.Peers) {
	seen := map[*selector]struct{}{}
	use := func(sel api.Selector) {
		s := e.useSelector(sel)
		if _, twice := seen[s]; twice {
			e.unuseSelector(s)
			return
		}
		seen[s] = struct{}{}
		p.selectors = append(p.selectors, s)
	}
	for _, sel := range peers.Selectors {
		use(e.scoped(sel))
	}
	for _, entity := range peers.Entities {
		for _, sel := range e.entity(entity) {
			use(sel)
		}
	}
	for _, name := range peers.Services {
		e.useService(name)
		p.services = append(p.services, name)
		for _, sel := range serviceSelectors(name, p.deny) {
			use(sel)
		}
	}
	for _, c := range e.cidrs(peers) {
		for _, k := range prefixKeys(c) {
			e.usePrefix(k)
			p.prefixes = append(p.prefixes, k)
		}
		p.nets = append(p.nets, newNet(c, p.origin))
	}
}

// cidrs are the prefixes of peers. API servers are known by their addresses alone,
// which may be those of nodes or workloads: prefixes as of ipBlocks.
func (e *Engine) cidrs(peers api.Peers) []api.CIDR {
	out := peers.CIDRs
	if peers.MeanKubeAPIServer() {
		out = slices.Clone(out)
		for _, p := range e.apiServers {
			out = append(out, api.CIDR{Prefix: p, Block: true})
		}
	}
	return out
}

// scoped is what a peer selector means here. Every result demands a cluster, so
// that no selector, however it is negated, selects a reserved identity.
func (e *Engine) scoped(sel api.Selector) api.Selector {
	r := api.Requirement{Source: labels.Mesh, Key: labels.ClusterKey, Operator: api.Exists}
	if e.scope == ScopeLocal && !sel.Names(labels.Mesh, labels.ClusterKey) {
		r.Operator, r.Values = api.In, []string{e.cluster}
	}
	return sel.With(r)
}

// entity is an entity as selectors, any of which may match.
func (e *Engine) entity(name api.Entity) []api.Selector {
	own := api.NewSelector(api.Requirement{Source: labels.Mesh, Key: labels.ClusterKey,
		Operator: api.In, Values: []string{e.cluster}})
	nodes := []api.Selector{reservedSelector(identity.Host), reservedSelector(identity.RemoteNode),
		reservedSelector(identity.Health), reservedSelector(identity.Init)}
	switch name {
	case api.EntityWorld:
		return []api.Selector{reservedSelector(identity.World),
			reservedSelector(identity.WorldIPv4), reservedSelector(identity.WorldIPv6)}
	case api.EntityCluster:
		return append(nodes, own)
	case api.EntityMesh:
		return append(nodes, api.NewSelector(api.Requirement{Source: labels.Mesh,
			Key: labels.ClusterKey, Operator: api.Exists}))
	case api.EntityHost:
		return nodes[0:1]
	case api.EntityRemoteNode:
		return nodes[1:2]
	case api.EntityHealth:
		return nodes[2:3]
	case api.EntityInit:
		return nodes[3:4]
	}
	return nil // none; all is Peers.Any, kube-apiserver is by address
}

func reservedSelector(n identity.Number) api.Selector {
	name, _ := n.Reserved()
	return api.NewSelector(api.Requirement{Source: labels.Reserved, Key: name,
		Operator: api.In, Values: []string{""}})
}
