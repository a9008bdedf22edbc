// SPDX-License-Identifier: Apache-2.0

package netdev_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// inNode runs the test's body in a fresh network namespace, a node, and gives
// it the path of a second one, a pod.
func inNode(t *testing.T, body func(pod string) error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces and devices")
	}
	pod := filepath.Join(t.TempDir(), "pod")
	if err := nsthread.CreateNetns(pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nsthread.DeleteNetns(pod); err != nil {
			t.Error(err)
		}
	})
	err := nsthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return body(pod)
	})
	if err != nil {
		t.Error(err)
	}
}

func podConfig(pod string) netdev.PodConfig {
	return netdev.PodConfig{
		ContainerID: "0123456789abcdef", Netns: pod, MTU: 1500, RouteMTU: 1450,
		Addrs: []netip.Addr{netip.MustParseAddr("10.1.1.2"), netip.MustParseAddr("fd00:1::2")},
	}
}

func TestEnsurePod(t *testing.T) {
	inNode(t, func(pod string) error {
		cfg := podConfig(pod)
		// A runtime may have turned IPv6 off, as labs do.
		err := nsthread.InNetns(pod, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("1"), 0o644) })
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		dev, err := netdev.EnsurePod(cfg)
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName(dev.HostDevice)
		if err != nil {
			return err
		}
		if link.Attrs().Index != dev.IfIndex || link.Attrs().HardwareAddr.String() != macString(dev.HostMAC) {
			t.Errorf("host device is %d %s, reported %d %s", link.Attrs().Index, link.Attrs().HardwareAddr, dev.IfIndex, macString(dev.HostMAC))
		}
		if v, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + dev.HostDevice + "/forwarding"); err == nil && strings.TrimSpace(string(v)) != "1" {
			t.Errorf("what the pod sends by IPv6 to the outside is not forwarded: %s", v)
		}
		if addrs, _ := netlink.AddrList(link, netlink.FAMILY_ALL); len(addrs) != 0 {
			t.Errorf("host device has addresses: %v", addrs)
		}
		again, err := netdev.EnsurePod(cfg)
		if err != nil || again != dev {
			t.Errorf("repeated: %+v, %v; want the same device %+v", again, err, dev)
		}
		addressIsSet(t, dev.HostDevice)
		// As udev does to an address that nobody set.
		if err := netlink.LinkSetHardwareAddr(link, net.HardwareAddr{2, 9, 9, 9, 9, 9}); err != nil {
			return err
		}
		if !netdev.Stands(dev.IfIndex, dev.HostMAC, dev.HostDevice) || netdev.Stands(dev.IfIndex, dev.HostMAC, "another") || netdev.Stands(dev.IfIndex, dev.HostMAC, "") {
			t.Error("a device with another address stands by its name, and by nothing else")
		}
		return nsthread.InNetns(pod, func() error { return checkPod(t, dev) })
	})
}

