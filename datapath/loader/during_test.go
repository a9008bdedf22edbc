// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/internal/testutil/laterbuild"
)

// otherConntrack is a build that moves all maps of flows.
func otherConntrack(s *ebpf.CollectionSpec) {
	laterbuild.Alter(s)
	for _, name := range []string{"ct4", "ct4_open", "ct6", "ct6_open"} {
		s.Maps[name].MaxEntries *= 2
	}
}

// TestConnectionsAcrossTheSwitch: while one hook has the new programs and maps and
// the others those before, connections to services that are balanced packet by packet
// are opened, established and go on; so do those from before, when all have changed.
func TestConnectionsAcrossTheSwitch(t *testing.T) {
	for name, c := range map[string]struct {
		step  int
		later func(*ebpf.CollectionSpec)
	}{
		"replies meet the new programs":              {loader.OverlaySwitched, otherConntrack},
		"requests do":                                {loader.PodsSwitched, otherConntrack},
		"requests do, half-open flows are not moved": {loader.PodsSwitched, laterbuild.Alter},
	} {
		t.Run(name, func(t *testing.T) {
			w := newUpgradeWorld(t, "")
			vips := []netip.Addr{netip.MustParseAddr("10.100.0.9"), netip.MustParseAddr("fd00:10:100::9")}
			for i, backend := range []netip.Addr{ips(1), ip6s(1)} {
				w.agents[0].tables.Frontends.Set(datapath.FrontendKey{Addr: vips[i], Port: 80, Protocol: unix.IPPROTO_TCP}, datapath.Frontend{
					Service: uint32(i + 1), Backends: []datapath.Backend{{Addr: backend, Port: 8080}},
				})
			}
			w.agents[0].wait(t)
			var open []net.Conn
			dialBoth := func() {
				for _, vip := range vips {
					open = append(open, dial(t, w.pods[0], vip, 80))
				}
			}
			exchange := func(when string) {
				t.Helper()
				for i, c := range open {
					if err := echo(c, when, 5*time.Second); err != nil {
						t.Fatalf("%s, connection %d: %v", when, i, err)
					}
				}
			}
			dialBoth()
			for i, alter := range []func(*ebpf.CollectionSpec){c.later, sameBuild} {
				for _, until := range []int{loader.Prepared, c.step, loader.AllSteps} {
					d, err := w.open(alter, until)
					if err != nil {
						t.Fatal(err)
					}
					dialBoth()
					exchange(fmt.Sprintf("upgrade %d, step %d", i, until))
					exchange("again")
					if err := d.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}
