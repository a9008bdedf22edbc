// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab/netns"
)

// shape is two pods on two nodes of one fabric:
//
//	client pod ── node 1 ── bridge of the fabric ── node 2 ── server pod
//
// Each line is a veth pair. It is made of the lab's own parts, so that Hawser's
// lab has the same devices in the same order.
type shape struct {
	name           string
	client, server string     // paths of the pods' namespaces
	addr           netip.Addr // of the server
	node           [2]string  // paths of the nodes' namespaces
}

// routeMTU is what pods of every shape send at most, so that none has fewer
// packets for the same bytes.
const routeMTU = 1450

// kernelShape makes a shape of routes, or of routes over a VXLAN device with
// static neighbours and forwarding entries. It goes when the test ends.
func kernelShape(t *testing.T, name string, vxlan bool) shape {
	t.Helper()
	path := func(what string) string {
		return filepath.Join("/run/netns", fmt.Sprintf("hwperf-%d-%s-%s", os.Getpid(), name, what))
	}
	s := shape{name: name, client: path("client"), server: path("server"), addr: podAddr(1), node: [2]string{path("n1"), path("n2")}}
	fabric := path("fabric")
	for _, p := range []string{fabric, s.node[0], s.node[1], s.client, s.server} {
		t.Cleanup(func() { removeNetns(t, p) })
	}
	gateway := netip.MustParseAddr("172.30.1.1")
	fail := func(err error) {
		if err != nil {
			t.Fatalf("make %s shape: %v", name, err)
		}
	}
	fail(netns.CreateFabric(fabric, []netns.Bridge{{Name: "br", Address: netip.PrefixFrom(gateway, 24)}}, nil, 0))
	for i, node := range s.node {
		fail(netns.Create(node))
		fail(netns.Connect(fabric, netns.Port{
			Bridge: "br", Name: fmt.Sprintf("n%d", i+1), Netns: node,
			Address: netip.PrefixFrom(nodeAddr(i), 24), Gateway: gateway, MTU: 1500,
		}))
		pod := []string{s.client, s.server}[i]
		fail(netns.Create(pod))
		fail(connectPod(node, pod, podAddr(i)))
		fail(nsthread.InNetns(node, func() error {
			if vxlan {
				return routeVXLAN(i)
			}
			return routePlain(i)
		}))
	}
	return s
}

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 1, byte(11 + i)}) }
func podAddr(i int) netip.Addr  { return netip.AddrFrom4([4]byte{10, 1, byte(1 + i), 2}) }
func podCIDR(i int) *net.IPNet {
	return &net.IPNet{IP: net.IPv4(10, 1, byte(1+i), 0), Mask: net.CIDRMask(24, 32)}
}
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// connectPod links a pod to its node as Hawser does: one address of full length
// and a default route through a link-local gateway.
func connectPod(node, pod string, addr netip.Addr) error {
	gateway := netip.MustParseAddr("169.254.1.1")
	ns, err := os.Open(pod)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = nsthread.InNetns(node, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "pod", 1500
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: 1500, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return errors.Join(
			netlink.AddrAdd(veth, &netlink.Addr{IPNet: hostNet(gateway)}),
			netlink.LinkSetUp(veth),
			netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Dst: hostNet(addr), Scope: netlink.SCOPE_LINK}))
	})
	if err != nil {
		return err
	}
	return nsthread.InNetns(pod, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.AddrAdd(eth, &netlink.Addr{IPNet: hostNet(addr)}), netlink.LinkSetUp(eth)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: eth.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK), MTU: routeMTU,
		})
	})
}

// routePlain sends the other node's pods to the other node.
func routePlain(i int) error {
	return netlink.RouteAdd(&netlink.Route{Dst: podCIDR(1 - i), Gw: nodeAddr(1 - i).AsSlice()})
}

// routeVXLAN sends them through a VXLAN device to the other node's.
func routeVXLAN(i int) error {
	under, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	mac := func(i int) net.HardwareAddr { return net.HardwareAddr{2, 0x48, 0x57, 0, 0, byte(i)} }
	inner := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(1 + i), 0}) }
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = "vxlan0", routeMTU, mac(i)
	dev := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: 100, VtepDevIndex: under.Attrs().Index,
		SrcAddr: nodeAddr(i).AsSlice(), Port: 8472, Learning: false,
	}
	if err := netlink.LinkAdd(dev); err != nil {
		return err
	}
	other := 1 - i
	return errors.Join(
		netlink.AddrAdd(dev, &netlink.Addr{IPNet: hostNet(inner(i))}),
		netlink.LinkSetUp(dev),
		netlink.NeighSet(&netlink.Neigh{
			LinkIndex: dev.Index, State: netlink.NUD_PERMANENT, IP: inner(other).AsSlice(), HardwareAddr: mac(other),
		}),
		netlink.NeighAppend(&netlink.Neigh{
			LinkIndex: dev.Index, State: netlink.NUD_PERMANENT, Family: 7 /* AF_BRIDGE */, Flags: netlink.NTF_SELF,
			IP: nodeAddr(other).AsSlice(), HardwareAddr: mac(other),
		}),
		netlink.RouteAdd(&netlink.Route{
			LinkIndex: dev.Index, Dst: podCIDR(other), Gw: inner(other).AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		}))
}

// widenPorts lets one client make more connections than the usual range has
// ports.
func widenPorts(t *testing.T, ns string) {
	t.Helper()
	err := nsthread.InNetns(ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("1024 65535"), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// answered dials once from a namespace and says whether that was answered.
func answered(ctx context.Context, ns string, to netip.AddrPort, d *net.Dialer) bool {
	return nsthread.InNetns(ns, func() error {
		c, err := d.DialContext(ctx, "tcp4", to.String())
		if err == nil {
			_ = c.Close()
		}
		return err
	}) == nil
}

func removeNetns(t *testing.T, path string) {
	if err := netns.Delete(path); err != nil {
		t.Error(err)
	}
}
