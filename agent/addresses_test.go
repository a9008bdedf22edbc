// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/ipam"
)

func poolsOf(t *testing.T, cidrs ...string) *pools {
	t.Helper()
	cfg := Config{PodCIDR: netip.MustParsePrefix(cidrs[0])}
	if len(cidrs) > 1 {
		cfg.PodCIDR6 = netip.MustParsePrefix(cidrs[1])
	}
	p, err := newPools(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An endpoint gets an address of each family or none, and a full range of either
// is said with its name.
func TestAddressesOfBothFamilies(t *testing.T) {
	p := poolsOf(t, "10.1.1.0/24", "fd00:1:0:1::/125") // six addresses: ::2 to ::7
	if a := p.v6.Gateway(); a != netip.MustParseAddr("fd00:1:0:1::1") {
		t.Errorf("the node's own address would be %s", a)
	}
	var last *record
	for i := range 6 {
		r := &record{ContainerID: "c", IfName: string(rune('a' + i))}
		var err error
		if r.Addr, r.Addr6, err = p.allocate(r.key()); err != nil || !r.Addr6.Is6() || r.Addr6 == p.v6.Gateway() {
			t.Fatalf("endpoint %d: %v %v, %v", i, r.Addr, r.Addr6, err)
		}
		if got := r.addrs(); len(got) != 2 || !got[0].Is4() || got[1] != r.Addr6 {
			t.Errorf("addresses %v", got)
		}
		last = r
	}
	_, _, err := p.allocate("c/x")
	if !errors.Is(err, ipam.ErrFull) || !strings.Contains(err.Error(), "fd00:1:0:1::/125") {
		t.Errorf("a full range: %v", err)
	}
	if used := p.v4.Used(); used != 6 {
		t.Errorf("%d IPv4 addresses in use after an endpoint that got none, want 6", used)
	}
	p.release(last)
	if p.v4.Used() != 5 || p.v6.Used() != 5 {
		t.Errorf("after a release: %d and %d in use", p.v4.Used(), p.v6.Used())
	}
	one := poolsOf(t, "10.1.1.0/24")
	if a, b, err := one.allocate("c/a"); err != nil || !a.IsValid() || b.IsValid() {
		t.Errorf("without an IPv6 range: %v %v, %v", a, b, err)
	}
}

// What an endpoint had before a restart it has again, all or none.
func TestAddressesAreClaimedAgain(t *testing.T) {
	p := poolsOf(t, "10.1.1.0/24", "fd00:1:0:1::/64")
	r := &record{ContainerID: "c", IfName: "eth0", Addr: netip.MustParseAddr("10.1.1.7"), Addr6: netip.MustParseAddr("fd00:1:0:1::7")}
	if err := p.claim(r); err != nil || !p.owns(r) {
		t.Fatalf("claim: %v", err)
	}
	thief := &record{ContainerID: "d", IfName: "eth0", Addr: netip.MustParseAddr("10.1.1.8"), Addr6: r.Addr6}
	if err := p.claim(thief); !errors.Is(err, ipam.ErrInUse) || p.owns(thief) || p.v4.Used() != 1 {
		t.Errorf("claim of another's address: %v, %d in use", err, p.v4.Used())
	}
	node := &record{ContainerID: "e", IfName: "eth0", Addr: netip.MustParseAddr("10.1.1.9"), Addr6: p.v6.Gateway()}
	if err := p.claim(node); err == nil {
		t.Error("an endpoint has the node's own address")
	}
}

// Without the IPv6 range that it had, a node keeps its endpoints, by IPv4.
func TestEndpointLosesItsIPv6Address(t *testing.T) {
	r := &record{ID: 3, ContainerID: "c", IfName: "eth0", Addr: netip.MustParseAddr("10.1.1.7"), Addr6: netip.MustParseAddr("fd00:1:0:1::7"), HostDevice: "lo", IfIndex: 1, State: stateReady}
	m := &endpoints{log: slog.New(slog.DiscardHandler), pool: poolsOf(t, "10.1.1.0/24")}
	m.adopt(r)
	if r.State != stateRestoring || r.Addr6.IsValid() || !m.pool.owns(r) {
		t.Errorf("adopted as %+v", r)
	}
}

// Of an endpoint without a record the kernel knows the addresses of both families.
func TestLostRecordHasBothAddresses(t *testing.T) {
	row := maps.Endpoint{ID: 9, IfIndex: 1}
	four, six := netip.MustParseAddr("10.1.1.7"), netip.MustParseAddr("fd00:1:0:1::7")
	pinned := map[maps.IPKey]maps.Endpoint{
		{Addr: maps.AddrFrom(four)}: row, {Addr: maps.AddrFrom(six)}: row,
		{Addr: maps.AddrFrom(netip.MustParseAddr("10.1.1.8"))}: {ID: 10, IfIndex: 2},
	}
	r, ok := lostRecord(row, pinned)
	if !ok || r.Addr != four || r.Addr6 != six {
		t.Errorf("%+v, %v", r, ok)
	}
}
