// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
)

// newTestIPCache writes into maps of its own with room for few entries.
func newTestIPCache(t *testing.T, hosts, prefixes uint32) *ipcache {
	t.Helper()
	kernel := &objects.HawserMaps{
		Ipcache: testMap(t, "ipcache", hosts), IpcachePrefix: testMap(t, "ipcache_prefix", prefixes), IpcacheEpochs: testMap(t, "ipcache_epochs", maps.IPEpochs+1),
	}
	return startIPCache(t, kernel)
}

func startIPCache(t *testing.T, kernel *objects.HawserMaps) *ipcache {
	t.Helper()
	s, err := newIPCache(kernel, datapath.NewTables().IPCache, &nodeIDs{}, netip.MustParseAddr("192.0.2.1"), func() error { return nil },
		func(identity.Number) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	s.subscribe()
	t.Cleanup(s.close)
	return s
}

// kernelSays is whose the kernel takes an address for; 0 is unknown.
func (s *ipcache) kernelSays(a netip.Addr) identity.Number {
	if v, ok := s.hosts.have[maps.IPKey{Addr: maps.AddrFrom(a)}]; ok {
		return identity.Number(v.Identity)
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		if v, ok := s.prefix.have[maps.EncodeIPPrefix(datapath.IPKey{Prefix: netip.PrefixFrom(a, bits)})]; ok {
			return identity.Number(v.Identity)
		}
	}
	return identity.World
}

// tableSays is whose it is.
func (s *ipcache) tableSays(a netip.Addr) identity.Number {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if row, ok := s.table.Get(datapath.IPKey{Prefix: netip.PrefixFrom(a, bits).Masked()}); ok {
			return row.Identity
		}
	}
	return identity.World
}

// Whatever comes, changes and goes at once, and whether or not there is room: after
// every single write, an address is taken for whose it was or for whose it is, or
// for nobody's.
func TestNoAddressIsTakenForAnothers(t *testing.T) {
	for name, room := range map[string]uint32{"room": 64, "no room": 8} {
		t.Run(name, func(t *testing.T) {
			s := newTestIPCache(t, room/2, room)
			r := rand.New(rand.NewPCG(3, uint64(room)))
			addrs, rows := nested()
			hidden, complete := 0, 0
			for round := range 2000 {
				was := map[netip.Addr]identity.Number{}
				for _, a := range addrs {
					was[a] = s.kernelSays(a)
				}
				for range 1 + r.IntN(6) {
					k := datapath.IPKey{Prefix: rows[r.IntN(len(rows))]}
					if r.IntN(3) == 0 {
						s.table.Delete(k)
					} else {
						row := datapath.IPEntry{Identity: identity.LocalBase + identity.Number(r.IntN(4))}
						if name == "no room" && r.IntN(8) == 0 {
							row.Tunnel = netip.MustParseAddr("192.0.2.9") // nor for the number of a node
						}
						s.table.Set(k, row)
					}
				}
				check := func() {
					for _, a := range addrs {
						is, now := s.kernelSays(a), s.tableSays(a)
						if is != was[a] && is != now && is != 0 {
							t.Fatalf("round %d: %s is taken for %d, was %d, is %d", round, a, is, was[a], now)
						}
					}
				}
				s.prefix.wrote, s.hosts.wrote = check, check
				_, err := s.sync()
				for _, a := range addrs {
					is, now := s.kernelSays(a), s.tableSays(a)
					if is != now && (is != 0 || err == nil) {
						t.Fatalf("after round %d: %s is taken for %d and is %d (%v)", round, a, is, now, err)
					}
					if is == 0 {
						hidden++
					}
				}
				if err == nil {
					complete++
				}
			}
			if complete == 0 || (hidden == 0) == (name == "no room") {
				t.Errorf("%d rounds with all written, %d addresses hidden", complete, hidden)
			}
		})
	}
}

// An agent that starts with a full trie goes on hiding what the one before it hid,
// until it knows all rows and there is room for them, in whatever order they come.
func TestHiddenIsTakenOver(t *testing.T) {
	for _, wide := range []string{"", "50.0.0.0/8"} {
		t.Run("in "+wide, func(t *testing.T) {
			kernel := &objects.HawserMaps{
				Ipcache: testMap(t, "ipcache", 8), IpcachePrefix: testMap(t, "ipcache_prefix", 8), IpcacheEpochs: testMap(t, "ipcache_epochs", maps.IPEpochs+1),
			}
			const parts = 12
			row := func(s *ipcache, p string, n int) {
				s.table.Set(datapath.IPKey{Prefix: netip.MustParsePrefix(p)}, datapath.IPEntry{Identity: identity.LocalBase + identity.Number(n)})
			}
			first := func(s *ipcache) {
				if wide != "" {
					row(s, wide, 100)
				}
			}
			rest := func(s *ipcache) {
				for i := range parts {
					row(s, fmt.Sprintf("50.0.%d.0/24", i), i)
				}
			}
			s := startIPCache(t, kernel)
			first(s)
			_, _ = s.sync()
			rest(s)
			if _, err := s.sync(); err == nil {
				t.Fatal("there was room")
			}
			s = startIPCache(t, kernel)
			check := func() {
				for i := range parts {
					a := netip.AddrFrom4([4]byte{50, 0, byte(i), 7})
					if is := s.kernelSays(a); is != 0 && is != identity.LocalBase+identity.Number(i) {
						t.Fatalf("%s is taken for %d", a, is)
					}
				}
			}
			s.prefix.wrote = check
			check()
			for _, come := range []func(*ipcache){first, rest} {
				come(s)
				_, _ = s.sync()
				check()
			}
			_ = s.repair(true)
			check()
			s.prefix.wrote = nil
			for i := 3; i < parts; i++ {
				s.table.Delete(datapath.IPKey{Prefix: netip.MustParsePrefix(fmt.Sprintf("50.0.%d.0/24", i))})
			}
			_, _ = s.sync()
			if _, err := s.sync(); err != nil {
				t.Fatal(err)
			}
			if a := netip.MustParseAddr("50.0.9.7"); s.kernelSays(a) != s.tableSays(a) || len(s.withheld) != 0 {
				t.Errorf("with room: %s is taken for %d and is %d; hidden %v", a, s.kernelSays(a), s.tableSays(a), s.withheld)
			}
		})
	}
}

// nested are addresses, and prefixes of both families that hold them.
func nested() (addrs []netip.Addr, rows []netip.Prefix) {
	for _, text := range []string{"50.0.1.7", "50.0.1.8", "50.0.2.7", "50.1.1.7", "51.0.0.7", "2001:db8:5::7", "2001:db8:5:1::7", "2001:db8:6::7"} {
		a := netip.MustParseAddr(text)
		addrs = append(addrs, a)
		lengths := []int{0, 8, 16, 24, 32}
		if a.Is6() {
			lengths = []int{0, 32, 48, 64, 128}
		}
		for _, bits := range lengths {
			rows = append(rows, netip.PrefixFrom(a, bits).Masked())
		}
	}
	return addrs, rows
}
