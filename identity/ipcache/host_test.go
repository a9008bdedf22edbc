// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"testing"
)

// A node's other addresses are the host's for its own pods, until it has them no
// more; its record, and ranges of the mesh, say more.
func TestHostAddrs(t *testing.T) {
	f := newFixture(t)
	f.SetCluster("east", 1)
	f.node("east", "east-1", "192.0.2.1", "192.0.2.1")
	f.SetHostAddrs([]netip.Addr{addr("192.0.2.1"), addr("172.30.77.1"), addr("fd77::1"), addr("10.1.0.1"), addr("::ffff:198.51.100.7")})
	f.want(
		"10.1.0.1/32 id 1 via invalid IP flags 17",
		"172.30.77.1/32 id 1 via invalid IP flags 17",
		"192.0.2.1/32 id 1 via invalid IP flags 1",
		"198.51.100.7/32 id 1 via invalid IP flags 17",
		"fd77::1/128 id 1 via invalid IP flags 17",
	)
	f.SetRanges("east", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("198.51.100.0/24")})
	f.SetHostAddrs([]netip.Addr{addr("192.0.2.1"), addr("172.30.77.1"), addr("10.1.0.1"), addr("198.51.100.7")})
	f.want(
		"10.1.0.0/16 id 0 via invalid IP flags 4",
		"172.30.77.1/32 id 1 via invalid IP flags 17",
		"192.0.2.1/32 id 1 via invalid IP flags 1",
		"198.51.100.0/24 id 0 via invalid IP flags 4",
	)
	f.SetRanges("east", nil)
	f.SetEndpoint(addr("172.30.77.1"), 65537, "demo/x")
	f.want(
		"10.1.0.1/32 id 1 via invalid IP flags 17",
		"172.30.77.1/32 id 65537 via invalid IP flags 0",
		"192.0.2.1/32 id 1 via invalid IP flags 1",
		"198.51.100.7/32 id 1 via invalid IP flags 17",
	)
	f.DeleteEndpoint(addr("172.30.77.1"))
	f.SetHostAddrs([]netip.Addr{addr("172.30.77.1")})
	f.want(
		"172.30.77.1/32 id 1 via invalid IP flags 17",
		"192.0.2.1/32 id 1 via invalid IP flags 1",
	)
	if all := f.Conflicts(); len(all) != 0 {
		t.Errorf("conflicts %v", all)
	}
}
