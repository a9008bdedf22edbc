// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// hostDeviceName is what HostDeviceName makes.
const hostDeviceName = `^hwp[0-9a-f]{12}$`

// PodDevices lists the host's ends of the pods' pairs, those of EnsurePod, by
// name.
func PodDevices() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list pod devices: %w", err)
	}
	ours := regexp.MustCompile(hostDeviceName)
	var out []string
	for _, l := range links {
		if l.Type() == "veth" && ours.MatchString(l.Attrs().Name) {
			out = append(out, l.Attrs().Name)
		}
	}
	return out, nil
}

// HostDeviceExists reports whether the pair of EnsureHostDevice, or an end of
// it, is there.
func HostDeviceExists() (bool, error) {
	for _, name := range []string{HostDevice, HostPeer} {
		_, err := netlink.LinkByName(name)
		if err == nil {
			return true, nil
		}
		if !notFound(err) {
			return false, fmt.Errorf("look for %s: %w", name, err)
		}
	}
	return false, nil
}

// Stands reports whether the device with that index has this address, or this name
// where one is given: an index is given again where a network namespace was made
// anew, and addresses are changed by others (udev's MACAddressPolicy). What cannot
// be found out stands.
func Stands(ifIndex int, hostMAC [6]byte, name string) bool {
	l, err := netlink.LinkByIndex(ifIndex)
	if err != nil {
		return !notFound(err)
	}
	return mac(l) == hostMAC || name != "" && l.Attrs().Name == name
}

// PodGone reports whether a pod's pair is gone: the host's end, by its index
// whatever its name is now, and the pod's end in the namespace at netns, by its
// address. The kernel removes both ends together, so one that was moved to
// another namespace leaves the other. An empty netns means that only the host's
// end is known. What cannot be found out is an error, and not gone.
func PodGone(dev PodDevice, netns string) (bool, error) {
	_, err := netlink.LinkByIndex(dev.IfIndex)
	if !notFound(err) {
		return false, wrap(fmt.Sprintf("look for device %d", dev.IfIndex), err)
	}
	if netns == "" {
		return true, nil
	}
	there := false
	err = nsthread.InNetns(netns, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			there = there || mac(l) == dev.PodMAC
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // no file, or no namespace is mounted on it
		return true, nil
	}
	return err == nil && !there, wrap("look for the pod's device in "+netns, err)
}

// WatchRemoved delivers the indexes of devices that leave the calling thread's
// network namespace, until the context ends. The channel is closed then, and
// when the kernel had more to tell than was read.
func WatchRemoved(ctx context.Context) (<-chan int, error) {
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(updates, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch devices: %w", err)
	}
	removed := make(chan int)
	go func() {
		defer close(removed)
		for u := range updates { // is closed when the context ends, or the socket failed
			if u.Header.Type != unix.RTM_DELLINK {
				continue
			}
			select {
			case removed <- int(u.Index):
			case <-ctx.Done():
			}
		}
	}()
	return removed, nil
}
