// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

func TestOtherAddressIsTold(t *testing.T) {
	none, a, b := netip.Addr{}, netip.MustParseAddr("2001:db8::a"), netip.MustParseAddr("2001:db8::b")
	for _, c := range []struct {
		was, is netip.Addr
		want    string
	}{
		{none, none, ""}, {a, a, ""},
		{none, a, "has got the IPv6 address 2001:db8::a, and what pods send to the outside keeps theirs"},
		{a, b, "2001:db8::a, which the device has lost; it has 2001:db8::b"},
		{a, none, "2001:db8::a, which the device has lost"},
	} {
		got := otherAddress6("eth0", c.was, c.is)
		if len(got) == 0 && c.want == "" {
			continue
		}
		if len(got) != 1 || c.want == "" || !strings.HasSuffix(got[0].GetProblem(), c.want) || got[0].GetObject() != "masquerade eth0" || got[0].GetFix() == "" {
			t.Errorf("%s became %s: %v, want %q", c.was, c.is, got, c.want)
		}
	}
}

func TestMasqueradeAddresses(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		cfg  loader.Config
		want []string
	}{
		{loader.Config{NodeAddr: v4}, nil},
		{loader.Config{NodeAddr: v4, Masquerade: loader.MasqueradePorts()}, []string{"192.0.2.1"}},
		{loader.Config{NodeAddr: v4, Masquerade: loader.MasqueradePorts(), Masquerade6: v6}, []string{"192.0.2.1", "2001:db8::1"}},
	} {
		if got := masqueradeAddresses(c.cfg); !slices.Equal(got, c.want) {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
	// Without an IPv6 range, or when they keep theirs, pods get none; nobody looks.
	for _, c := range []Config{{UnderlayDevice: "none"}, {UnderlayDevice: "none", KeepPodAddresses: true, PodCIDR6: netip.MustParsePrefix("fd00:1::/64")}} {
		if a, err := c.outsideAddress6(netip.Addr{}); err != nil || a.IsValid() {
			t.Errorf("%s, %v", a, err)
		}
	}
	c := Config{UnderlayDevice: "none", PodCIDR6: netip.MustParsePrefix("fd00:1::/64")}
	if _, err := c.outsideAddress6(netip.Addr{}); err == nil {
		t.Error("a device that is not there has an address, or none")
	}
}
