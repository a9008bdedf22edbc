// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// Gateway4 and Gateway6 are the next hops of every pod. No device has them: the
// programs on the pod's host side answer for them.
func Gateway4() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }

// Gateway6 is the IPv6 counterpart of Gateway4.
func Gateway6() netip.Addr { return netip.MustParseAddr("fe80::1") }

// PodConfig is what a pod's pair should be.
type PodConfig struct {
	ContainerID string
	Netns       string // path of the pod's network namespace
	IfName      string // in the pod; "" means eth0
	Addrs       []netip.Addr
	MTU         int // of both devices, bytes; 0 means 1500
	RouteMTU    int // of the pod's routes: MTU less what a tunnel adds; 0 means MTU
}

func (c PodConfig) withDefaults() (PodConfig, error) {
	if c.IfName == "" {
		c.IfName = "eth0"
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.RouteMTU == 0 {
		c.RouteMTU = c.MTU
	}
	var errs []error
	if c.ContainerID == "" {
		errs = append(errs, errors.New("no container id"))
	}
	if c.Netns == "" {
		errs = append(errs, errors.New("no network namespace"))
	}
	if c.RouteMTU > c.MTU {
		errs = append(errs, fmt.Errorf("route MTU %d is above the device's %d", c.RouteMTU, c.MTU))
	}
	if len(c.Addrs) == 0 {
		errs = append(errs, errors.New("no address"))
	}
	return c, errors.Join(errs...)
}

// PodDevice is a pod's pair as it is.
type PodDevice struct {
	HostDevice string
	IfIndex    int // of HostDevice
	HostMAC    [6]byte
	PodMAC     [6]byte
	MTU        int
}

// HostDeviceName is the name of the host's end of a pod's pair: the same for
// the same container and interface, at most 15 characters.
func HostDeviceName(containerID, ifName string) string {
	if ifName == "" {
		ifName = "eth0"
	}
	sum := sha256.Sum256([]byte(containerID + "/" + ifName))
	return "hwp" + hex.EncodeToString(sum[:6])
}

// EnsurePod makes the pod's pair equal to cfg and returns it: devices up,
// addresses of full length, routes through the link-local gateway with the
// route's MTU, no IPv6 autoconfiguration, no segmentation of UDP and SCTP left to others.
func EnsurePod(cfg PodConfig) (PodDevice, error) {
	cfg, err := cfg.withDefaults()
	name := HostDeviceName(cfg.ContainerID, cfg.IfName)
	if err != nil {
		return PodDevice{}, fmt.Errorf("make pod device %s: %w", name, err)
	}
	dev, err := ensurePod(name, cfg)
	if err != nil {
		return PodDevice{}, fmt.Errorf("make pod device %s of %s: %w", name, cfg.Netns, err)
	}
	return dev, nil
}

func ensurePod(name string, cfg PodConfig) (PodDevice, error) {
	ns, err := os.Open(cfg.Netns)
	if err != nil {
		return PodDevice{}, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	host, err := podPair(name, ns, cfg)
	if err != nil {
		return PodDevice{}, err
	}
	if err := setupHostSide(host, cfg); err != nil {
		return PodDevice{}, err
	}
	dev := PodDevice{HostDevice: name, IfIndex: host.Attrs().Index, HostMAC: mac(host), MTU: cfg.MTU}
	err = nsthread.InNetns(cfg.Netns, func() error {
		link, err := netlink.LinkByName(cfg.IfName)
		if err != nil {
			return fmt.Errorf("find %s in the pod: %w", cfg.IfName, err)
		}
		dev.PodMAC = mac(link)
		return setupPodSide(link, cfg)
	})
	return dev, err
}

// podPair finds the pair or makes it. The peer is born in the pod's namespace
// under its final name, so there is nothing half-made to clean up. A pair whose
// peer is elsewhere belongs to a dead namespace of the same container.
func podPair(name string, ns *os.File, cfg PodConfig) (netlink.Link, error) {
	host, err := netlink.LinkByName(name)
	if err == nil {
		ok, err := peerIs(cfg.Netns, cfg.IfName, host)
		if err != nil || ok {
			return host, err
		}
		if err := netlink.LinkDel(host); err != nil {
			return nil, fmt.Errorf("remove stale pair: %w", err)
		}
	} else if !notFound(err) {
		return nil, fmt.Errorf("look for pair: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, cfg.MTU
	// An address that was set is left by udev; one that the kernel chose is replaced
	// some time later (MACAddressPolicy=persistent).
	if attrs.HardwareAddr, err = randomMAC(); err != nil {
		return nil, err
	}
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: cfg.IfName, PeerMTU: uint32(cfg.MTU),
		PeerNamespace: netlink.NsFd(int(ns.Fd())),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add veth pair with %s in the pod: %w", cfg.IfName, err)
	}
	return netlink.LinkByName(name)
}

func peerIs(netns, ifName string, host netlink.Link) (ok bool, err error) {
	err = nsthread.InNetns(netns, func() error {
		link, err := netlink.LinkByName(ifName)
		if notFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for %s in the pod: %w", ifName, err)
		}
		ok = link.Type() == "veth" && link.Attrs().ParentIndex == host.Attrs().Index &&
			host.Attrs().ParentIndex == link.Attrs().Index
		return nil
	})
	return ok, err
}

// DeletePod removes the host's end, and with it the pod's. Removing what is not
// there is no error.
func DeletePod(hostDevice string) error { return deleteLink(hostDevice) }

func setupHostSide(host netlink.Link, cfg PodConfig) error {
	name := host.Attrs().Name
	if host.Attrs().MTU != cfg.MTU {
		if err := netlink.LinkSetMTU(host, cfg.MTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", name, err)
		}
	}
	// The programs move what goes to the mesh; what a pod sends to the outside,
	// and only that, is the host's stack's to forward.
	if err := setSysctl("net/ipv4/conf/"+name+"/forwarding", "1"); err != nil {
		return err
	}
	// Addresses of its own would only make noise.
	_, has6 := families(cfg.Addrs)
	if err := hostIPv6(name, has6); err != nil {
		return err
	}
	if has6 {
		if err := forwardIPv6(name); err != nil {
			return err
		}
	}
	return setUp(host)
}

func setupPodSide(link netlink.Link, cfg PodConfig) error {
	if link.Attrs().MTU != cfg.MTU {
		if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", cfg.IfName, err)
		}
	}
	has4, has6 := families(cfg.Addrs)
	if err := podIPv6(cfg.IfName, has6); err != nil {
		return err
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		if err := setUp(lo); err != nil {
			return err
		}
	}
	if err := setUp(link); err != nil {
		return err
	}
	if err := ensureAddrs(link, cfg.Addrs); err != nil {
		return err
	}
	if has4 {
		if err := podRoutes(link, Gateway4(), cfg.RouteMTU); err != nil {
			return err
		}
	}
	if has6 {
		if err := podRoutes(link, Gateway6(), cfg.RouteMTU); err != nil {
			return err
		}
	}
	return disableTrains(cfg.IfName)
}

// podRoutes sets the route to the gateway and the default route through it.
func podRoutes(link netlink.Link, gw netip.Addr, mtu int) error {
	index := link.Attrs().Index
	toGateway := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(gw, gw.BitLen())), MTU: mtu}
	if err := netlink.RouteReplace(toGateway); err != nil {
		return fmt.Errorf("set pod route to %s: %w", gw, err)
	}
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	def := &netlink.Route{LinkIndex: index, Gw: gw.AsSlice(), Dst: ipNet(all), MTU: mtu, Flags: int(netlink.FLAG_ONLINK)}
	if err := netlink.RouteReplace(def); err != nil {
		return fmt.Errorf("set pod default route via %s: %w", gw, err)
	}
	return nil
}

