// SPDX-License-Identifier: Apache-2.0

// Package maps is what lies in the kernel's maps: Go mirrors of the layouts in
// bpf/lib (a test compares them with the objects' BTF), conversions from the
// rows of package datapath, names of drop reasons, and readers of events,
// metrics and map facts.
//
// Start with layout.go. Deciding what should be in a map is datapath/reconcile's
// job, opening maps datapath/loader's.
package maps

import (
	"encoding/binary"
	"net/netip"
)

// Addr is an address as in map keys; IPv4 is mapped (::ffff:a.b.c.d).
type Addr [16]byte

// AddrFrom converts an address.
func AddrFrom(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return a.As16()
}

// Netip converts back; the zero Addr is the invalid address.
func (a Addr) Netip() netip.Addr {
	if a == (Addr{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a).Unmap()
}

// Port is a port in wire order.
type Port [2]byte

// PortFrom converts a port.
func PortFrom(p uint16) (out Port) {
	binary.BigEndian.PutUint16(out[:], p)
	return out
}

// Uint16 is the port's number.
func (p Port) Uint16() uint16 { return binary.BigEndian.Uint16(p[:]) }

// IPKey is struct ip_key: an address in a cluster's address space.
type IPKey struct {
	Addr    Addr
	Cluster uint32
}

// IPPrefix is struct ip_prefix, the key of the prefix trie.
type IPPrefix struct {
	Bits    uint32 // of what follows
	Cluster uint32
	Addr    Addr
}

// IPEntry is struct ip_entry.
type IPEntry struct {
	Identity uint32
	Node     uint32 // node id, 0: here or outside the mesh
	Flags    uint8
	_        [3]uint8
}

// Node is struct node.
type Node struct {
	Addr    Addr
	Cluster uint32
	MTU     uint32
}

// VTEP is struct vtep.
type VTEP struct {
	VNI uint32
	MAC [6]byte
	_   [2]byte
}

// Endpoint is struct endpoint.
type Endpoint struct {
	Addr     Addr
	IfIndex  uint32
	Identity uint32
	RuleSet  uint32
	ID       uint16
	Flags    uint16
	HostMAC  [6]byte
	PodMAC   [6]byte
	Cluster  uint32
	Addr6    Addr // its first IPv6 address; zero: none
}

// PolicyKey is struct policy_key.
type PolicyKey struct {
	RuleSet   uint32
	Identity  uint32
	Port      Port
	Protocol  uint8
	Direction uint8
}

// PolicyEntry is struct policy_entry.
type PolicyEntry struct {
	Origin uint32
	Deny   uint8
	_      [3]uint8
	// Hits counts the judgements that the entry decided: the first packet of
	// each flow, one more at each change of policy, every packet that it denies.
	Hits uint64
}

// Tuple4 is struct tuple4, the conntrack key: exactly 16 bytes.
type Tuple4 struct {
	Source      [4]byte
	Destination [4]byte
	SourcePort  Port
	DestPort    Port
	Protocol    uint8
	_           uint8
	Cluster     uint16
}

// Tuple6 is struct tuple6, the conntrack key of IPv6: exactly 40 bytes.
type Tuple6 struct {
	Source      Addr
	Destination Addr
	SourcePort  Port
	DestPort    Port
	Protocol    uint8
	_           uint8
	Cluster     uint16
}

// CTEntry is struct ct_entry; its first 64 bytes are what an established flow
// needs.
type CTEntry struct {
	Verdict  [2]uint64
	Hop      [2]uint64
	Bytes    [2]uint64
	Packets  [2]uint32
	LastSeen uint32 // jiffies
	Flags    uint16
	TCP      uint8
	SNATOpen uint8 // not 0: SNATPort may be in snat4_open still
	NATAddr  Addr
	NATPort  Port
	SNATPort uint16 // of the node; 0: the flow keeps its address
	Frontend uint32
	Backend  uint32
	SrcID    uint32
	DstID    uint32
	Created  uint32 // jiffies
}

// Bits of CTEntry.Flags.
const (
	CTOriginHigh uint16 = 1 << iota
	CTService
	CTNAT
	CTHairpin
	CTWorld
	CTReplied
)

// Bits of CTEntry.TCP.
const (
	CTFinForward uint8 = 1 << iota
	CTFinReply
	CTReset
)

// FrontendKey is struct frontend_key.
type FrontendKey struct {
	Addr     Addr
	Port     Port
	Protocol uint8
	_        uint8
}

// Frontend is struct frontend.
type Frontend struct {
	Number  uint32 // node-local
	Service uint32
	Count   uint32 // of slots
	// Affinity is for how many seconds a client stays with its backend.
	Affinity uint32
}

// AffinityKey is struct affinity_key: a client of a service.
type AffinityKey struct {
	Client   Addr
	Frontend uint32
}

// Affinity is struct affinity: the backend that a client stays with.
type Affinity struct {
	Backend uint32
	Last    uint32 // seconds of the monotonic clock
}

// SlotKey is struct slot_key.
type SlotKey struct {
	Frontend uint32
	Slot     uint32
}

// Backend is struct backend.
type Backend struct {
	Addr    Addr
	Port    Port
	_       uint16
	Cluster uint32
}

// FragmentKey is struct fragment_key.
type FragmentKey struct {
	Source      [4]byte
	Destination [4]byte
	From        uint32
	ID          Port
	Protocol    uint8
	Program     uint8
}

// FragmentPorts is struct fragment_ports.
type FragmentPorts struct {
	SourcePort Port
	DestPort   Port
	End        uint16
	_          uint16
	Seen       uint32 // seconds of the monotonic clock
}

// Fragment6Key is struct fragment6_key.
type Fragment6Key struct {
	Source      Addr
	Destination Addr
	From        uint32
	ID          [4]byte
	Program     uint32
}

// Fragment6Ports is struct fragment6_ports.
type Fragment6Ports struct {
	SourcePort Port
	DestPort   Port
	End        uint16
	Protocol   uint8
	_          uint8
	Seen       uint32 // seconds of the monotonic clock
}

// SNATKey is struct snat_key: how the outside sees a flow.
type SNATKey struct {
	Remote     [4]byte
	RemotePort Port
	Port       Port
	Protocol   uint8
	_          [3]uint8
}

// SNATEntry is struct snat_entry: the pod that the flow is of.
type SNATEntry struct {
	Addr    [4]byte
	Port    Port
	_       uint16
	Created uint32 // jiffies
}

// SNAT6Key is struct snat6_key.
type SNAT6Key struct {
	Remote     Addr
	RemotePort Port
	Port       Port
	Protocol   uint8
	_          [3]uint8
}

// SNAT6Entry is struct snat6_entry.
type SNAT6Entry struct {
	Addr    Addr
	Port    Port
	_       uint16
	Created uint32 // jiffies
}

// SockKey is struct sock_key: a socket, and the backend that it was given.
type SockKey struct {
	Cookie   uint64
	Addr     Addr
	Port     Port
	Protocol uint8
	_        [5]uint8
}

// SockPeer is struct sock_peer: the service that the socket asked for.
type SockPeer struct {
	Addr     Addr
	Port     Port
	Flags    uint16
	Frontend uint32
}

// SockConnected is the bit of SockPeer.Flags of connected sockets, of which there
// are some when the map of SockLink is full; others have only sent.
const SockConnected uint16 = 1 << 0

// SockLink is struct sock_link: what a connected socket has in place of the
// service that it asked for. The key is its cookie.
type SockLink struct {
	Backend     Addr
	Service     Addr
	BackendPort Port
	ServicePort Port
	Frontend    uint32
	Epoch       uint32 // of the frontend, when the backend was chosen
	Protocol    uint8
	_           [3]uint8
}

// Metric is struct metric.
type Metric struct {
	Packets uint64
	Bytes   uint64
}

// Watch is struct watch: what somebody listens to beside drops, 0 or 1.
type Watch struct {
	Verdicts uint32
	Traces   uint32
}

// Event is struct event.
type Event struct {
	Suppressed  uint64
	Source      Addr
	Destination Addr
	Outer       Addr
	SourceID    uint32
	DestID      uint32
	RuleSet     uint32
	Origin      uint32
	Length      uint32
	Line        uint32
	SourcePort  Port
	DestPort    Port
	Endpoint    uint16
	Type        uint8
	Reason      uint8
	Program     uint8
	Direction   uint8
	Protocol    uint8
	TCPFlags    uint8
	ICMPType    uint8
	ICMPCode    uint8
	_           [2]uint8
}
