// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of the pair between the node's own stack and the programs. Routes to
// pods go out of HostDevice; the programs sit on HostPeer.
const (
	HostDevice = "hawser_host"
	HostPeer   = "hawser_net"
)

// routeProtocol marks the routes that this package makes, so that they can be
// told from the operator's (see /etc/iproute2/rt_protos for the others).
const routeProtocol netlink.RouteProtocol = 0x68

// HostPair is the host pair as it is.
type HostPair struct {
	IfIndex     int // of HostDevice
	PeerIfIndex int // of HostPeer
	MAC         [6]byte
	PeerMAC     [6]byte
}

// HostConfig is what the host pair should be.
type HostConfig struct {
	MTU int // bytes; 0 means 1500
	// Addr6 is the node's own IPv6 address towards pods; the zero Addr: it has
	// none.
	Addr6 netip.Addr
	// As is the pair as programs that run know it: one that is not has the index and
	// the addresses set again, or is made anew with them. Its PeerIfIndex does not
	// count; the zero HostPair: any.
	As HostPair
}

// EnsureHostDevice makes the host pair: up, without other addresses than Addr6
// and without ARP and NDP (the programs see every packet, there is no neighbour
// to ask), and without reverse path filtering on the node's end, where packets
// from all pods arrive. A pair that has lost an end is made anew.
func EnsureHostDevice(cfg HostConfig) (HostPair, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	pair, err := ensureHostDevice(cfg)
	if err != nil {
		return HostPair{}, fmt.Errorf("make host device %s: %w", HostDevice, err)
	}
	return pair, nil
}

func ensureHostDevice(cfg HostConfig) (HostPair, error) {
	stands, err := hostPairStands(cfg.As)
	if err != nil {
		return HostPair{}, err
	}
	if !stands {
		if err := errors.Join(deleteLink(HostDevice), deleteLink(HostPeer)); err != nil {
			return HostPair{}, err
		}
		if err := addHostPair(cfg); err != nil {
			return HostPair{}, fmt.Errorf("add veth pair: %w", err)
		}
	}
	host, err := netlink.LinkByName(HostDevice)
	if err != nil {
		return HostPair{}, fmt.Errorf("find %s: %w", HostDevice, err)
	}
	peer, err := netlink.LinkByName(HostPeer)
	if err != nil {
		return HostPair{}, fmt.Errorf("find %s: %w", HostPeer, err)
	}
	if host.Type() != "veth" || host.Attrs().ParentIndex != peer.Attrs().Index {
		return HostPair{}, fmt.Errorf("%s and %s are there but are no pair: remove them", HostDevice, HostPeer)
	}
	if cfg.As != (HostPair{}) {
		if err := errors.Join(ensureMAC(host, cfg.As.MAC), ensureMAC(peer, cfg.As.PeerMAC)); err != nil {
			return HostPair{}, err
		}
	}
	for _, link := range []netlink.Link{host, peer} {
		if err := setupHostPairSide(link, cfg); err != nil {
			return HostPair{}, err
		}
	}
	if err := setSysctl("net/ipv4/conf/"+HostDevice+"/rp_filter", "0"); err != nil {
		return HostPair{}, err
	}
	return HostPair{
		IfIndex: host.Attrs().Index, PeerIfIndex: peer.Attrs().Index, MAC: mac(host), PeerMAC: mac(peer),
	}, nil
}

// hostPairStands reports whether both ends are there, under the index that programs
// know. Ends that are no veths are somebody else's: that is an error.
func hostPairStands(as HostPair) (bool, error) {
	stands := true
	for _, name := range []string{HostDevice, HostPeer} {
		link, err := netlink.LinkByName(name)
		switch {
		case notFound(err):
			stands = false
		case err != nil:
			return false, fmt.Errorf("find %s: %w", name, err)
		case link.Type() != "veth":
			return false, fmt.Errorf("there is a device %s which is of type %s: remove it", name, link.Type())
		case name == HostDevice && as.IfIndex != 0 && link.Attrs().Index != as.IfIndex:
			stands = false
		}
	}
	return stands, nil
}

// ensureMAC sets a device's hardware address, unless it has it.
func ensureMAC(link netlink.Link, want [6]byte) error {
	if mac(link) == want {
		return nil
	}
	if err := netlink.LinkSetHardwareAddr(link, want[:]); err != nil {
		return fmt.Errorf("set address of %s: %w", link.Attrs().Name, err)
	}
	link.Attrs().HardwareAddr = want[:]
	return nil
}

// addHostPair sets both addresses, as podPair does and for the same reason: programs
// write and compare them.
func addHostPair(cfg HostConfig) (err error) {
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: HostPeer, PeerMTU: uint32(cfg.MTU)}
	veth.Name, veth.MTU = HostDevice, cfg.MTU
	if cfg.As != (HostPair{}) {
		veth.Index, veth.HardwareAddr, veth.PeerHardwareAddr = cfg.As.IfIndex, cfg.As.MAC[:], cfg.As.PeerMAC[:]
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("with index %d: %w", cfg.As.IfIndex, err)
		}
		return nil
	}
	if veth.HardwareAddr, err = randomMAC(); err != nil {
		return err
	}
	if veth.PeerHardwareAddr, err = randomMAC(); err != nil {
		return err
	}
	return netlink.LinkAdd(veth)
}

