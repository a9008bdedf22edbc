// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab"
	"github.com/hawser-mesh/hawser/lab/netns"
)

// cmdExternal is `external NAME CLUSTER TUNNEL ADDRESS VNI MAC`: a namespace on the
// cluster's network that speaks VXLAN by the kernel's device and has nothing of
// ours. It sends what is for a node's pods to that node. NAME is a place then.
func cmdExternal(s *script, args []string) (string, error) {
	if len(args) != 6 {
		return "", usage("external NAME CLUSTER TUNNEL ADDRESS VNI MAC")
	}
	at, err1 := netip.ParseAddr(args[2])
	inner, err2 := netip.ParseAddr(args[3])
	vni, err3 := strconv.Atoi(args[4])
	mac, err4 := net.ParseMAC(args[5])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return "", err
	}
	fabric, err := s.place("fabric")
	if err != nil {
		return "", err
	}
	// A name that `lab down` removes, too.
	p := place{netns: filepath.Join(filepath.Dir(fabric.netns), "hwl-"+s.world.lab.Name()+"-x-"+args[0]), addr: inner}
	var home *lab.Cluster
	for _, c := range s.world.lab.Clusters() {
		if c.Name == args[1] {
			home = &c
		}
	}
	if home == nil {
		return "", fmt.Errorf("no cluster %q", args[1])
	}
	if err := netns.Create(p.netns); err != nil {
		return "", err
	}
	s.ts.Defer(func() {
		delete(s.externals, args[0])
		if err := nsthread.DeleteNetns(p.netns); err != nil {
			s.t.Errorf("remove %s: %v", p.netns, err)
		}
	})
	if err := netns.Connect(fabric.netns, netns.Port{
		Bridge: "br-" + home.Name, Name: "x-" + args[0], Netns: p.netns,
		Address: netip.PrefixFrom(at, home.NodeCIDR.Bits()), Gateway: home.Gateway, MTU: 1500,
	}); err != nil {
		return "", err
	}
	if s.externals == nil {
		s.externals = map[string]place{}
	}
	s.externals[args[0]] = p
	return "", nsthread.InNetns(p.netns, func() error { return vxlanTo(s.world.lab.Clusters(), at, inner, vni, mac) })
}

// vxlanTo makes a VXLAN device with the address inner, and a route to the pods of
// each node: through a neighbour that stands for the node.
func vxlanTo(clusters []lab.Cluster, at, inner netip.Addr, vni int, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = "vx0", mac, 1450
	vx := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: tunnelPort, SrcAddr: at.AsSlice()}
	if err := netlink.LinkAdd(vx); err != nil {
		return fmt.Errorf("add VXLAN device: %w", err)
	}
	if err := netlink.AddrAdd(vx, &netlink.Addr{IPNet: hostNet(inner)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(vx); err != nil {
		return err
	}
	var errs []error
	n := byte(0)
	for _, c := range clusters {
		for _, node := range c.Members {
			n++
			gw, to := net.IPv4(169, 254, 77, n), net.HardwareAddr{2, 0, 0, 0, 7, n}
			index := vx.Attrs().Index
			errs = append(errs,
				netlink.NeighAdd(&netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, IP: gw, HardwareAddr: to}),
				netlink.NeighAppend(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF,
					IP: node.Address.AsSlice(), HardwareAddr: to}),
				netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(node.PodCIDR), Gw: gw, Src: inner.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
		}
	}
	return errors.Join(errs...)
}

func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
