// SPDX-License-Identifier: Apache-2.0

package netdev_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/datapath/netdev"
)

func TestReadReport(t *testing.T) {
	inNode(t, func(string) error {
		if _, err := netdev.EnsureHostDevice(netdev.HostConfig{}); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("172.30.1.11/32")
		if err == nil {
			err = netlink.AddrAdd(lo, addr)
		}
		if err == nil {
			err = netdev.EnsureRoute(netip.MustParsePrefix("10.2.0.0/16"), netip.MustParseAddr("172.30.1.11"), 1450)
		}
		if err != nil {
			return err
		}
		r, err := netdev.ReadReport()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(r.Links, func(l netdev.LinkReport) bool { return l.Name == netdev.HostDevice })
		if i < 0 || r.Links[i].Type != "veth" || r.Links[i].MTU != 1500 || r.Links[i].MAC == "" {
			t.Errorf("devices: %+v", r.Links)
		}
		if !slices.ContainsFunc(r.Links, func(l netdev.LinkReport) bool {
			return l.Name == "lo" && slices.Contains(l.Addresses, "172.30.1.11/32")
		}) {
			t.Errorf("addresses: %+v", r.Links)
		}
		if !slices.ContainsFunc(r.Routes, func(r netdev.RouteReport) bool {
			return r.Destination == "10.2.0.0/16" && r.Device == netdev.HostDevice && r.Source == "172.30.1.11" && r.Type == "unicast"
		}) {
			t.Errorf("routes: %+v", r.Routes)
		}
		return nil
	})
}
