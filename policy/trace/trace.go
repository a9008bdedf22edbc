// SPDX-License-Identifier: Apache-2.0

// Package trace answers whether one end may open a connection to another, and
// why, from policy objects and the two ends alone.
//
// Start with Run. It asks the engine of package policy, so that its answer is
// what a node would do. Finding out who a name means is the caller's.
package trace

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// End is one end of a connection: a workload, which has labels with a cluster; a
// reserved identity; or, with neither, an address outside the mesh.
type End struct {
	Name     string
	Labels   labels.Set
	Reserved identity.Number
	Addr     netip.Addr // may be unknown (zero) but for addresses outside
	// Ports are its names for them; PortsKnown that these are all.
	Ports      []policy.NamedPort
	PortsKnown bool
}

// Service is who serves a service: by address, and by labels for who has no
// known address.
type Service struct {
	Name   string // namespace/name
	Addrs  []netip.Addr
	Labels []labels.Set
}

func (e End) cluster() string {
	c, _ := e.Labels.Get(labels.Mesh, labels.ClusterKey)
	return c
}

// Question is what to ask.
type Question struct {
	Cluster  string // whose objects they are
	Scope    policy.Scope
	Mode     policy.Mode
	Audit    bool // the node has what policy denies reported only
	Objects  []api.Object
	Services []Service
	// KubeAPIServers are the prefixes that rules call kube-apiserver.
	KubeAPIServers []netip.Prefix
	Src, Dst       End
	Protocol       uint8
	Port           uint16 // for ICMP api.ICMPPort
}

// Verdict is the answer of one end's policies.
type Verdict struct {
	Direction datapath.Direction
	At        string
	// Asked is false when the end's policies are not known here: it belongs to
	// another cluster.
	Asked   bool
	Allowed bool
	// Audited says of a deny that it is reported only: it passes.
	Audited bool
	Reason  string
	// Hints say, for a deny, what comes closest and what would change it, and for
	// any answer what was not taken into account.
	Hints []string
}

// Run answers for both directions, the source's first.
func Run(q Question) ([]Verdict, error) {
	out, err := q.Egress()
	if err != nil {
		return nil, err
	}
	in, err := q.Ingress()
	if err != nil {
		return nil, err
	}
	return []Verdict{out, in}, nil
}

// Egress is the answer of the source's policies.
func (q Question) Egress() (Verdict, error) { return q.judge(datapath.Egress, q.Src, q.Dst) }

// Ingress is the answer of the destination's policies.
func (q Question) Ingress() (Verdict, error) { return q.judge(datapath.Ingress, q.Dst, q.Src) }

// Numbers of the two ends while they are looked at.
const (
	selfNumber identity.Number = identity.MaxReserved + 1 + iota
	peerNumber
)

func (q Question) judge(d datapath.Direction, self, peer End) (Verdict, error) {
	v := Verdict{Direction: d, At: self.Name, Asked: true, Allowed: true}
	switch {
	case self.cluster() == "":
		v.Reason = "not a workload of the mesh: no policy of the mesh concerns it"
		return v, nil
	case self.cluster() != q.Cluster:
		v.Asked, v.Allowed = false, false
		v.Reason = fmt.Sprintf("not asked: its policies are those of cluster %s", self.cluster())
		return v, nil
	}
	a, err := q.ask(q.Scope, d, self, peer)
	if err != nil {
		return v, err
	}
	v.Allowed, v.Audited = a.decision.Allow, q.Audit && !a.decision.Allow
	v.Reason = a.reason(d)
	if !v.Allowed {
		v.Hints, err = q.hints(a, d, self, peer)
	}
	v.Hints = append(v.Hints, q.unknowns(a, d, peer)...)
	return v, err
}

// answer is a decision with what it came from.
type answer struct {
	never    bool // nothing is enforced
	engine   *policy.Engine
	set      datapath.RuleSet
	peer     policy.Peer
	decision policy.Decision
}

