// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

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

// OutsideAddr6 is the IPv6 address that stands for this host outside, of those that a
// device has: the one from before if it is there still, else a global one before a
// unique local one, and of several the lowest. Temporary addresses, deprecated ones and
// those that are not ready do not count. It is the zero Addr if there is none.
func OutsideAddr6(device string, before netip.Addr) (netip.Addr, error) {
	a, _, err := outsideAddr6(device, before)
	return a, err
}

// AwaitOutsideAddr6 is OutsideAddr6, and waits while the kernel still finds out
// whether the address from before, or of none that is ready any, is nobody else's
// (RFC 4862): at most for the time given, then what is ready counts.
func AwaitOutsideAddr6(ctx context.Context, device string, before netip.Addr, most time.Duration) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(most / 50)
	defer tick.Stop()
	for {
		a, coming, err := outsideAddr6(device, before)
		if err != nil || !coming {
			return a, err
		}
		select {
		case <-ctx.Done():
			return a, nil
		case <-tick.C:
		}
	}
}

// outsideAddr6 also reports whether a better one, or one at all, is not ready yet.
func outsideAddr6(device string, before netip.Addr) (best netip.Addr, coming bool, err error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return netip.Addr{}, false, fmt.Errorf("find device %s: %w", device, err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return netip.Addr{}, false, fmt.Errorf("list IPv6 addresses of %s: %w", device, err)
	}
	const unready = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	const passing = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unready
	var soon, again bool // some address is not ready yet, the one from before is not
	for _, a := range list {
		own, _ := netip.AddrFromSlice(a.IP)
		waits := a.Flags&unready == unix.IFA_F_TENTATIVE
		switch {
		case own == before && a.Flags&unready == 0:
			return own, false, nil
		case own == before && waits:
			again = true
		case !own.IsGlobalUnicast() || own.Is4In6() || a.Scope >= unix.RT_SCOPE_LINK:
		case waits:
			soon = soon || a.Flags&(passing&^unix.IFA_F_TENTATIVE) == 0
		case a.Flags&passing != 0:
		case !best.IsValid() || best.IsPrivate() && !own.IsPrivate() || best.IsPrivate() == own.IsPrivate() && own.Less(best):
			best = own
		}
	}
	return best, again || soon && !best.IsValid(), nil
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
