// SPDX-License-Identifier: Apache-2.0

package ipcache

import "testing"

// FuzzAddresses is what a record can call a prefix or a tunnel address.
func FuzzAddresses(f *testing.F) {
	for _, s := range []string{"10.0.0.1/32", "fd00::/64", "::ffff:10.0.0.1/128", "10.0.0.1", "0.0.0.0/0", "fe80::1%eth0", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := parsePrefix(s); err == nil && (!p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "") {
			t.Fatalf("prefix %q is %v", s, p)
		}
		if a, err := parseTunnel(s); err == nil && s != "" && (!a.IsValid() || a.Is4In6() || a.Zone() != "") {
			t.Fatalf("tunnel address %q is %v", s, a)
		}
	})
}
