// SPDX-License-Identifier: Apache-2.0

package netdev_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// The address for the outside is one that stays and is reached from there, and the one
// from before as long as the device has it.
func TestOutsideAddr6(t *testing.T) {
	inNode(t, func(string) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "under0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "under1"}); err != nil {
			return err
		}
		dev, err := netlink.LinkByName("under0")
		if err != nil {
			return err
		}
		expect := func(before, want string) error {
			was, _ := netip.ParseAddr(before) // "" is none
			is, _ := netip.ParseAddr(want)
			got, err := netdev.OutsideAddr6("under0", was)
			if got != is {
				t.Errorf("before %q: got %s, want %q", before, got, want)
			}
			return err
		}
		if err := expect("", ""); err != nil {
			return err
		}
		var now string
		for _, step := range []struct {
			text  string
			flags int
			spent bool // its preferred lifetime
			want  string
		}{
			{"192.0.2.1/24", 0, false, ""}, {"fe80::7/64", unix.IFA_F_NODAD, false, ""},
			{"2001:db8::1/64", unix.IFA_F_NODAD, true, ""},
			{"fd00:1::1/64", unix.IFA_F_NODAD, false, "fd00:1::1"}, {"2001:db8::9/64", unix.IFA_F_NODAD, false, "2001:db8::9"},
			{"2001:db8::7/64", unix.IFA_F_NODAD, false, "2001:db8::7"}, {"fd00::1/64", unix.IFA_F_NODAD, false, "2001:db8::7"},
		} {
			a, err := netlink.ParseAddr(step.text)
			if err != nil {
				return err
			}
			if a.Flags = step.flags; step.spent {
				a.PreferedLft, a.ValidLft = 0, 3600
			}
			if err := netlink.AddrAdd(dev, a); err != nil {
				return fmt.Errorf("add %s: %w", step.text, err)
			}
			if err := expect("", step.want); err != nil {
				return err
			}
			now = step.want
		}
		for before, want := range map[string]string{"fd00::1": "fd00::1", "2001:db8::1": "2001:db8::1", "2001:db8::99": now} {
			if err := expect(before, want); err != nil {
				return err
			}
		}
		if _, err := netdev.OutsideAddr6("none", netip.Addr{}); err == nil {
			t.Error("no device is no error")
		}
		return nil
	})
}

// An address that the kernel has not made sure of yet is waited for, where none else
// is ready or flows have it; nothing else is, and not for ever.
func TestAwaitOutsideAddr6(t *testing.T) {
	inNode(t, func(string) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "under0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "under1"}); err != nil {
			return err
		}
		links := map[string]netlink.Link{}
		for _, name := range []string{"under0", "under1"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("0"), 0o644); err != nil {
				return err
			}
			var err error
			if links[name], err = netlink.LinkByName(name); err != nil {
				return err
			}
		}
		add := func(text string, flags int) (netip.Addr, error) {
			a, err := netlink.ParseAddr(text + "/64")
			if err != nil {
				return netip.Addr{}, err
			}
			a.Flags = flags
			return netip.MustParseAddr(text), netlink.AddrAdd(links["under0"], a)
		}
		expect := func(what string, before, want netip.Addr, most time.Duration) {
			t.Helper()
			if got, err := netdev.AwaitOutsideAddr6(t.Context(), "under0", before, most); err != nil || got != want {
				t.Errorf("%s: %v, %v; want %v", what, got, err, want)
			}
		}
		// A device that is down makes sure of nothing.
		slow, err := add("2001:db8::1", 0)
		if err != nil {
			return err
		}
		expect("never ready", netip.Addr{}, netip.Addr{}, 100*time.Millisecond)
		if err := errors.Join(netlink.LinkSetUp(links["under0"]), netlink.LinkSetUp(links["under1"])); err != nil {
			return err
		}
		expect("the only one", netip.Addr{}, slow, time.Minute)
		flows, err := add("2001:db8::2", 0)
		if err != nil {
			return err
		}
		expect("another is ready", netip.Addr{}, slow, time.Minute)
		expect("flows have it", flows, flows, time.Minute)
		expect("it is gone", netip.MustParseAddr("2001:db8::99"), slow, time.Minute)
		return nil
	})
}
