// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// A granted range has at least as many bits: what is wider is no range of one
// cluster.
const (
	leastBits4 = 8
	leastBits6 = 16
)

// CheckRange says why a range is granted to nobody, whoever else may have it: it
// is a default route, wider than a /8 (IPv6: /16), or not of addresses that one
// host has for all others: link-local, loopback, multicast, reserved; nor IPv4
// addresses in the form of IPv6, which stand for those of anybody: 6to4, NAT64.
func CheckRange(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("must be ADDRESS/BITS")
	case p.Bits() == 0:
		return errors.New("is a default route, which no peer is granted")
	case p != p.Masked():
		return fmt.Errorf("has host bits; did you mean %s?", p.Masked())
	case p.Addr().Is4In6():
		return errors.New("is IPv4 written as IPv6; write it as IPv4")
	case p.Addr().Is4() && p.Bits() < leastBits4:
		return fmt.Errorf("is wider than a /%d, which no peer is granted", leastBits4)
	case p.Addr().Is6() && p.Bits() < leastBits6:
		return fmt.Errorf("is wider than a /%d, which no peer is granted", leastBits6)
	}
	for text, what := range map[string]string{
		"0.0.0.0/8": "unspecified", "127.0.0.0/8": "loopback", "169.254.0.0/16": "link-local", "224.0.0.0/4": "multicast",
		"240.0.0.0/4": "reserved", "::/16": "reserved", "fe80::/10": "link-local", "ff00::/8": "multicast",
		"2002::/16": "6to4", "64:ff9b::/96": "NAT64", "64:ff9b:1::/48": "NAT64",
	} {
		if p.Overlaps(netip.MustParsePrefix(text)) {
			return fmt.Errorf("has %s addresses (%s), which no peer is granted", what, text)
		}
	}
	return nil
}

// checkNamespace says why a name is none of a namespace.
func checkNamespace(n string) error {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	if n == "" || len(n) > 63 || strings.HasPrefix(n, "-") || strings.HasSuffix(n, "-") ||
		strings.ContainsFunc(n, func(r rune) bool { return !strings.ContainsRune(letters+"-", r) }) {
		return fmt.Errorf("namespace %q is not a name: want 1 to 63 of a-z, 0-9 and -, neither first nor last a -", n)
	}
	return nil
}
