// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/internal/manifest"
)

func parseCIDRs(n manifest.Node, peers *Peers) {
	for _, item := range n.List() {
		if p, ok := parsePrefix(item); ok {
			peers.CIDRs = append(peers.CIDRs, CIDR{Prefix: p})
		}
	}
}

func parseCIDRSets(n manifest.Node, peers *Peers) {
	const groups = "write the prefixes with cidr"
	for _, item := range n.List() {
		if !item.Only([]string{"cidr", "except"}, manifest.Later{"cidrGroupRef": groups, "cidrGroupSelector": groups}) ||
			item.Has("cidrGroupRef") || item.Has("cidrGroupSelector") {
			continue
		}
		if c, ok := parseCIDRSet(item); ok {
			peers.CIDRs = append(peers.CIDRs, c)
		}
	}
}

// parseCIDRSet reads the fields cidr and except.
func parseCIDRSet(n manifest.Node) (c CIDR, ok bool) {
	f, has := n.Field("cidr")
	if !has {
		if !n.Has("cidr") {
			n.At(n.Path + ".cidr").Problem("required")
		}
		return c, false
	}
	c.Prefix, ok = parsePrefix(f)
	except, has := n.Field("except")
	if !has {
		return c, ok
	}
	for _, item := range except.List() {
		p, valid := parsePrefix(item)
		if !valid || !ok {
			continue
		}
		if p.Bits() <= c.Prefix.Bits() || !c.Prefix.Contains(p.Addr()) {
			item.Problem("%s is not a part of %s", p, c.Prefix)
			continue
		}
		c.Except = append(c.Except, p)
	}
	slices.SortFunc(c.Except, comparePrefix)
	c.Except = slices.Compact(c.Except)
	return c, ok
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// parsePrefix reads a prefix or an address. A prefix with host bits is refused:
// it may mean the network or the one address.
func parsePrefix(n manifest.Node) (netip.Prefix, bool) {
	text, ok := n.Text()
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, aerr := netip.ParseAddr(text)
		if aerr != nil || a.Zone() != "" {
			n.Problem("%.64q is neither a prefix nor an address", text)
			return p, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	switch {
	case p.Addr().Is4In6():
		n.Problem("%s is an IPv4 address in IPv6 form: write it as IPv4", p)
		return p, false
	case p != p.Masked():
		n.Problem("%s has host bits: write %s for the network, or %s for the address",
			p, p.Masked(), p.Addr())
		return p, false
	}
	return p, true
}