func (q Question) ask(scope policy.Scope, d datapath.Direction, self, peer End) (answer, error) {
	e, err := policy.New(policy.Config{Cluster: q.Cluster, Scope: scope, Mode: q.Mode})
	if err != nil {
		return answer{}, err
	}
	e.SetKubeAPIServers(q.KubeAPIServers)
	for _, o := range q.Objects {
		e.UpsertObject(o)
	}
	for n, end := range map[identity.Number]End{selfNumber: self, peerNumber: peer} {
		if end.cluster() == "" {
			continue
		}
		if err := e.UpsertIdentity(n, end.cluster(), end.Labels); err != nil {
			return answer{}, fmt.Errorf("%s: %w", end.Name, err)
		}
	}
	e.SetNamedPorts(peerNumber, peer.Ports)
	if peer.Addr.IsValid() {
		e.SetAddressPorts(peer.cluster(), peer.Addr, peer.Ports)
	}
	q.tellServices(e, peer)
	id, err := e.AcquireRuleSet(self.Labels, self.Ports...)
	if err != nil {
		return answer{}, err
	}
	e.Changes()
	a := answer{never: q.Mode == policy.ModeNever, engine: e, peer: peerAmong(e.CIDRChanges(), peer)}
	a.set, _ = e.RuleSet(id)
	a.decision = policy.Decide(a.set, d, a.peer, q.Protocol, q.Port)
	if d == datapath.Ingress && peer.Reserved == identity.Host {
		a.decision = policy.Decision{Allow: true, Default: true}
	}
	return a, nil
}

// tellServices tells the engine whether the peer serves any service.
func (q Question) tellServices(e *policy.Engine, peer End) {
	for _, s := range q.Services {
		has := peer.Addr.IsValid() && slices.Contains(s.Addrs, peer.Addr)
		switch {
		case peer.cluster() != "" && (has || slices.ContainsFunc(s.Labels, peer.Labels.Equal)):
			e.SetService(s.Name, []identity.Number{peerNumber}, nil)
		case has && peer.Reserved != 0 && peer.Reserved != identity.World:
			e.SetService(s.Name, []identity.Number{peer.Reserved}, nil)
		case has:
			e.SetService(s.Name, nil, []netip.Addr{peer.Addr})
		}
	}
}

// peerAmong is who the kernel would take an end for, given the prefixes in use.
func peerAmong(cidrs []policy.CIDR, end End) policy.Peer {
	p := policy.Peer{Identity: identity.World}
	longest := [2]int{-1, -1}
	for _, c := range cidrs {
		space := 0
		if c.Block {
			space = 1
		}
		if !end.Addr.IsValid() || !c.Prefix.Contains(end.Addr) || c.Prefix.Bits() <= longest[space] {
			continue
		}
		longest[space] = c.Prefix.Bits()
		if c.Block {
			p.Block = c.Number
		} else {
			p.Identity = c.Number
		}
	}
	switch {
	case end.cluster() != "":
		p.Identity = peerNumber
	case end.Reserved != 0 && end.Reserved != identity.World:
		p.Identity = end.Reserved
	}
	return p
}

func (a answer) enforced(d datapath.Direction) bool {
	return d == datapath.Egress && a.set.Egress || d == datapath.Ingress && a.set.Ingress
}

func (a answer) reason(d datapath.Direction) string {
	origin := a.engine.Origin(a.decision.Origin)
	switch {
	case a.never:
		return "policy is enforced nowhere on its node (--policy-enforcement=never)"
	case !a.enforced(d):
		return fmt.Sprintf("no policy selects it for %s", d)
	case a.decision.Default && a.decision.Allow:
		return "a node always reaches its own endpoints"
	case a.decision.Default:
		return a.engine.DenyOrigin(a.set.ID, d)
	case origin == "":
		return "only denies are enforced, and none is met"
	}
	return "by " + origin
}

// unknowns says what the answer does not take into account.
func (q Question) unknowns(a answer, d datapath.Direction, peer End) (out []string) {
	names, blocks, apiServers := false, false, false
	selecting := map[string]bool{}
	for _, id := range a.engine.Selecting(a.set.ID) {
		selecting[id] = true
	}
	for _, o := range q.Objects {
		for _, r := range o.Rules {
			for _, p := range r.Parts {
				if p.Direction != d || !selecting[o.ID()] {
					continue
				}
				for _, port := range p.Ports {
					names = names || port.Name != "" && !q.Dst.PortsKnown
				}
				for _, c := range p.Peers.CIDRs {
					blocks = blocks || c.Block
				}
				apiServers = apiServers || p.Peers.MeanKubeAPIServer() && len(q.KubeAPIServers) > 0
			}
		}
	}
	if names {
		out = append(out, "ports by name were not looked up: which numbers they have is known on the nodes only")
	}
	if blocks && !peer.Addr.IsValid() {
		out = append(out, "ipBlocks were not looked up: "+peer.Name+" has no address here")
	}
	if apiServers && !peer.Addr.IsValid() {
		out = append(out, "kube-apiserver was not looked up: "+peer.Name+" has no address here")
	}
	return out
}

// ServicesOf are the services that objects name, sorted.
func ServicesOf(objects []api.Object) []string {
	names := map[string]struct{}{}
	for _, o := range objects {
		for _, r := range o.Rules {
			for _, p := range r.Parts {
				for _, name := range p.Peers.Services {
					names[name] = struct{}{}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