func setupHostPairSide(link netlink.Link, cfg HostConfig) error {
	name := link.Attrs().Name
	if link.Attrs().MTU != cfg.MTU {
		if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", name, err)
		}
	}
	has6 := name == HostDevice && cfg.Addr6.IsValid()
	if err := hostIPv6(name, has6); err != nil {
		return err
	}
	if err := netlink.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("turn off ARP on %s: %w", name, err)
	}
	if err := setUp(link); err != nil {
		return err
	}
	if name != HostDevice {
		return nil
	}
	if err := disableTrains(name); err != nil || !has6 {
		return err
	}
	return ensureAddrs(link, []netip.Addr{cfg.Addr6})
}

// DeleteHostDevice removes the host pair and with it all routes through it.
func DeleteHostDevice() error { return deleteLink(HostDevice) }

// EnsureRoute sets the node's route to a pod prefix through the host pair. src is the
// node's own address of the prefix's family, mtu the path's in bytes (0: the
// device's). A route that somebody else has made is left: ErrForeignRoute.
func EnsureRoute(prefix netip.Prefix, src netip.Addr, mtu int) error {
	link, err := netlink.LinkByName(HostDevice)
	if err != nil {
		return fmt.Errorf("set route to %s: find %s: %w", prefix, HostDevice, err)
	}
	r := &netlink.Route{
		LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(prefix.Masked()),
		Src: src.AsSlice(), MTU: mtu, Protocol: routeProtocol,
	}
	if prefix.Addr().Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE // IPv6 routes have no other
	}
	err = netlink.RouteAdd(r)
	if errors.Is(err, unix.EEXIST) {
		if err = ours(prefix); err == nil {
			err = netlink.RouteReplace(r)
		}
	}
	if err != nil {
		return fmt.Errorf("set route to %s: %w", prefix, err)
	}
	return nil
}

// ErrForeignRoute says that a route would take what is not the mesh's to take.
var ErrForeignRoute = errors.New("it is not the mesh's to route")

// ours reports an error unless the route to a prefix is of EnsureRoute.
func ours(prefix netip.Prefix) error {
	family := netlink.FAMILY_V4
	if prefix.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteList(nil, family)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Protocol != routeProtocol && routePrefix(r) == prefix.Masked() {
			return fmt.Errorf("%w: the host has a route to it (protocol %d)", ErrForeignRoute, r.Protocol)
		}
	}
	return nil
}

// HostAddrs are the addresses of this host, and the gateways that it uses: a
// route of the mesh that holds one of them would cut the host off. What
// EnsureHostDevice gave the host is the mesh's, and not among them.
func HostAddrs() ([]netip.Addr, error) {
	var out []netip.Addr
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	device := 0
	if link, err := netlink.LinkByName(HostDevice); err == nil {
		device = link.Attrs().Index
	}
	for _, a := range addrs {
		if a.LinkIndex == device && device != 0 {
			continue
		}
		if own, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, own.Unmap())
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if gw, ok := netip.AddrFromSlice(r.Gw); ok {
			out = append(out, gw.Unmap())
		}
	}
	return out, nil
}

// DeleteRoute removes a route of EnsureRoute; one that is not there is no error.
func DeleteRoute(prefix netip.Prefix) error {
	routes, err := ownRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if routePrefix(r) != prefix.Masked() {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("remove route to %s: %w", prefix, err)
		}
	}
	return nil
}

// Routes lists the prefixes that have a route of EnsureRoute.
func Routes() ([]netip.Prefix, error) {
	routes, err := ownRoutes()
	if err != nil {
		return nil, err
	}
	out := make([]netip.Prefix, len(routes))
	for i, r := range routes {
		out[i] = routePrefix(r)
	}
	return out, nil
}

func ownRoutes() ([]netlink.Route, error) {
	link, err := netlink.LinkByName(HostDevice)
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list routes: find %s: %w", HostDevice, err)
	}
	filter := &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: routeProtocol}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes of %s: %w", HostDevice, err)
	}
	return routes, nil
}

func routePrefix(r netlink.Route) netip.Prefix {
	a, _ := netip.AddrFromSlice(r.Dst.IP)
	ones, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

// Device is a device that somebody else made, such as the underlay.
type Device struct {
	Name    string
	Type    string // "veth", "vxlan" …; "device" for a network card
	IfIndex int
	MAC     [6]byte
	MTU     int
	Addrs   []netip.Prefix
}

// Lookup describes a device by name.
func Lookup(name string) (Device, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return Device{}, fmt.Errorf("find device %s: %w", name, err)
	}
	d := Device{Name: name, Type: link.Type(), IfIndex: link.Attrs().Index, MAC: mac(link), MTU: link.Attrs().MTU}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return Device{}, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		d.Addrs = append(d.Addrs, netip.PrefixFrom(ip.Unmap(), ones))
	}
	return d, nil
}

func setUp(link netlink.Link) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	return nil
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !notFound(err) {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

func notFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf)
}
