// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LocalAddrs are the addresses of this host, of all devices, that others can send
// to: neither loopback nor multicast, and of IPv6 nothing that is of one link only.
// What is sent to a link-local IPv4 address is taken in from anywhere, whatever its
// scope, and so is what is sent to the broadcast address of a subnet, which is among
// them.
func LocalAddrs() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		own, ok := netip.AddrFromSlice(a.IP)
		own = own.Unmap()
		switch {
		case !ok:
		case own.Is4():
			for _, to := range append(broadcasts(a), own) {
				if !to.IsLoopback() && !to.IsMulticast() && !to.IsUnspecified() && !slices.Contains(out, to) {
					out = append(out, to)
				}
			}
		case a.Scope < unix.RT_SCOPE_LINK && own.IsGlobalUnicast():
			out = append(out, own)
		}
	}
	return out, nil
}

// broadcasts are the addresses that mean all hosts of an IPv4 address's subnet, this
// one too: the last one, and what was set by hand.
func broadcasts(a netlink.Addr) (out []netip.Addr) {
	subnet := a.IPNet
	if a.Peer != nil {
		subnet = a.Peer
	}
	const hosts = 30 // longer prefixes have no broadcast address
	if ones, bits := subnet.Mask.Size(); bits == 8*net.IPv4len && ones <= hosts {
		last := make(net.IP, net.IPv4len)
		for i, b := range subnet.IP.To4() {
			last[i] = b | ^subnet.Mask[i]
		}
		own, _ := netip.AddrFromSlice(last)
		out = append(out, own)
	}
	if set, ok := netip.AddrFromSlice(a.Broadcast); ok && set.Unmap() != netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		out = append(out, set.Unmap())
	}
	return out
}

// WatchAddrs wakes the channel when addresses of this host come or go, until the
// context ends. Several changes may wake it once.
func WatchAddrs(ctx context.Context) (<-chan struct{}, error) {
	updates := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribe(updates, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	wake := make(chan struct{}, 1)
	go func() {
		for range updates { // is closed when the context ends, or the socket failed
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}()
	return wake, nil
}