// addressIsSet checks that a device of the thread's namespace got its address from
// somebody: one that the kernel chose is another's to change.
func addressIsSet(t *testing.T, device string) {
	t.Helper()
	const set = "3" // NET_ADDR_SET
	dir := t.TempDir()
	if err := unix.Mount("sysfs", dir, "sysfs", unix.MS_RDONLY, ""); err != nil { // /sys is of another namespace
		t.Errorf("mount sysfs: %v", err)
		return
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if b, err := os.ReadFile(filepath.Join(dir, "class/net", device, "addr_assign_type")); err != nil || strings.TrimSpace(string(b)) != set {
		t.Errorf("the address of %s is of type %s, %v; want %s", device, b, err, set)
	}
}

func checkPod(t *testing.T, dev netdev.PodDevice) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if link.Attrs().HardwareAddr.String() != macString(dev.PodMAC) {
		t.Errorf("pod MAC is %s, reported %s", link.Attrs().HardwareAddr, macString(dev.PodMAC))
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	var global []string
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			global = append(global, a.IPNet.String())
		}
	}
	slices.Sort(global)
	if want := []string{"10.1.1.2/32", "fd00:1::2/128"}; !slices.Equal(global, want) {
		t.Errorf("pod addresses %v, want %v", global, want)
	}
	for _, dst := range []string{"10.2.0.1", "fd00:2::1"} {
		routes, err := netlink.RouteGet(netip.MustParseAddr(dst).AsSlice())
		if err != nil {
			return fmt.Errorf("route to %s: %w", dst, err)
		}
		gw, _ := netip.AddrFromSlice(routes[0].Gw)
		if want := map[bool]netip.Addr{true: netdev.Gateway4(), false: netdev.Gateway6()}[gw.Unmap().Is4()]; gw.Unmap() != want {
			t.Errorf("route to %s goes via %s, want %s", dst, gw, want)
		}
		// RouteGet reports the route's MTU metric.
		if routes[0].MTU != 1450 {
			t.Errorf("route to %s has MTU %d, want 1450", dst, routes[0].MTU)
		}
	}
	for name, want := range map[string]string{"eth0/autoconf": "0", "eth0/accept_ra": "0", "eth0/disable_ipv6": "0", "lo/disable_ipv6": "0"} {
		if v, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name); err == nil && strings.TrimSpace(string(v)) != want {
			t.Errorf("%s is %s, want %s", name, v, want)
		}
	}
	noTrains(t, "eth0")
	return nil
}

// noTrains checks a device of the thread's namespace: what is sent into it
// goes into tunnels.
func noTrains(t *testing.T, device string) {
	t.Helper()
	e, err := ethtool.NewEthtool()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	features, err := e.Features(device)
	if err != nil {
		t.Error(err)
	}
	for _, feature := range []string{"tx-udp-segmentation", "tx-sctp-segmentation"} {
		if features[feature] {
			t.Errorf("%s is on at %s", feature, device)
		}
	}
}

func TestEnsurePodRepairs(t *testing.T) {
	inNode(t, func(pod string) error {
		cfg := podConfig(pod)
		dev, err := netdev.EnsurePod(cfg)
		if err != nil {
			return err
		}
		err = nsthread.InNetns(pod, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			stray, _ := netlink.ParseAddr("10.9.9.9/24")
			if err := netlink.AddrAdd(link, stray); err != nil {
				return err
			}
			return netlink.LinkSetDown(link)
		})
		if err != nil {
			return err
		}
		again, err := netdev.EnsurePod(cfg)
		if err != nil {
			return err
		}
		if again != dev {
			t.Errorf("repair replaced the device: %+v, was %+v", again, dev)
		}
		return nsthread.InNetns(pod, func() error { return checkPod(t, dev) })
	})
}

func TestEnsurePodReplacesPairOfDeadNamespace(t *testing.T) {
	inNode(t, func(pod string) error {
		old := filepath.Join(t.TempDir(), "old")
		if err := nsthread.CreateNetns(old); err != nil {
			return err
		}
		defer func() {
			if err := nsthread.DeleteNetns(old); err != nil {
				t.Error(err)
			}
		}()
		cfg := podConfig(old)
		first, err := netdev.EnsurePod(cfg)
		if err != nil {
			return err
		}
		cfg.Netns = pod
		second, err := netdev.EnsurePod(cfg)
		if err != nil {
			return err
		}
		if second.IfIndex == first.IfIndex {
			t.Error("the pair of the old namespace was reported for the new one")
		}
		return nsthread.InNetns(pod, func() error { return checkPod(t, second) })
	})
}

func TestDeletePod(t *testing.T) {
	inNode(t, func(pod string) error {
		dev, err := netdev.EnsurePod(podConfig(pod))
		if err != nil {
			return err
		}
		for range 2 { // the second finds nothing and is content
			if err := netdev.DeletePod(dev.HostDevice); err != nil {
				return err
			}
		}
		return nsthread.InNetns(pod, func() error {
			if _, err := netlink.LinkByName("eth0"); err == nil {
				t.Error("the pod still has eth0")
			}
			return nil
		})
	})
}

