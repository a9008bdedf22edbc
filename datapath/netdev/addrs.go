// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LocalAddrs are the addresses of this host, of all devices, that others can send
// to: neither loopback nor link-local nor multicast.
func LocalAddrs() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		own, ok := netip.AddrFromSlice(a.IP)
		own = own.Unmap()
		if ok && a.Scope < unix.RT_SCOPE_LINK && own.IsGlobalUnicast() {
			out = append(out, own)
		}
	}
	return out, nil
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
