// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TunnelDevice is the kernel's VXLAN device, for nodes where the kernel makes the
// tunnel's headers. It has no peers of its own: the programs say of each packet
// where it goes and as whom.
const TunnelDevice = "hawser_vxlan"

const (
	// tunnelMTU is the largest that the kernel takes: what fits is the programs'
	// to say, for each path.
	tunnelMTU = 65535
	// Source ports of outer headers, the same as the programs choose theirs from.
	firstTunnelPort, lastTunnelPort = 0x8000, 0xFFFF
)

// tunnelMAC is the inner destination address of all tunnel packets, so that the
// device does not take them for somebody else's. It must not be the inner source
// address, of which the kernel takes packets for its own.
func tunnelMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0, 0, 0, 0, 0} }

// TunnelConfig is what the tunnel's device should be.
type TunnelConfig struct {
	Port uint16 // of UDP; the device holds it on all addresses of the host
	// IfIndex is the index that a device made anew gets; 0: any.
	IfIndex int
}

// ErrNoVXLAN says that the kernel has no VXLAN devices.
var ErrNoVXLAN = errors.New("this kernel has no VXLAN devices: load its module vxlan, or have the tunnel's headers made in eBPF: --tunnel-datapath=ebpf")

// ErrPortInUse says that somebody else has the tunnel's port.
var ErrPortInUse = errors.New("the tunnel's UDP port is in use")

// EnsureTunnelDevice makes the tunnel's device, without any address, ARP, IPv6 or
// forwarding and with reverse path filtering, strict unless the host's
// all.rp_filter is looser: the host's own stack takes nothing from it. One that is
// there and differs is made anew, since the kernel changes neither its port nor its
// mode in place, and keeps its index if it can: programs that run know it by that. A
// new one is down, and holds no port, until SetTunnelUp; that its port is free is made
// sure of. It returns the device's index. The error is ErrNoVXLAN or ErrPortInUse
// where that is why.
func EnsureTunnelDevice(ctx context.Context, cfg TunnelConfig) (ifindex int, err error) {
	link, err := ensureTunnelDevice(ctx, cfg)
	if err != nil {
		return 0, fmt.Errorf("make tunnel device %s: %w", TunnelDevice, err)
	}
	return link.Attrs().Index, nil
}

func ensureTunnelDevice(ctx context.Context, cfg TunnelConfig) (netlink.Link, error) {
	link, err := netlink.LinkByName(TunnelDevice)
	switch {
	case notFound(err):
	case err != nil:
		return nil, fmt.Errorf("look for it: %w", err)
	case link.Type() != "vxlan":
		return nil, fmt.Errorf("there is a device of that name which is of type %s: remove it", link.Type())
	case !isTunnel(link, cfg):
		if err := netlink.LinkDel(link); err != nil {
			return nil, fmt.Errorf("remove the one that is there, which differs: %w", err)
		}
		if cfg.IfIndex == 0 {
			again := cfg
			again.IfIndex = link.Attrs().Index
			if made, err := addTunnelDevice(ctx, again); err == nil {
				return made, quietTunnelDevice(made)
			} // below with any index, or with what else is wrong
		}
		link = nil
	}
	if link == nil || notFound(err) {
		if link, err = addTunnelDevice(ctx, cfg); err != nil {
			return nil, err
		}
	}
	return link, quietTunnelDevice(link)
}

func addTunnelDevice(ctx context.Context, cfg TunnelConfig) (netlink.Link, error) {
	if err := portIsFree(ctx, cfg.Port); err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Index, attrs.HardwareAddr = TunnelDevice, tunnelMTU, cfg.IfIndex, tunnelMAC()
	err := netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, FlowBased: true, Port: int(cfg.Port), PortLow: firstTunnelPort, PortHigh: lastTunnelPort,
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, ErrNoVXLAN
	case errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EADDRINUSE): // another device takes all of the port's packets
		return nil, portInUse(cfg.Port, err)
	case err != nil && cfg.IfIndex != 0:
		return nil, fmt.Errorf("add VXLAN device with index %d: %w", cfg.IfIndex, err)
	case err != nil:
		return nil, fmt.Errorf("add VXLAN device: %w", err)
	}
	link, err := netlink.LinkByName(TunnelDevice)
	if err != nil {
		return nil, fmt.Errorf("find it: %w", err)
	}
	return link, nil
}

