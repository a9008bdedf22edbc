// SPDX-License-Identifier: Apache-2.0

// Package api is the policy languages that Hawser accepts, read into one form:
// objects with rules, whose selectors have their namespaces and aliases worked
// out.
//
// Accepted are NetworkPolicy (networking.k8s.io/v1), CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy
// (cilium.io/v2), MeshPolicy (hawser.io/v1, the same schema), and the JSON array
// of rules. Start with Parse. A field that is not supported is refused by its
// path; nothing is ignored, except what a Kubernetes API server adds to an
// object by itself.
//
// Which identities a selector means in which cluster is package policy's.
package api

import (
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
)

// ClusterWide is the namespace of objects that belong to no namespace.
const ClusterWide = "_"

// Kinds of object.
const (
	KindKubernetesPolicy  = "NetworkPolicy"
	KindNetworkPolicy     = "CiliumNetworkPolicy"
	KindClusterwidePolicy = "CiliumClusterwideNetworkPolicy"
	KindMeshPolicy        = "MeshPolicy"
	KindRuleArray         = "RuleArray"
)

// Object is one policy object.
type Object struct {
	Kind      string
	Namespace string // ClusterWide for those without
	Name      string
	// Source is the object's own text: Parse of it gives this object again.
	Source string
	Rules  []Rule
}

// ID is namespace/name.
func (o Object) ID() string { return o.Namespace + "/" + o.Name }

// Selects are the endpoint selectors of all rules as text, for listings.
func (o Object) Selects() []string {
	var out []string
	for _, r := range o.Rules {
		if s := r.Endpoints.String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// MeansKubeAPIServer reports whether a peer of a rule contains the entity
// kube-apiserver.
func (o Object) MeansKubeAPIServer() bool {
	return slices.ContainsFunc(o.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.Parts, func(p Part) bool { return p.Peers.MeanKubeAPIServer() })
	})
}

// Rule is what one selector's endpoints may do and have done to them.
type Rule struct {
	// Path of the rule in its object: "spec", "specs[0]", "[2]".
	Path        string
	Description string
	// Endpoints selects local endpoints, of all namespaces unless the selector
	// names one.
	Endpoints Selector
	Parts     []Part
	// DefaultDeny says in which directions the rule ends the default of
	// allowing everything; indexed by datapath.Direction.
	DefaultDeny [2]bool
}

// Part is one item of ingress, egress, ingressDeny or egressDeny. It concerns
// packets of any of its peers on any of its ports.
type Part struct {
	Path      string // as in "ingress[0]"
	Direction datapath.Direction
	Deny      bool
	Peers     Peers
	// NoPeers says that peers are listed and that all the lists are empty.
	NoPeers bool
	// Ports is empty for all ports of all protocols.
	Ports []Port
}

// Peers are the far sides of a part. All fields empty means no peer at all.
type Peers struct {
	Any       bool // every peer, in the mesh or not
	Selectors []Selector
	Entities  []Entity
	CIDRs     []CIDR
	// Services are namespace/name of services whose backends are meant.
	Services []string
}

// MeanKubeAPIServer reports whether the cluster's Kubernetes API servers are among
// them by an entity: as in Cilium, the cluster contains its own.
func (p Peers) MeanKubeAPIServer() bool {
	return slices.ContainsFunc(p.Entities, func(e Entity) bool {
		return e == EntityKubeAPIServer || e == EntityCluster || e == EntityMesh
	})
}

// Nobody reports whether there is no peer at all.
func (p Peers) Nobody() bool {
	return !p.Any && len(p.Selectors)+len(p.Entities)+len(p.CIDRs)+len(p.Services) == 0
}

// CIDR is a prefix without some prefixes inside it.
type CIDR struct {
	Prefix netip.Prefix
	Except []netip.Prefix // sorted
	// Block makes it an ipBlock, which concerns every address in it. Others
	// concern only addresses outside the mesh.
	Block bool
}

// String is "10.0.0.0/8 except 10.1.0.0/16".
func (c CIDR) String() string {
	text := c.Prefix.String()
	for i, p := range c.Except {
		text += [...]string{" except ", ", "}[min(i, 1)] + p.String()
	}
	return text
}

// Entity is a peer known by a name instead of labels.
type Entity string

// Entities that are supported.
const (
	EntityAll        Entity = "all"
	EntityNone       Entity = "none"
	EntityWorld      Entity = "world"
	EntityCluster    Entity = "cluster"
	EntityMesh       Entity = "mesh"
	EntityHost       Entity = "host"
	EntityRemoteNode Entity = "remote-node"
	EntityHealth     Entity = "health"
	EntityInit       Entity = "init"
	// EntityKubeAPIServer are the addresses of the cluster's Kubernetes API servers,
	// whatever else is known of who has them.
	EntityKubeAPIServer Entity = "kube-apiserver"
)

// Port is a port of a protocol, or a range of ports, or a port by its name. All
// zero but Protocol is every port of the protocol.
type Port struct {
	Protocol uint8 // an IP protocol number
	Port     uint16
	// End is the last port of a range, 0 when there is one port only.
	End uint16
	// Name is a port's name instead of its number. Which number it means is for
	// the endpoint that is connected to to say.
	Name string
}

// Protocols that a Port may have.
const (
	ICMP   uint8 = 1
	TCP    uint8 = 6
	UDP    uint8 = 17
	ICMPv6 uint8 = 58
	SCTP   uint8 = 132
)

// ICMPPort is what stands for an ICMP type where others have a port. It is not
// 0 for type 0, which would be every type.
func ICMPPort(icmpType uint8) uint16 { return 1<<8 | uint16(icmpType) }