func TestPodConfigProblemsAreAllTold(t *testing.T) {
	_, err := netdev.EnsurePod(netdev.PodConfig{MTU: 1400, RouteMTU: 1500})
	for _, want := range []string{"container id", "namespace", "address", "1500"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}

func TestHostDevice(t *testing.T) {
	inNode(t, func(string) error {
		pair, err := netdev.EnsureHostDevice(netdev.HostConfig{})
		if err != nil {
			return err
		}
		if again, err := netdev.EnsureHostDevice(netdev.HostConfig{}); err != nil || again != pair {
			t.Errorf("repeated: %+v, %v; want %+v", again, err, pair)
		}
		noTrains(t, netdev.HostDevice)
		addressIsSet(t, netdev.HostDevice)
		addressIsSet(t, netdev.HostPeer)
		if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + netdev.HostDevice + "/rp_filter"); err != nil || strings.TrimSpace(string(b)) != "0" {
			t.Errorf("rp_filter is %s, %v", b, err)
		}
		// A node address to be the routes' source.
		lo, _ := netlink.LinkByName("lo")
		addr, _ := netlink.ParseAddr("172.30.1.11/32")
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
		src := netip.MustParseAddr("172.30.1.11")
		own, remote := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
		for _, p := range []netip.Prefix{own, own, remote} {
			if err := netdev.EnsureRoute(p, src, 1450); err != nil {
				return err
			}
		}
		routes, err := netlink.RouteGet(netip.MustParseAddr("10.2.7.7").AsSlice())
		if err != nil {
			return err
		}
		if r := routes[0]; r.LinkIndex != pair.IfIndex || r.Src.String() != src.String() || r.MTU != 1450 {
			t.Errorf("route to a remote pod is %+v", r)
		}
		// What the host has is not taken, and known as the host's.
		link, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		theirs := netip.MustParsePrefix("192.0.2.0/24")
		if err := netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: theirs.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)},
		}); err != nil {
			return err
		}
		if err := netdev.EnsureRoute(theirs, src, 1450); !errors.Is(err, netdev.ErrForeignRoute) {
			t.Errorf("taking the host's route: %v", err)
		}
		if needed, err := netdev.HostAddrs(); err != nil || !slices.Contains(needed, src) {
			t.Errorf("the host needs %v, %v; want %s in it", needed, err, src)
		}
		if err := netdev.DeleteRoute(own); err != nil {
			return err
		}
		if err := netdev.DeleteRoute(own); err != nil {
			t.Errorf("removing a route that is gone: %v", err)
		}
		have, err := netdev.Routes()
		if err != nil || !slices.Equal(have, []netip.Prefix{remote}) {
			t.Errorf("routes %v, %v; want only %s", have, err, remote)
		}
		if err := netdev.DeleteHostDevice(); err != nil {
			return err
		}
		return netdev.DeleteHostDevice()
	})
}

