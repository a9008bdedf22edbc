// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"slices"
	"strings"
	"testing"
)

// What a manifest says of families is what Kubernetes means by it; one that says
// nothing wants what the cluster has.
func TestFamilies(t *testing.T) {
	both := []string{IPv4, IPv6}
	for _, c := range []struct {
		spec      string
		dual, one string // addresses in a cluster of both families, and of IPv4 only
		require   bool
	}{
		{"", "IPv4 IPv6", "IPv4", false},
		{"ipFamilyPolicy: SingleStack", "IPv4", "IPv4", false},
		{"ipFamilyPolicy: SingleStack\n  ipFamilies: [IPv6]", "IPv6", "", false},
		{"ipFamilies: [IPv4]", "IPv4", "IPv4", false},
		{"ipFamilies: [IPv6]", "IPv6", "", false},
		{"ipFamilies: [IPv6, IPv4]", "IPv6 IPv4", "IPv4", true},
		{"ipFamilyPolicy: PreferDualStack", "IPv4 IPv6", "IPv4", false},
		{"ipFamilyPolicy: PreferDualStack\n  ipFamilies: [IPv6]", "IPv6 IPv4", "IPv4", false},
		{"ipFamilyPolicy: RequireDualStack", "IPv4 IPv6", "IPv4", true},
		{"clusterIP: 10.0.0.1", "IPv4 IPv6", "IPv4", false},
		{"clusterIP: 'fd00::1'", "IPv6 IPv4", "IPv4", false},
		{"clusterIP: 'fd00::1'\n  ipFamilyPolicy: SingleStack", "IPv6", "", false},
		{"clusterIPs: [10.0.0.1, 'fd00::1']", "IPv4 IPv6", "IPv4", true},
		{"clusterIP: None", "IPv4 IPv6", "IPv4", false},
	} {
		source := echo
		if c.spec != "" {
			source = strings.Replace(echo, "spec:\n", "spec:\n  "+c.spec+"\n", 1)
		}
		objects, err := ParseServices([]byte(source))
		if err != nil {
			t.Fatalf("%q: %v", c.spec, err)
		}
		o := objects[0]
		dual, one := Families(o.Service.GetIpFamilies(), both), Families(o.Service.GetIpFamilies(), []string{IPv4})
		if got := strings.Join(dual, " "); got != c.dual {
			t.Errorf("%q: %q in a cluster of both, want %q", c.spec, got, c.dual)
		}
		if got := strings.Join(one, " "); got != c.one {
			t.Errorf("%q: %q in a cluster of IPv4, want %q", c.spec, got, c.one)
		}
		if o.DualStack != c.require {
			t.Errorf("%q: both required: %v", c.spec, o.DualStack)
		}
		reparse(t, o)
	}
}

// Behind an address are the backends of its family, each with its own best rank.
func TestBackendsOfTheFamily(t *testing.T) {
	b := newBench(t)
	s := service("10.101.0.1", false, false)
	s.Vips = append(s.Vips, "fd00:101::1")
	b.UpsertService(Source{"east", true}, s)
	b.UpsertSlice(Source{"east", true}, slice("e1", "10.1.0.5 terminating", "10.1.0.6", "fd00:1::5 terminating", "fd00:1::7 quarantined"))
	got := map[string][]string{}
	b.Publish(b.table)
	for k, row := range b.table.All() {
		for _, x := range row.Backends {
			got[k.Addr.String()] = append(got[k.Addr.String()], x.Addr.String())
		}
		for _, x := range row.Keeping {
			if x.Addr.Is4() != k.Addr.Is4() {
				t.Errorf("%s keeps flows of %s", k.Addr, x.Addr)
			}
		}
	}
	if !slices.Equal(got["10.101.0.1"], []string{"10.1.0.6"}) || !slices.Equal(got["fd00:101::1"], []string{"fd00:1::5"}) {
		t.Errorf("backends %v", got)
	}
}
