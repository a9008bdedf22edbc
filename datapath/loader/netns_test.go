// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
)

// gateway is what pods have as default route; the programs answer ARP for it.
const gateway = "169.254.1.1"

// gateway6 is the same for IPv6, by neighbour discovery.
const gateway6 = "fe80::1"

// overhead is what VXLAN adds to a packet.
const overhead = 50

// inNS runs f on a thread of its own inside a namespace. The thread is thrown
// away afterwards.
func inNS(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := netns.Set(ns)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// newNS makes a namespace without a name: it goes when its last user does.
func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	made := make(chan netns.NsHandle)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			t.Error(err)
		}
		made <- ns
	}()
	ns := <-made
	t.Cleanup(func() { _ = ns.Close() })
	inNS(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

func addr(s string) *netlink.Addr {
	a, err := netlink.ParseAddr(s)
	if err != nil {
		panic(err)
	}
	return a
}

// veth makes a pair in the current namespace and moves the peer to another.
func veth(name, peer string, to netns.NsHandle, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerMTU: uint32(mtu)}
	if to != 0 {
		pair.PeerNamespace = netlink.NsFd(to)
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth %s: %w", name, err)
	}
	return up(name)
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func setAddr(dev, a string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, addr(a))
}

// node is a namespace with an underlay device on the fabric's bridge, and the
// host veth.
type node struct {
	ns     netns.NsHandle
	fabric netns.NsHandle // has the other end of its underlay device, portN
	addr   netip.Addr
	addr6  netip.Addr // in the mesh
	pin    string
	fs     string
	// tunnel is the device that makes its tunnel's headers; empty: the programs do.
	tunnel string
}

func newFabric(t *testing.T) netns.NsHandle {
	ns := newNS(t)
	inNS(t, ns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return up("br0")
	})
	return ns
}

func newNode(t *testing.T, fabric netns.NsHandle, n int, podNet string) *node {
	t.Helper()
	fs := filepath.Join(t.TempDir(), "bpf")
	nd := &node{
		ns: newNS(t), fabric: fabric, addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}),
		addr6: netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::1", n)),
		fs:    fs, pin: filepath.Join(fs, fmt.Sprintf("node%d", n)),
	}
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	inNS(t, fabric, func() error {
		port := fmt.Sprintf("port%d", n)
		if err := veth(port, "eth0", nd.ns, 1500); err != nil {
			return err
		}
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, br)
	})
	inNS(t, nd.ns, func() error {
		if err := up("eth0"); err != nil {
			return err
		}
		if err := setAddr("eth0", nd.addr.String()+"/24"); err != nil {
			return err
		}
		if err := veth("hawser_host", "hawser_net", 0, 1500-overhead); err != nil {
			return err
		}
		if err := up("hawser_net"); err != nil {
			return err
		}
		host, err := netlink.LinkByName("hawser_host")
		if err != nil {
			return err
		}
		_, dst, err := net.ParseCIDR(podNet)
		if err != nil {
			return err
		}
		_, dst6, err := net.ParseCIDR(podNet6)
		if err != nil {
			return err
		}
		return errors.Join(netlink.RouteAdd(&netlink.Route{
			LinkIndex: host.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK, Src: nd.addr.AsSlice(),
		}), setAddr6("hawser_host", nd.addr6), netlink.RouteAdd(&netlink.Route{
			LinkIndex: host.Attrs().Index, Dst: dst6, Src: nd.addr6.AsSlice(),
		}))
	})
	return nd
}

// setAddr6 gives a device an IPv6 address that can be used at once.
func setAddr6(dev string, a netip.Addr) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	with := addr(a.String() + "/128")
	with.Flags = unix.IFA_F_NODAD
	return netlink.AddrAdd(l, with)
}

// newPod makes a pod on the node, as the CNI plugin does, and its endpoint row.
func newPod(t *testing.T, nd *node, id uint16, ip, ip6 string) (netns.NsHandle, datapath.Endpoint) {
	t.Helper()
	ns := newNS(t)
	ep := datapath.Endpoint{
		ID: id, Device: fmt.Sprintf("pod%d", id), Addrs: []netip.Addr{netip.MustParseAddr(ip), netip.MustParseAddr(ip6)},
	}
	inNS(t, nd.ns, func() error {
		if err := veth(ep.Device, "eth0", ns, 1500); err != nil {
			return err
		}
		l, err := netlink.LinkByName(ep.Device)
		if err != nil {
			return err
		}
		ep.IfIndex = uint32(l.Attrs().Index)
		copy(ep.HostMAC[:], l.Attrs().HardwareAddr)
		return nil
	})
	inNS(t, ns, func() error {
		if err := up("eth0"); err != nil {
			return err
		}
		if err := setAddr("eth0", ip+"/32"); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		copy(ep.PodMAC[:], l.Attrs().HardwareAddr)
		return errors.Join(netlink.RouteAdd(podRoute(l)), setAddr6("eth0", netip.MustParseAddr(ip6)), netlink.RouteAdd(podRoute6(l)))
	})
	return ns, ep
}

// podRoute is a pod's default route.
func podRoute(l netlink.Link) *netlink.Route {
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	return &netlink.Route{
		LinkIndex: l.Attrs().Index, Dst: all, Gw: net.ParseIP(gateway),
		Flags: int(netlink.FLAG_ONLINK), MTU: 1500 - overhead,
	}
}

func podRoute6(l netlink.Link) *netlink.Route {
	_, all, _ := net.ParseCIDR("::/0")
	return &netlink.Route{
		LinkIndex: l.Attrs().Index, Dst: all, Gw: net.ParseIP(gateway6),
		Flags: int(netlink.FLAG_ONLINK), MTU: 1500 - overhead,
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads eBPF programs and makes network namespaces")
	}
}
