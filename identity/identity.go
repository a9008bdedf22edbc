// SPDX-License-Identifier: Apache-2.0

// Package identity is the number that stands for a set of labels: its reserved
// values and how the 24 bits on the wire are divided among clusters.
//
// Labels themselves are identity/labels'; who gets which number is
// identity/allocator's; which address has which number is identity/ipcache's.
package identity

import "fmt"

// Number is a security identity. It has 32 bits in maps; workload identities
// use the low 24, which are the VNI of a packet on the wire.
type Number uint32

// Reserved numbers. The first ten are those that Cilium uses.
const (
	Unknown       Number = 0
	Host          Number = 1
	World         Number = 2
	Unmanaged     Number = 3
	Health        Number = 4
	Init          Number = 5
	RemoteNode    Number = 6
	KubeAPIServer Number = 7
	Ingress       Number = 8
	WorldIPv4     Number = 9
	WorldIPv6     Number = 10

	// MaxReserved is the last number kept for reserved values.
	MaxReserved Number = 255
	// LocalBase is the first number of the identities that are local to a
	// node (CIDR identities); they never cross the wire.
	LocalBase Number = 1 << 24
	// BlockBase is the first number of the local identities that an address
	// has beside its own: those of the ipBlocks of NetworkPolicies.
	BlockBase Number = 1 << 31

	wireBits = 24
)

// DefaultClusterBits divides the wire's 24 bits into 255 clusters of 65,535.
const DefaultClusterBits = 8

var reservedNames = map[Number]string{
	Host: "host", World: "world", Unmanaged: "unmanaged", Health: "health",
	Init: "init", RemoteNode: "remote-node", KubeAPIServer: "kube-apiserver",
	Ingress: "ingress", WorldIPv4: "world-ipv4", WorldIPv6: "world-ipv6",
}

// Reserved reports whether n is reserved, and its name ("host", …; empty for
// the numbers kept for later).
func (n Number) Reserved() (string, bool) {
	return reservedNames[n], n <= MaxReserved
}

// ReservedNumber is the number of a reserved name.
func ReservedNumber(name string) (Number, bool) {
	for n, s := range reservedNames {
		if s == name {
			return n, true
		}
	}
	return 0, false
}

// IsLocal reports whether n is a node-local (CIDR) identity.
func (n Number) IsLocal() bool { return n >= LocalBase }

// IsBlock reports whether n is a node-local identity of an ipBlock.
func (n Number) IsBlock() bool { return n >= BlockBase }

// Space says how many of the wire's bits name the cluster. Its zero value is
// not valid; use NewSpace.
type Space struct{ bits uint }

// NewSpace returns the space with the given number of cluster bits: 8, 9 or 10.
func NewSpace(clusterBits uint32) (Space, error) {
	if clusterBits < 8 || clusterBits > 10 {
		return Space{}, fmt.Errorf("cluster bits %d: must be 8, 9 or 10", clusterBits)
	}
	return Space{bits: uint(clusterBits)}, nil
}

// ClusterBits is the number of bits that name the cluster.
func (s Space) ClusterBits() uint32 { return uint32(s.bits) }

// MaxCluster is the highest cluster id: 255, 511 or 1,023.
func (s Space) MaxCluster() uint32 { return 1<<s.bits - 1 }

// Range is the first and last workload identity of a cluster. Cluster ids
// start at 1.
func (s Space) Range(cluster uint32) (first, last Number) {
	local := wireBits - s.bits
	first = Number(cluster << local)
	return first, first + 1<<local - 1
}

// Cluster is the id of the cluster that a workload identity belongs to; ok is
// false for reserved and node-local numbers.
func (s Space) Cluster(n Number) (id uint32, ok bool) {
	if n <= MaxReserved || n.IsLocal() {
		return 0, false
	}
	id = uint32(n) >> (wireBits - s.bits)
	return id, id != 0
}
