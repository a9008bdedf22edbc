// SPDX-License-Identifier: Apache-2.0

package netdev

import (
	"fmt"
	"regexp"

	"github.com/vishvananda/netlink"
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