// A pair that programs run with keeps its index and addresses, whatever becomes of it.
func TestHostDeviceIsPutBack(t *testing.T) {
	inNode(t, func(string) error {
		own := netip.MustParseAddr("fd00:1:0:1::1")
		pair, err := netdev.EnsureHostDevice(netdev.HostConfig{Addr6: own})
		if err != nil {
			return err
		}
		cfg := netdev.HostConfig{Addr6: own, As: pair}
		link := func(name string) netlink.Link {
			l, err := netlink.LinkByName(name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return &netlink.Dummy{}
			}
			return l
		}
		for what, harm := range map[string]func() error{
			"nothing":  func() error { return nil },
			"removed":  func() error { return netlink.LinkDel(link(netdev.HostDevice)) },
			"its peer": func() error { return netlink.LinkDel(link(netdev.HostPeer)) },
			"set down": func() error { return netlink.LinkSetDown(link(netdev.HostDevice)) },
			"another address": func() error {
				return netlink.LinkSetHardwareAddr(link(netdev.HostPeer), net.HardwareAddr{2, 0, 0, 0, 0, 9})
			},
			"another name": func() error {
				return errors.Join(netlink.LinkSetDown(link(netdev.HostPeer)), netlink.LinkSetName(link(netdev.HostPeer), "theirs"))
			},
			"another pair": func() error {
				if err := netdev.DeleteHostDevice(); err != nil {
					return err
				}
				_, err := netdev.EnsureHostDevice(netdev.HostConfig{})
				return err
			},
		} {
			if err := harm(); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			again, err := netdev.EnsureHostDevice(cfg)
			if err != nil || again.IfIndex != pair.IfIndex || again.MAC != pair.MAC || again.PeerMAC != pair.PeerMAC {
				t.Errorf("%s: %+v, %v; want %+v", what, again, err, pair)
			}
			if remade := again.PeerIfIndex != cfg.As.PeerIfIndex; remade != (what != "nothing" && what != "set down" && what != "another address") {
				t.Errorf("%s: made anew: %v", what, remade)
			}
			for _, name := range []string{netdev.HostDevice, netdev.HostPeer} {
				if l := link(name); l.Attrs().Flags&net.FlagUp == 0 {
					t.Errorf("%s: %s is down", what, name)
				}
			}
			if addrs, err := netlink.AddrList(link(netdev.HostDevice), netlink.FAMILY_V6); err != nil || len(addrs) != 1 {
				t.Errorf("%s: addresses %v, %v", what, addrs, err)
			}
			cfg.As = again
		}
		// Somebody has the index meanwhile.
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", Index: pair.IfIndex}}
		if err := errors.Join(netdev.DeleteHostDevice(), netlink.LinkAdd(bridge)); err != nil {
			return err
		}
		if _, err := netdev.EnsureHostDevice(cfg); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s: add veth pair: with index %d", netdev.HostDevice, pair.IfIndex)) {
			t.Errorf("the index is taken: %v", err)
		}
		if _, err := netdev.EnsureHostDevice(netdev.HostConfig{}); err != nil {
			t.Errorf("with any index: %v", err)
		}
		return nil
	})
}

// What is as it should be is not changed: nobody who watches the pair is woken.
func TestHostDeviceAsItIs(t *testing.T) {
	inNode(t, func(string) error {
		cfg := netdev.HostConfig{Addr6: netip.MustParseAddr("fd00:1:0:1::1")}
		var err error
		if cfg.As, err = netdev.EnsureHostDevice(cfg); err != nil {
			return err
		}
		done := make(chan struct{})
		defer close(done)
		updates := make(chan netlink.LinkUpdate, 64)
		if err := netlink.LinkSubscribe(updates, done); err != nil {
			return err
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // told a while later
			host, err := netlink.LinkByName(netdev.HostDevice)
			peer, err2 := netlink.LinkByName(netdev.HostPeer)
			if err := errors.Join(err, err2); err != nil {
				return err
			}
			if host.Attrs().OperState == netlink.OperUp && peer.Attrs().OperState == netlink.OperUp {
				break
			}
			if time.Now().After(deadline) {
				return errors.New("the pair does not come up")
			}
		}
		// until reads what is told up to a device that is made now.
		until := func(marker string) (told []string, err error) {
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: marker}}); err != nil {
				return nil, err
			}
			for u := range updates {
				if u.Attrs().Name == marker {
					break
				}
				told = append(told, u.Attrs().Name)
			}
			return told, nil
		}
		if _, err := until("br0"); err != nil {
			return err
		}
		if _, err := netdev.EnsureHostDevice(cfg); err != nil {
			return err
		}
		told, err := until("br1")
		for _, name := range told {
			if name != "br0" {
				t.Errorf("%s was changed", name)
			}
		}
		return err
	})
}

