// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/tunnel"
)

// minMTU6 is the least that IPv6 may count on (RFC 8200).
const minMTU6 = 1280

// podCIDRs are the ranges of the node's pods, IPv4 first.
func (c *Config) podCIDRs() []netip.Prefix {
	if !c.PodCIDR6.IsValid() {
		return []netip.Prefix{c.PodCIDR}
	}
	return []netip.Prefix{c.PodCIDR, c.PodCIDR6}
}

// isPodAddress tells whether only a pod of this node can have the address.
func (c *Config) isPodAddress(addr netip.Addr) bool {
	return addr != c.nodeAddress6() && slices.ContainsFunc(c.podCIDRs(), func(p netip.Prefix) bool { return p.Contains(addr) })
}

func (c *Config) podCIDRTexts() (out []string) {
	for _, p := range c.podCIDRs() {
		out = append(out, p.String())
	}
	return out
}

// nodeAddress6 is the node's own IPv6 address, the first of its pods' range; the
// zero Addr without one. Tunnels have none: they are IPv4.
func (c *Config) nodeAddress6() netip.Addr {
	if !c.PodCIDR6.IsValid() {
		return netip.Addr{}
	}
	return c.PodCIDR6.Masked().Addr().Next()
}

// sourceOf is the node's own address of the family of a prefix.
func (c *Config) sourceOf(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return c.NodeAddress
	}
	return c.nodeAddress6()
}

func (c *Config) validatePodCIDRs() []error {
	var errs []error
	switch {
	case !c.PodCIDR.IsValid():
	case !c.PodCIDR.Addr().Is4():
		errs = append(errs, fmt.Errorf("--pod-cidr %s: must be an IPv4 prefix", c.PodCIDR))
	case c.PodCIDR != c.PodCIDR.Masked():
		errs = append(errs, fmt.Errorf("--pod-cidr %s: has host bits; did you mean %s?", c.PodCIDR, c.PodCIDR.Masked()))
	}
	switch p := c.PodCIDR6; {
	case !p.IsValid():
	case !p.Addr().Is6() || p.Addr().Is4In6() || !p.Addr().IsGlobalUnicast():
		errs = append(errs, fmt.Errorf("--pod-cidr %s: must be a range of the cluster's IPv6 pod ranges", p))
	case !c.PodCIDR.IsValid():
		errs = append(errs, fmt.Errorf("--pod-cidr %s: an IPv4 range is needed too", p))
	case p != p.Masked():
		errs = append(errs, fmt.Errorf("--pod-cidr %s: has host bits; did you mean %s?", p, p.Masked()))
	}
	return errs
}

// checkMTU refuses IPv6 where the tunnel leaves it too little.
func (c *Config) checkMTU(underlay netdev.Device) error {
	if mtu := underlay.MTU - tunnel.VXLANOverhead4; c.PodCIDR6.IsValid() && mtu < minMTU6 {
		return fmt.Errorf("--underlay-device %s: its MTU of %d leaves %d in the tunnel, and IPv6 needs %d: raise it, or give pods no IPv6 range", underlay.Name, underlay.MTU, mtu, minMTU6)
	}
	return nil
}
