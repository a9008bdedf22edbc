// SPDX-License-Identifier: Apache-2.0

// Package policymodel judges packets straight from the rules of policy objects,
// one packet at a time and as obviously as possible, and makes random policies,
// identities and packets to judge. The engine (policy) and the programs
// (test/bpf) are compared with it.
//
// Start with Model.Allowed. It shares no code with the engine beyond what a
// single requirement of a selector matches.
package policymodel

import (
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// NamedPort is a port that a workload has a name for.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// Served is who serves a service: identities, and addresses outside the mesh.
type Served struct {
	IDs     []identity.Number
	Outside []netip.Addr
}

// Model is everything that a verdict depends on.
type Model struct {
	Cluster    string
	Mesh       bool // a selector that names no cluster means every cluster
	Identities map[identity.Number]labels.Set
	Ports      map[identity.Number][]NamedPort
	AddrPorts  map[netip.Addr][]NamedPort // of the workload at an address
	Objects    map[string]api.Object
	Services   map[string]Served
	APIServers []netip.Prefix
}

// New makes a Model that knows the reserved identities.
func New(cluster string, mesh bool) *Model {
	return &Model{Cluster: cluster, Mesh: mesh, Identities: map[identity.Number]labels.Set{},
		Ports: map[identity.Number][]NamedPort{}, AddrPorts: map[netip.Addr][]NamedPort{},
		Objects: map[string]api.Object{}, Services: map[string]Served{}}
}

// Endpoint is whose policies are asked.
type Endpoint struct {
	Labels labels.Set
	Ports  []NamedPort
}

// Far is the other side of a packet. Outside the mesh it has an address only.
type Far struct {
	ID   identity.Number
	Addr netip.Addr
}

// Allowed is the verdict of an endpoint's policies on a packet to or from a peer.
func (m *Model) Allowed(ep Endpoint, d datapath.Direction, peer Far, proto uint8, port uint16) bool {
	if proto == api.ICMP && port == api.ICMPPort(0) || proto == api.ICMPv6 && port == api.ICMPPort(129) {
		return false // an echo reply opens no flow
	}
	if d == datapath.Ingress && peer.ID == identity.Host {
		return true
	}
	names, there := ep.Ports, ep.Ports
	if d == datapath.Egress {
		names, there = m.Ports[peer.ID], m.AddrPorts[peer.Addr]
	}
	closed, allow := false, false
	for _, o := range m.Objects {
		for _, r := range o.Rules {
			if !matchAll(r.Endpoints, ep.Labels) {
				continue
			}
			closed = closed || r.DefaultDeny[d]
			for _, p := range r.Parts {
				who := m.isPeer(p, peer) && onPort(p.Ports, names, proto, port)
				where := m.inBlock(p, peer) && onPort(p.Ports, there, proto, port)
				if p.Direction != d || !who && !where {
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

func (m *Model) inBlock(part api.Part, peer Far) bool {
	means := func(e api.Entity) bool { return slices.Contains(part.Peers.Entities, e) }
	if (means(api.EntityKubeAPIServer) || means(api.EntityCluster) || means(api.EntityMesh)) &&
		slices.ContainsFunc(m.APIServers, func(p netip.Prefix) bool { return p.Contains(peer.Addr) }) {
		return true
	}
	return slices.ContainsFunc(part.Peers.CIDRs, func(c api.CIDR) bool { return c.Block && inCIDR(c, peer.Addr) })
}

// isPeer reports whether a peer is one of a part's, by what it is or, outside the
// mesh, where; inBlock is about where it is.
func (m *Model) isPeer(part api.Part, peer Far) bool {
	p := part.Peers
	if p.Any {
		return true
	}
	for _, c := range p.CIDRs {
		if inCIDR(c, peer.Addr) && !c.Block && peer.ID == 0 {
			return true
		}
	}
	for _, name := range p.Services {
		if m.serves(name, peer, part.Deny) {
			return true
		}
	}
	n := peer.ID
	if n == 0 {
		n = identity.World
	}
	ls, workload := m.Identities[n]
	cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
	for _, s := range p.Selectors {
		local := !m.Mesh && !s.Names(labels.Mesh, labels.ClusterKey)
		if workload && matchAll(s, ls) && (!local || cluster == m.Cluster) {
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
			if node || workload && cluster == m.Cluster {
				return true
			}
		case api.EntityMesh:
			if node || workload {
				return true
			}
		case api.EntityKubeAPIServer: // by address
		default:
			if name, ok := n.Reserved(); ok && name == string(e) {
				return true
			}
		}
	}
	return false
}

// serves reports whether a rule that names a service means a peer. A node's
// identity stands for all nodes: only a deny means it.
func (m *Model) serves(name string, peer Far, deny bool) bool {
	if peer.ID == 0 {
		return slices.Contains(m.Services[name].Outside, peer.Addr)
	}
	_, reserved := peer.ID.Reserved()
	_, known := m.Identities[peer.ID]
	return slices.Contains(m.Services[name].IDs, peer.ID) && (known || reserved && deny)
}