// With an IPv6 range the host has its own address on the pair, no other, and
// reaches pods from it.
func TestHostDeviceIPv6(t *testing.T) {
	inNode(t, func(string) error {
		own := netip.MustParseAddr("fd00:1:0:1::1")
		cfg := netdev.HostConfig{Addr6: own}
		pair, err := netdev.EnsureHostDevice(cfg)
		if err != nil {
			return err
		}
		pods, remote := netip.MustParsePrefix("fd00:1:0:1::/64"), netip.MustParsePrefix("fd00:2::/48")
		for _, p := range []netip.Prefix{pods, remote, remote} {
			if err := netdev.EnsureRoute(p, own, 1450); err != nil {
				return err
			}
		}
		// Traffic goes on when an agent starts again.
		if again, err := netdev.EnsureHostDevice(cfg); err != nil || again != pair {
			t.Errorf("repeated: %+v, %v; want %+v", again, err, pair)
		}
		have, err := netdev.Routes()
		slices.SortFunc(have, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		if err != nil || !slices.Equal(have, []netip.Prefix{pods, remote}) {
			t.Errorf("routes %v, %v", have, err)
		}
		for _, dst := range []string{"fd00:1:0:1::7", "fd00:2::7"} {
			routes, err := netlink.RouteGet(netip.MustParseAddr(dst).AsSlice())
			if err != nil {
				return err
			}
			if r := routes[0]; r.LinkIndex != pair.IfIndex || r.Src.String() != own.String() || r.MTU != 1450 {
				t.Errorf("route to %s is %+v", dst, r)
			}
		}
		for device, want := range map[string]int{netdev.HostDevice: 1, netdev.HostPeer: 0} {
			link, err := netlink.LinkByName(device)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			if err != nil || len(addrs) != want || want == 1 && addrs[0].IPNet.String() != own.String()+"/128" {
				t.Errorf("%s has %v, %v", device, addrs, err)
			}
		}
		// It is the mesh's address: a route of the mesh may hold it.
		if needed, err := netdev.HostAddrs(); err != nil || slices.Contains(needed, own) {
			t.Errorf("the host needs %v, %v", needed, err)
		}
		// Without the range it goes.
		if _, err := netdev.EnsureHostDevice(netdev.HostConfig{}); err != nil {
			return err
		}
		link, err := netlink.LinkByName(netdev.HostDevice)
		if err != nil {
			return err
		}
		if addrs, err := netlink.AddrList(link, netlink.FAMILY_V6); err != nil || len(addrs) != 0 {
			t.Errorf("without a range: %v, %v", addrs, err)
		}
		return netdev.DeleteHostDevice()
	})
}

func macString(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Addresses of any device are the host's; those that nobody else can send to are
// not told, and each change wakes who watches.
func TestLocalAddrs(t *testing.T) {
	inNode(t, func(string) error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		changed, err := netdev.WatchAddrs(ctx)
		if err != nil {
			return err
		}
		for _, text := range []string{
			"172.30.77.1/32", "127.0.0.53/32", "169.254.7.7/32", "169.254.20.10/16 scope link", "10.9.8.7/24", "10.9.9.1/30",
			"10.9.10.1/31", "fd77::1/128", "fe80::7/128",
		} {
			text, link := strings.CutSuffix(text, " scope link")
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if link {
				a.Scope = unix.RT_SCOPE_LINK
			}
			if text == "10.9.9.1/30" {
				a.Broadcast = net.ParseIP("10.9.9.2").To4()
			}
			if err := netlink.AddrAdd(lo, a); err != nil {
				return fmt.Errorf("add %s: %w", text, err)
			}
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
			t.Error("new addresses wake nobody")
		}
		got, err := netdev.LocalAddrs()
		if err != nil {
			return err
		}
		slices.SortFunc(got, netip.Addr.Compare)
		var want []netip.Addr
		for _, text := range []string{
			"10.9.8.7", "10.9.8.255", "10.9.9.1", "10.9.9.2", "10.9.9.3", "10.9.10.1", "169.254.7.7", "169.254.20.10",
			"169.254.255.255", "172.30.77.1", "fd77::1",
		} {
			want = append(want, netip.MustParseAddr(text))
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		for _, a := range want {
			if err := takenIn(a); err != nil {
				t.Errorf("the kernel does not take in what is for %s: %v", a, err)
			}
		}
		return nil
	})
}

// takenIn waits until the kernel takes in what is for an address. For a new one of
// IPv6 it does so only when it has made sure of it, by a worker of its own, even where
// there is nobody to ask; it is the host's before.
func takenIn(a netip.Addr) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && (len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL && routes[0].Type != unix.RTN_BROADCAST) {
			err = fmt.Errorf("routed by %v", routes)
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
