// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Families of addresses, as Kubernetes calls them.
const (
	ipv4 = "IPv4"
	ipv6 = "IPv6"
)

func familyOf(p netip.Prefix) string {
	if p.Addr().Is4() {
		return ipv4
	}
	return ipv6
}

// ofFamily are the prefixes of one family.
func ofFamily(all []netip.Prefix, family string) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(all), func(p netip.Prefix) bool { return familyOf(p) != family })
}

// podCIDRSize is the length of the prefixes that nodes are given.
func (c *Config) podCIDRSize(family string) int {
	if family == ipv6 {
		return cmp.Or(c.PodCIDRSize6, DefaultPodCIDRSize6)
	}
	return cmp.Or(c.PodCIDRSize, DefaultPodCIDRSize)
}

// validateFamilies checks what the ranges of two families must have in common:
// every pod and every service can have an IPv4 address, and a service has an
// IPv6 one only where pods have.
func (c *Config) validateFamilies() []error {
	var errs []error
	if n := c.podCIDRSize(ipv4); n < 8 || n > 30 {
		errs = append(errs, fmt.Errorf("--pod-cidr-size %d: must be 8 to 30", n))
	}
	size := c.podCIDRSize(ipv6)
	if size < 16 || size > 126 {
		errs = append(errs, fmt.Errorf("--pod-cidr-size-ipv6 %d: must be 16 to 126", size))
	}
	for _, r := range []struct {
		flag string
		all  []netip.Prefix
	}{{"--pod-cidr", c.PodCIDRs}, {"--service-cidr", c.ServiceCIDRs}} {
		if len(r.all) > 0 && len(ofFamily(r.all, ipv4)) == 0 {
			errs = append(errs, fmt.Errorf("%s: an IPv4 range is needed too: there are no clusters without IPv4", r.flag))
		}
	}
	six := ofFamily(c.PodCIDRs, ipv6)
	for _, p := range six {
		if p.Bits() > size {
			errs = append(errs, fmt.Errorf("--pod-cidr %s: too small for one node's /%d; give a larger range, or another --pod-cidr-size-ipv6", p, size))
		}
	}
	if len(six) == 0 && len(ofFamily(c.ServiceCIDRs, ipv6)) > 0 {
		errs = append(errs, errors.New("--service-cidr: an IPv6 range needs one of --pod-cidr: without, no backend has an IPv6 address"))
	}
	return errs
}

func validatePrefixes(flag string, ps []netip.Prefix, required bool) []error {
	var errs []error
	if required && len(ps) == 0 {
		errs = append(errs, fmt.Errorf("%s: at least one is needed", flag))
	}
	if len(ps) > kvstore.MaxRanges {
		errs = append(errs, fmt.Errorf("%s: %d ranges; at most %d are possible, so give wider ones", flag, len(ps), kvstore.MaxRanges))
	}
	for _, p := range ps {
		switch {
		case !p.IsValid():
			errs = append(errs, fmt.Errorf("%s: not a prefix", flag))
		case p != p.Masked():
			errs = append(errs, fmt.Errorf("%s %s: has host bits; did you mean %s?", flag, p, p.Masked()))
		case p.Addr().Is4In6() || p.Addr().Is6() && !p.Addr().IsGlobalUnicast() && p.Bits() > 0:
			errs = append(errs, fmt.Errorf("%s %s: not a range of addresses that every node can reach; fd00::/8 is for private ones", flag, p))
		case p.Bits() == 0:
			errs = append(errs, fmt.Errorf("%s %s: a default route is not a range of this cluster", flag, p))
		}
	}
	return errs
}

// overlaps checks the cluster's own ranges against each other.
func overlaps(c *Config) []error {
	type named struct {
		flag string
		p    netip.Prefix
	}
	var all []named
	for flag, ps := range map[string][]netip.Prefix{"--pod-cidr": c.PodCIDRs, "--node-cidr": c.NodeCIDRs, "--service-cidr": c.ServiceCIDRs} {
		for _, p := range ps {
			if p.IsValid() {
				all = append(all, named{flag, p})
			}
		}
	}
	var errs []error
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.p.Overlaps(b.p) {
				errs = append(errs, fmt.Errorf("%s %s overlaps %s %s", a.flag, a.p, b.flag, b.p))
			}
		}
	}
	return errs
}
