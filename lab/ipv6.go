// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
)

// Lengths of the ranges of a lab with IPv6.
const (
	nodePods6   = 64 // of a node's pods
	mostPods6   = 56 // of a cluster's pods, at most: a byte for the node
	mostService = 126
)

// ula6 is fd00:<kind>:<id>::/bits.
func ula6(kind, id uint16, bits int) netip.Prefix {
	a := [16]byte{0: 0xfd, 2: byte(kind >> 8), 3: byte(kind), 4: byte(id >> 8), 5: byte(id)}
	return netip.PrefixFrom(netip.AddrFrom16(a), bits)
}

// withIPv6 fills in the IPv6 ranges; they read like the IPv4 ones.
func (c ClusterSpec) withIPv6() ClusterSpec {
	if !c.PodCIDR6.IsValid() {
		c.PodCIDR6 = ula6(0x10, uint16(c.ID), 48)
	}
	if !c.ServiceCIDR6.IsValid() {
		c.ServiceCIDR6 = ula6(0x172, uint16(c.ID), 112)
	}
	return c
}

// checkIPv6 checks the ranges of a lab with IPv6; one without has none.
func (c ClusterSpec) checkIPv6(ipv6 bool) []error {
	var errs []error
	for _, r := range []struct {
		what   string
		prefix netip.Prefix
		bits   int // at most
	}{{"podCIDR6", c.PodCIDR6, mostPods6}, {"serviceCIDR6", c.ServiceCIDR6, mostService}} {
		switch p := r.prefix; {
		case !ipv6 && p.IsValid():
			errs = append(errs, fmt.Errorf("cluster %s: %s %s: the lab has no IPv6; say ipv6: true", c.Name, r.what, p))
		case !ipv6:
		case !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > r.bits:
			errs = append(errs, fmt.Errorf("cluster %s: %s %s: an IPv6 range of at least a /%d is needed", c.Name, r.what, p, r.bits))
		case p != p.Masked():
			errs = append(errs, fmt.Errorf("cluster %s: %s %s: it has bits behind its length; %s has none", c.Name, r.what, p, p.Masked()))
		}
	}
	return errs
}

// nodePods is the range of the n-th node's pods, from 1; invalid without IPv6.
func (c ClusterSpec) nodePods6(n int) netip.Prefix {
	if !c.PodCIDR6.IsValid() {
		return netip.Prefix{}
	}
	a := c.PodCIDR6.Masked().Addr().As16()
	a[7] |= byte(n)
	return netip.PrefixFrom(netip.AddrFrom16(a), nodePods6)
}

// both is a list of the prefixes that there are, as the programs take it.
func both(four, six netip.Prefix) string {
	if !six.IsValid() {
		return four.String()
	}
	return four.String() + "," + six.String()
}
