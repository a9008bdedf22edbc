// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// TestCIDRsGiveWayToTheMesh: a prefix of a policy is visible unless it lies in
// what the mesh claims, whichever came first.
func TestCIDRsGiveWayToTheMesh(t *testing.T) {
	const number = identity.LocalBase + 7
	f := newFixture(t)
	row := func(space uint32, prefix string, want *datapath.IPEntry) {
		t.Helper()
		f.Publish(f.tables.IPCache, f.tables.Nodes)
		got, ok := f.tables.IPCache.Get(datapath.IPKey{ClusterID: space, Prefix: netip.MustParsePrefix(prefix)})
		if ok != (want != nil) || ok && got != *want {
			t.Errorf("%s in space %d: %+v %v, want %+v", prefix, space, got, ok, want)
		}
	}
	cidr := &datapath.IPEntry{Identity: number}
	f.SetCIDR(netip.MustParsePrefix("10.0.0.0/8"), number)
	f.SetCIDR(netip.MustParsePrefix("10.2.3.0/24"), number)
	f.SetCIDR(netip.MustParsePrefix("10.2.3.4/32"), number)
	for _, p := range []string{"10.0.0.0/8", "10.2.3.0/24", "10.2.3.4/32"} {
		row(0, p, cidr)
	}
	f.vtep("east", "10.2.0.0/16", "192.0.2.2", "east-2")
	row(0, "10.0.0.0/8", cidr)
	row(0, "10.2.3.0/24", nil)
	row(0, "10.2.3.4/32", nil)
	f.SetCIDR(netip.MustParsePrefix("10.2.9.0/24"), number)
	row(0, "10.2.9.0/24", nil)
	f.ip("east", "10.2.3.4/32", 70000, "192.0.2.2")
	row(0, "10.2.3.4/32", &datapath.IPEntry{Identity: 70000, Tunnel: netip.MustParseAddr("192.0.2.2")})
	if c := f.Conflicts(); len(c) != 0 {
		t.Errorf("a policy's prefix is in conflict with the mesh: %+v", c)
	}
	f.DeleteIP("east", netip.MustParsePrefix("10.2.3.4/32"))
	row(0, "10.2.3.4/32", nil)
	f.DeleteVTEP("east", netip.MustParsePrefix("10.2.0.0/16"))
	for _, p := range []string{"10.2.3.0/24", "10.2.3.4/32", "10.2.9.0/24"} {
		row(0, p, cidr)
		f.DeleteCIDR(netip.MustParsePrefix(p))
		row(0, p, nil)
	}
	f.SetBlock(netip.MustParsePrefix("10.2.0.0/16"), identity.BlockBase)
	row(datapath.BlockSpace, "10.2.0.0/16", &datapath.IPEntry{Identity: identity.BlockBase})
	row(0, "10.2.0.0/16", nil)
	f.DeleteBlock(netip.MustParsePrefix("10.2.0.0/16"))
	row(datapath.BlockSpace, "10.2.0.0/16", nil)
}

// TestCIDRsBehindExternalEndpoints: what is behind an external endpoint is outside,
// so policies' prefixes show there, with its tunnel.
func TestCIDRsBehindExternalEndpoints(t *testing.T) {
	const wide, narrow = identity.LocalBase + 7, identity.LocalBase + 8
	at := netip.MustParseAddr("192.0.2.77")
	f := newFixture(t)
	row := func(prefix string, want identity.Number, tunnel netip.Addr) {
		t.Helper()
		f.Publish(f.tables.IPCache, f.tables.Nodes)
		got, ok := f.tables.IPCache.Get(datapath.IPKey{Prefix: netip.MustParsePrefix(prefix)})
		if ok != (want != 0) || ok && (got.Identity != want || got.Tunnel != tunnel) {
			t.Errorf("%s: %+v %v, want %d by %s", prefix, got, ok, want, tunnel)
		}
	}
	p := netip.MustParsePrefix
	f.SetRanges("east", []netip.Prefix{p("10.1.0.0/16")})
	f.SetCIDR(p("10.1.7.128/25"), narrow)
	row("10.1.7.128/25", 0, netip.Addr{})
	f.vtep("east", "10.1.7.0/24", "192.0.2.77", "")
	row("10.1.7.0/24", identity.World, at)
	row("10.1.7.128/25", narrow, at)
	f.SetCIDR(p("10.0.0.0/8"), wide)
	row("10.1.7.0/24", wide, at)
	f.SetCIDR(p("10.1.7.0/24"), narrow)
	row("10.1.7.0/24", narrow, at)
	f.DeleteCIDR(p("10.1.7.0/24"))
	row("10.1.7.0/24", wide, at)
	f.DeleteCIDR(p("10.0.0.0/8"))
	row("10.1.7.0/24", identity.World, at)
	if e, _ := f.Lookup(netip.MustParseAddr("10.1.7.200")); e.Identity != narrow || e.Source != KindExternal {
		t.Errorf("lookup: %+v", e)
	}
	// Another endpoint for it, then a node's own prefix in its place.
	f.vtep("east", "10.1.7.0/24", "192.0.2.78", "")
	row("10.1.7.128/25", narrow, netip.MustParseAddr("192.0.2.78"))
	f.vtep("east", "10.1.7.0/24", "192.0.2.2", "east-2")
	row("10.1.7.128/25", 0, netip.Addr{})
	f.DeleteVTEP("east", p("10.1.7.0/24"))
	f.SetRanges("east", nil)
	row("10.1.7.128/25", narrow, netip.Addr{})
	row("10.1.7.0/24", 0, netip.Addr{})
}