// isTunnel reports whether a VXLAN device is as EnsureTunnelDevice makes it.
func isTunnel(link netlink.Link, cfg TunnelConfig) bool {
	v, ok := link.(*netlink.Vxlan)
	return ok && v.FlowBased && !v.GBP && !v.Learning && v.VtepDevIndex == 0 && v.SrcAddr == nil &&
		v.Port == int(cfg.Port) && v.PortLow == firstTunnelPort && v.PortHigh == lastTunnelPort && v.MTU == tunnelMTU &&
		bytes.Equal(v.HardwareAddr, tunnelMAC()) &&
		(cfg.IfIndex == 0 || cfg.IfIndex == v.Index)
}

// quietTunnelDevice leaves the host's stack nothing to say or take there.
func quietTunnelDevice(link netlink.Link) error {
	if err := quietIPv6(TunnelDevice); err != nil {
		return err
	}
	if err := netlink.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("turn off ARP: %w", err)
	}
	if err := setSysctl("net/ipv4/conf/"+TunnelDevice+"/forwarding", "0"); err != nil {
		return err
	}
	return setSysctl("net/ipv4/conf/"+TunnelDevice+"/rp_filter", "1")
}

// SetTunnelUp has the tunnel's device take and send packets: from then on it holds
// its port. The error is ErrPortInUse when somebody else has it.
func SetTunnelUp(port uint16) error {
	link, err := netlink.LinkByName(TunnelDevice)
	if err == nil {
		err = setUp(link)
	}
	return wrap("set tunnel device "+TunnelDevice+" up", PortInUse(port, err))
}

// PortInUse makes the error of a device that could not be set up tell, where it is
// because somebody has the tunnel's port, how to find out who.
func PortInUse(port uint16, cause error) error {
	if errors.Is(cause, unix.EADDRINUSE) {
		return portInUse(port, cause)
	}
	return cause
}

func portInUse(port uint16, cause error) error {
	return fmt.Errorf("%w: %d, probably by another tunnel (see: ss -lunp, ip -d link show type vxlan); "+
		"remove that, or choose another --tunnel-port in the whole mesh: %w", ErrPortInUse, port, cause)
}

// portIsFree binds the port on all addresses, as the device will, and lets it go.
func portIsFree(ctx context.Context, port uint16) error {
	for network, all := range map[string]netip.Addr{"udp4": netip.IPv4Unspecified(), "udp6": netip.IPv6Unspecified()} {
		var lc net.ListenConfig
		conn, err := lc.ListenPacket(ctx, network, netip.AddrPortFrom(all, port).String())
		switch {
		case err == nil:
			if err := conn.Close(); err != nil {
				return fmt.Errorf("try UDP port %d: %w", port, err)
			}
		case errors.Is(err, unix.EADDRINUSE):
			return portInUse(port, err)
		case network == "udp4": // a host without IPv6 is one
			return fmt.Errorf("try UDP port %d: %w", port, err)
		}
	}
	return nil
}

// DeleteTunnelDevice removes the tunnel's device; its port is free then. One of
// another type is left, and one that is not there is no error.
func DeleteTunnelDevice() error {
	there, err := TunnelDeviceExists()
	if err != nil || !there {
		return err
	}
	return deleteLink(TunnelDevice)
}

// TunnelDeviceExists reports whether the tunnel's device is there.
func TunnelDeviceExists() (bool, error) {
	link, err := netlink.LinkByName(TunnelDevice)
	if notFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", TunnelDevice, err)
	}
	return link.Type() == "vxlan", nil
}

// WatchDevices wakes the channel when something becomes of the devices of those names
// in the calling thread's network namespace, another name too, until the context ends. Several
// changes may wake it once. It is closed with the context, and when the kernel had
// more to tell than was read.
func WatchDevices(ctx context.Context, names ...string) (<-chan struct{}, error) {
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(updates, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch devices %s: %w", strings.Join(names, ", "), err)
	}
	known := map[int]bool{} // by index: of those that get another name
	for _, name := range names {
		if l, err := netlink.LinkByName(name); err == nil {
			known[l.Attrs().Index] = true
		}
	}
	wake := make(chan struct{}, 1)
	go func() {
		defer close(wake)
		for u := range updates { // is closed when the context ends, or the socket failed
			named := slices.Contains(names, u.Attrs().Name)
			if !named && !known[u.Attrs().Index] {
				continue
			}
			known[u.Attrs().Index] = named
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}()
	return wake, nil
}
