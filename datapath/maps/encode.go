// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/hawser-mesh/hawser/datapath"
)

// v4Mapped is how many bits of a mapped address come before the IPv4 part.
const v4Mapped = 96

// clusterBits is the size of the cluster id in front of a trie key's address.
const clusterBits = 32

// v6Space turns the cluster of a trie key into the one that IPv6 prefixes are
// under: without it ::/0 would be found for IPv4 addresses, which are mapped. It
// is the bit of V6_SPACE in bpf/lib/ipcache.h.
const v6Space uint32 = 1 << 31

// Buckets of ipcache epochs; the one behind the last bucket is the prefixes'.
const (
	IPEpochBits   = 12
	IPEpochs      = 1 << IPEpochBits
	IPEpochPrefix = IPEpochs
)

// IPEpochIndex is the epoch bucket of an address, as ip_epoch_index computes it.
func IPEpochIndex(k IPKey) uint32 {
	w := func(i int) uint32 { return binary.LittleEndian.Uint32(k.Addr[4*i:]) }
	x := w(0)*0x85EBCA6B + w(1)*0xC2B2AE35 + w(2)*0x27D4EB2F + w(3)*0x9E3779B1 +
		k.Cluster*0x165667B1
	x ^= x >> 15
	return (x * 0x9E3779B1) >> (32 - IPEpochBits)
}

// EncodeEndpoint makes the value of an endpoint and the keys of its addresses.
func EncodeEndpoint(row datapath.Endpoint) (Endpoint, []IPKey, error) {
	if row.ID == 0 || row.IfIndex == 0 {
		return Endpoint{}, nil, fmt.Errorf("endpoint %d: needs an id and an interface index", row.ID)
	}
	v := Endpoint{
		IfIndex: row.IfIndex, Identity: uint32(row.Identity), RuleSet: row.RuleSet,
		ID: row.ID, HostMAC: row.HostMAC, PodMAC: row.PodMAC,
	}
	keys := make([]IPKey, 0, len(row.Addrs))
	for _, a := range row.Addrs {
		switch {
		case v.Addr == (Addr{}) && a.Unmap().Is4():
			v.Addr = AddrFrom(a)
		case v.Addr6 == (Addr{}) && a.Is6() && !a.Is4In6():
			v.Addr6 = AddrFrom(a)
		}
		keys = append(keys, IPKey{Addr: AddrFrom(a)})
	}
	return v, keys, nil
}

// IsHost reports whether a key names one address, which goes to the hash, not
// the trie.
func IsHost(k datapath.IPKey) bool { return k.Prefix.IsSingleIP() }

// EncodeIPKey makes the hash key of a single address.
func EncodeIPKey(k datapath.IPKey) IPKey {
	return IPKey{Addr: AddrFrom(k.Prefix.Addr()), Cluster: k.ClusterID}
}

// EncodeIPPrefix makes the trie key of a prefix.
func EncodeIPPrefix(k datapath.IPKey) IPPrefix {
	bits, cluster := k.Prefix.Bits(), k.ClusterID
	if k.Prefix.Addr().Is4() {
		bits += v4Mapped
	} else {
		cluster ^= v6Space
	}
	return IPPrefix{
		Bits: uint32(bits) + clusterBits, Cluster: cluster,
		Addr: AddrFrom(k.Prefix.Masked().Addr()),
	}
}

// Prefix converts a trie key back.
func (p IPPrefix) Prefix() (cluster uint32, prefix netip.Prefix) {
	addr, bits := netip.AddrFrom16(p.Addr), int(p.Bits)-clusterBits
	if v4 := p.Cluster&v6Space == 0; v4 != (p.Cluster|v6Space == datapath.BlockSpace) {
		return p.Cluster, netip.PrefixFrom(addr.Unmap(), bits-v4Mapped)
	}
	return p.Cluster ^ v6Space, netip.PrefixFrom(addr, bits)
}

// String is the prefix, for messages.
func (p IPPrefix) String() string {
	_, prefix := p.Prefix()
	return prefix.String()
}

// EncodeFrontendKey makes the key of a frontend.
func EncodeFrontendKey(k datapath.FrontendKey) FrontendKey {
	return FrontendKey{Addr: AddrFrom(k.Addr), Port: PortFrom(k.Port), Protocol: k.Protocol}
}

// EncodeBackend makes the value of a backend.
func EncodeBackend(b datapath.Backend) Backend {
	return Backend{Addr: AddrFrom(b.Addr), Port: PortFrom(b.Port), Cluster: b.ClusterID}
}
