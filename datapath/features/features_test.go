// SPDX-License-Identifier: Apache-2.0

package features

import (
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// TestDevices asks for kinds of devices, and leaves none.
func TestDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: asks for devices in a network namespace of its own")
	}
	err := nsthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		made := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, FlowBased: true, Port: 8472})
		for range 2 { // the second time with a device that holds the port
			has, err := VXLAN()
			if err != nil || has != (made == nil) {
				t.Errorf("VXLAN() is %v, %v; a device could be made: %v", has, err, made)
			}
		}
		if has, err := hasDevices("hawser-none"); has || err != nil {
			t.Errorf("devices of a kind that nobody has: %v, %v", has, err)
		}
		links, err := netlink.LinkList()
		for _, l := range links {
			if name := l.Attrs().Name; name != "lo" && name != "v0" && l.Type() != "sit" {
				t.Errorf("%s of type %s is left", name, l.Type())
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