// ensureAddrs gives link exactly these addresses, link-local ones aside.
func ensureAddrs(link netlink.Link, want []netip.Addr) error {
	missing := make(map[netip.Addr]bool, len(want))
	for _, a := range want {
		missing[a] = true
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, h := range have {
		a, _ := netip.AddrFromSlice(h.IP)
		a = a.Unmap()
		ones, bits := h.Mask.Size()
		if missing[a] && ones == bits {
			delete(missing, a)
			continue
		}
		if a.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &h); err != nil {
			return fmt.Errorf("remove address %s: %w", a, err)
		}
	}
	for a := range missing {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))}
		if a.Is6() {
			// Even where nothing is detected, a new address is tentative until the
			// kernel's worker has run: nothing binds it, no route has it as source.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return nil
}

func families(addrs []netip.Addr) (has4, has6 bool) {
	for _, a := range addrs {
		if a.Is4() {
			has4 = true
		} else {
			has6 = true
		}
	}
	return has4, has6
}

// randomMAC is a locally administered unicast address.
func randomMAC() (net.HardwareAddr, error) {
	m := make(net.HardwareAddr, 6)
	if _, err := rand.Read(m); err != nil {
		return nil, fmt.Errorf("choose a hardware address: %w", err)
	}
	m[0] = m[0]&^1 | 2
	return m, nil
}

func mac(link netlink.Link) [6]byte {
	var m [6]byte
	copy(m[:], link.Attrs().HardwareAddr)
	return m
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
