// SPDX-License-Identifier: Apache-2.0

// Package datapath is the desired state of a node's kernel, as plain rows: what
// the endpoints, nodes, addresses, rule sets and services of this node should
// be. The rows know neither the keyspace nor the kernel's layouts.
//
// datapath/maps turns rows into map entries, datapath/loader loads and attaches
// the programs, datapath/reconcile keeps the kernel equal to the tables.
package datapath

import (
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/table"
)

// Tables are all desired state of a node. The agent fills them; nothing else
// writes them.
type Tables struct {
	Endpoints  *table.Table[uint16, Endpoint]
	Nodes      *table.Table[netip.Addr, Node] // by tunnel address
	IPCache    *table.Table[IPKey, IPEntry]
	Identities *table.Table[identity.Number, Identity]
	RuleSets   *table.Table[uint32, RuleSet]
	Frontends  *table.Table[FrontendKey, Frontend]
}

// NewTables returns empty tables.
func NewTables() *Tables {
	return &Tables{
		Endpoints:  table.New[uint16]("endpoints", Endpoint.Equal),
		Nodes:      table.New[netip.Addr]("nodes", func(a, b Node) bool { return a == b }),
		IPCache:    table.New[IPKey]("ipcache", func(a, b IPEntry) bool { return a == b }),
		Identities: table.New[identity.Number]("identities", func(a, b Identity) bool { return a == b }),
		RuleSets:   table.New[uint32]("rulesets", RuleSet.Equal),
		Frontends:  table.New[FrontendKey]("frontends", Frontend.Equal),
	}
}

// Endpoint is a workload on this node.
type Endpoint struct {
	ID      uint16 // node-local, 1–65535, the table's key
	Device  string // host-side device
	IfIndex uint32 // of Device
	HostMAC [6]byte
	PodMAC  [6]byte
	// Addrs are the only sources it may use: at most one IPv4 and any IPv6; the
	// first IPv6 address is the one that a pod serving itself answers to.
	Addrs    []netip.Addr
	Identity identity.Number
	// RuleSet is a key of Tables.RuleSets. 0 is the rule set that enforces
	// nothing; InitRuleSet denies everything but the host.
	RuleSet uint32
}

// Rule sets with a fixed meaning; others are allocated by the agent.
const (
	OpenRuleSet uint32 = 0
	InitRuleSet uint32 = 1
	// FirstRuleSet is the first number to allocate.
	FirstRuleSet uint32 = 2
)

// Equal reports whether two rows are the same.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.ID == o.ID && e.Device == o.Device && e.IfIndex == o.IfIndex &&
		e.HostMAC == o.HostMAC && e.PodMAC == o.PodMAC &&
		slices.Equal(e.Addrs, o.Addrs) && e.Identity == o.Identity && e.RuleSet == o.RuleSet
}

// MAC is a hardware address as net prints it.
func MAC(m [6]byte) net.HardwareAddr { return net.HardwareAddr(m[:]) }

// Node is a node of the mesh other than this one: a sender that may be believed
// and a tunnel endpoint to send to.
type Node struct {
	Tunnel    netip.Addr // the table's key
	ClusterID uint32
	Cluster   string
	Name      string
	MTU       uint32 // of its underlay or of the way there, the smaller, bytes; 0 is unknown
	// VNI and MAC are of the headers that an endpoint with ExternalCluster sends
	// and wants to get; other rows have none.
	VNI uint32
	MAC [6]byte
}

// ExternalCluster is the ClusterID of tunnel endpoints that an operator declared:
// what comes from them is of the outside, whatever its VNI.
const ExternalCluster uint32 = 1<<32 - 1

// BlockSpace is the cluster of an IPKey that tells not who has a prefix but
// which ipBlocks it is in.
const BlockSpace uint32 = 1<<32 - 1

// IPKey is a prefix with the cluster in whose address space it lies; cluster 0
// is the mesh's common space.
type IPKey struct {
	ClusterID uint32
	Prefix    netip.Prefix
}

// IPEntry says who has a prefix and where it is.
type IPEntry struct {
	Identity identity.Number // 0: unknown yet (a node's pod CIDR)
	// Tunnel is the address of the node to send to; the zero Addr means on
	// this node or outside the mesh.
	Tunnel netip.Addr
	Flags  IPFlags
}

// IPFlags qualify an IPEntry.
type IPFlags uint8

const (
	// IPHost marks this node's own addresses.
	IPHost IPFlags = 1 << iota
	// IPRemoteNode marks the addresses of other nodes.
	IPRemoteNode
	// IPCIDR marks a prefix known only as a pod CIDR: a sender's claim to an
	// address in it is believed, its identity is not known from it.
	IPCIDR
	// IPWithheld marks, in the kernel only, a prefix whose identity is hidden
	// because a narrower one found no room, or an address or prefix whose identity
	// the rule sets do not know yet: it is unknown, and not world.
	IPWithheld
	// IPLocal marks, beside IPHost, an address of this node that other nodes do
	// not know: nothing from the tunnel is for it.
	IPLocal
)

// Identity is an identity whose labels this node knows. A packet from the
// tunnel with any other number is "identity unknown yet".
type Identity struct {
	Number    identity.Number
	ClusterID uint32 // 0 for reserved numbers
}

// Direction of a verdict, as seen from the endpoint.
type Direction uint8

// Directions.
const (
	Ingress Direction = 0
	Egress  Direction = 1
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// RuleSet is the resolved policy of all endpoints with equal labels. The first
// entry that matches decides, in the order of probes: (identity, proto, port),
// (identity, proto, ranges from narrow to wide), (identity, proto, any),
// (identity, any, any), and the same for any identity. The resolver has already
// worked out precedence.
//
// A rule set with entries for ipBlocks (identity.Number.IsBlock) is asked twice,
// the second time with the block's identity of the peer's address, from
// IPCache's BlockSpace: a deny found either way decides, then an allow.
type RuleSet struct {
	ID      uint32
	Ingress bool // default deny for ingress
	Egress  bool // default deny for egress
	// Audit has what would be denied reported instead of dropped.
	Audit   bool
	Entries map[PolicyKey]PolicyEntry
}

// PolicyKey is what an entry matches. Zero fields match anything; a port needs
// a protocol.
type PolicyKey struct {
	Direction Direction
	Identity  identity.Number
	Protocol  uint8
	// Port is a port; or the first of a range of 1<<PortWild ports, a multiple
	// of its size; or, for ICMP, 256 and the type.
	Port uint16
	// PortWild is how many low bits of the port match anything: an even number
	// to MaxPortWild.
	PortWild uint8
}

// MaxPortWild bounds PolicyKey.PortWild; wider is any port.
const MaxPortWild = 14

// PolicyEntry is the verdict of an entry.
type PolicyEntry struct {
	Deny bool
	// Origin numbers the rule behind the entry in the agent's list of origins;
	// it comes back in events. 0 is none.
	Origin uint32
}

// Equal reports whether two rule sets are the same.
func (r RuleSet) Equal(o RuleSet) bool {
	return r.ID == o.ID && r.Ingress == o.Ingress && r.Egress == o.Egress && r.Audit == o.Audit &&
		maps.Equal(r.Entries, o.Entries)
}

// FrontendKey is an address that the load balancer answers for.
type FrontendKey struct {
	Addr     netip.Addr
	Port     uint16
	Protocol uint8
}

// Frontend is a service port with the backends that take new connections.
type Frontend struct {
	Service  uint32 // global service id
	Backends []Backend
	// Affinity is for how many seconds after its last new flow a client stays
	// with its backend; 0: it need not.
	Affinity uint32
	// Keeping are backends that keep their flows and take no new ones.
	Keeping []Backend
}

// Has reports whether an address is a backend, also of old flows only.
func (f Frontend) Has(addr netip.Addr, port uint16) bool {
	is := func(b Backend) bool { return b.Addr == addr && b.Port == port }
	return slices.ContainsFunc(f.Backends, is) || slices.ContainsFunc(f.Keeping, is)
}

// Backend is one address that serves a frontend.
type Backend struct {
	Addr      netip.Addr
	Port      uint16
	ClusterID uint32
}

// Equal reports whether two rows are the same.
func (f Frontend) Equal(o Frontend) bool {
	return f.Service == o.Service && f.Affinity == o.Affinity && slices.Equal(f.Backends, o.Backends) && slices.Equal(f.Keeping, o.Keeping)
}

// Event is a decoded event of the programs: a drop, or a verdict of a new flow.
type Event struct {
	Type        EventType
	Reason      DropReason
	Program     string // from_pod, from_overlay, from_host
	Direction   Direction
	Protocol    uint8
	Source      netip.AddrPort
	Destination netip.AddrPort
	SourceID    identity.Number
	DestID      identity.Number
	Endpoint    uint16 // whose policy decided; 0 is none
	RuleSet     uint32
	Origin      uint32 // PolicyEntry.Origin; 0 is the default deny
	Length      uint32
	TCPFlags    uint8
	ICMPType    uint8
	ICMPCode    uint8
	Outer       netip.Addr // outer source of a tunnelled packet
	Suppressed  uint64
	Line        uint32
}

// EventType says what an Event tells.
type EventType uint8

// Event types.
const (
	EventDrop EventType = iota + 1
	// EventVerdict is of a packet that passed; Reason says what an audited
	// endpoint's policy would have dropped it for.
	EventVerdict
	EventTrace
)

// DropReason is a reason of bpf/lib/drop.h, positive. datapath/maps has the
// names.
type DropReason uint8
