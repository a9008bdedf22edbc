// SPDX-License-Identifier: Apache-2.0

package netdev_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/datapath/netdev"
)

const tunnelPort = 8472

// ensureTunnel makes the device and sets it up, as an agent does.
func ensureTunnel(t *testing.T, cfg netdev.TunnelConfig) *netlink.Vxlan {
	t.Helper()
	index, err := netdev.EnsureTunnelDevice(t.Context(), cfg)
	if err == nil {
		err = netdev.SetTunnelUp(cfg.Port)
	}
	if err != nil {
		t.Error(err)
		return &netlink.Vxlan{}
	}
	link, err := netlink.LinkByName(netdev.TunnelDevice)
	v, ok := link.(*netlink.Vxlan)
	if !ok || v.Index != index {
		t.Errorf("the device is %v, %v; reported index %d", link, err, index)
		return &netlink.Vxlan{}
	}
	return v
}

func TestEnsureTunnelDevice(t *testing.T) {
	inNode(t, func(string) error {
		cfg := netdev.TunnelConfig{Port: tunnelPort}
		if _, err := netdev.EnsureTunnelDevice(t.Context(), cfg); err != nil {
			return err
		}
		if link, err := netlink.LinkByName(netdev.TunnelDevice); err != nil || link.Attrs().Flags&net.FlagUp != 0 {
			t.Errorf("a new device has flags %v, %v; want it down, until a program is on it", link.Attrs().Flags, err)
		}
		v := ensureTunnel(t, cfg)
		if !v.FlowBased || v.Learning || v.Port != tunnelPort || v.PortLow != 32768 || v.PortHigh != 65535 || v.MTU != 65535 ||
			v.HardwareAddr.String() != "02:00:00:00:00:00" {
			t.Errorf("made %+v", v)
		}
		if v.Flags&net.FlagUp == 0 || v.RawFlags&0x80 == 0 { // IFF_NOARP
			t.Errorf("flags %v %#x, want up and without ARP", v.Flags, v.RawFlags)
		}
		if addrs, err := netlink.AddrList(v, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
			t.Errorf("it has addresses: %v, %v", addrs, err)
		}
		if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + netdev.TunnelDevice + "/rp_filter"); err != nil || strings.TrimSpace(string(b)) != "1" {
			t.Errorf("rp_filter is %s, %v", b, err)
		}
		if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + netdev.TunnelDevice + "/forwarding"); err != nil || strings.TrimSpace(string(b)) != "0" {
			t.Errorf("forwarding is %s, %v", b, err)
		}
		if again := ensureTunnel(t, cfg); again.Index != v.Index || again.Flags&net.FlagUp == 0 {
			t.Errorf("repeated: index %d %v, was %d and up", again.Index, again.Flags, v.Index)
		}
		if err := errors.Join(netdev.DeleteTunnelDevice(), netdev.DeleteTunnelDevice()); err != nil {
			t.Error(err)
		}
		if there, err := netdev.TunnelDeviceExists(); there || err != nil {
			t.Errorf("deleted, and there: %v, %v", there, err)
		}
		// The port is free at once.
		conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "0.0.0.0:8472")
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// TestTunnelDeviceIsMadeAnew replaces a device that differs, and gives it, as one that
// was removed, its index back: programs that run know it by that.
func TestTunnelDeviceIsMadeAnew(t *testing.T) {
	inNode(t, func(string) error {
		first := ensureTunnel(t, netdev.TunnelConfig{Port: tunnelPort})
		if v := ensureTunnel(t, netdev.TunnelConfig{Port: 4789}); v.Port != 4789 || v.Index != first.Index {
			t.Errorf("another port was asked for: port %d, index %d, want %d", v.Port, v.Index, first.Index)
		}
		for name, alter := range map[string]func(*netlink.Vxlan){
			"not external":  func(v *netlink.Vxlan) { v.FlowBased, v.VxlanId = false, 7 },
			"learns":        func(v *netlink.Vxlan) { v.Learning = true },
			"other ports":   func(v *netlink.Vxlan) { v.PortLow = 40000 },
			"group policy":  func(v *netlink.Vxlan) { v.GBP = true },
			"small":         func(v *netlink.Vxlan) { v.MTU = 1450 },
			"other address": func(v *netlink.Vxlan) { v.HardwareAddr[5] = 1 },
			"nothing":       func(*netlink.Vxlan) {},
		} {
			if err := netdev.DeleteTunnelDevice(); err != nil {
				return err
			}
			there := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), FlowBased: true, Port: tunnelPort, PortLow: 32768, PortHigh: 65535}
			there.Name, there.MTU, there.HardwareAddr = netdev.TunnelDevice, 65535, net.HardwareAddr{2, 0, 0, 0, 0, 0}
			alter(there)
			if err := netlink.LinkAdd(there); err != nil {
				return err
			}
			if err := netlink.LinkSetAlias(there, "this one"); err != nil {
				return err
			}
			if v := ensureTunnel(t, netdev.TunnelConfig{Port: tunnelPort}); v.Index != there.Index || v.Alias != "" != (name == "nothing") || v.MTU != 65535 || !v.FlowBased {
				t.Errorf("what differs is %s: index %d %q, was %d; %+v", name, v.Index, v.Alias, there.Index, v)
			}
		}
		v := ensureTunnel(t, netdev.TunnelConfig{Port: tunnelPort})
		if err := netlink.LinkDel(v); err != nil {
			return err
		}
		if again := ensureTunnel(t, netdev.TunnelConfig{Port: tunnelPort, IfIndex: v.Index}); again.Index != v.Index {
			t.Errorf("made anew with index %d, want %d", again.Index, v.Index)
		}
		if err := netdev.DeleteTunnelDevice(); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: netdev.TunnelDevice}}); err != nil {
			return err
		}
		if _, err := netdev.EnsureTunnelDevice(t.Context(), netdev.TunnelConfig{Port: tunnelPort}); err == nil || !strings.Contains(err.Error(), "type bridge") {
			t.Errorf("a bridge of that name: %v", err)
		}
		if err := netdev.DeleteTunnelDevice(); err != nil {
			return err
		}
		if _, err := netlink.LinkByName(netdev.TunnelDevice); err != nil {
			t.Errorf("somebody else's device was removed: %v", err)
		}
		return nil
	})
}

func TestTunnelPortInUse(t *testing.T) {
	inNode(t, func(string) error {
		ctx := t.Context()
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		for name, occupy := range map[string]func() (func() error, error){
			"a socket on one address": func() (func() error, error) {
				conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", "127.0.0.1:8472")
				return func() error { return conn.Close() }, err
			},
			"another VXLAN device": func() (func() error, error) {
				v := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "other"}, FlowBased: true, Port: tunnelPort}
				return func() error { return netlink.LinkDel(v) }, netlink.LinkAdd(v)
			},
		} {
			leave, err := occupy()
			if err != nil {
				return err
			}
			_, err = netdev.EnsureTunnelDevice(ctx, netdev.TunnelConfig{Port: tunnelPort})
			if !errors.Is(err, netdev.ErrPortInUse) || !strings.Contains(err.Error(), "8472") || !strings.Contains(err.Error(), "ss -lunp") {
				t.Errorf("%s: %v, want that the port is in use", name, err)
			}
			if there, _ := netdev.TunnelDeviceExists(); there {
				t.Errorf("%s: the device is there all the same", name)
			}
			if err := leave(); err != nil {
				return err
			}
		}
		if _, err := netdev.EnsureTunnelDevice(ctx, netdev.TunnelConfig{Port: tunnelPort}); err != nil {
			return err
		}
		conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", "127.0.0.1:8472")
		if err != nil {
			return err
		}
		if err := netdev.SetTunnelUp(tunnelPort); !errors.Is(err, netdev.ErrPortInUse) {
			t.Errorf("taken meanwhile: %v", err)
		}
		return conn.Close()
	})
}

func TestWatchDevices(t *testing.T) {
	inNode(t, func(string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		v := ensureTunnel(t, netdev.TunnelConfig{Port: tunnelPort})
		wake, err := netdev.WatchDevices(ctx, netdev.TunnelDevice)
		if err != nil {
			return err
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkDel(bridge)); err != nil {
			return err
		}
		if err := netlink.LinkSetDown(v); err != nil {
			return err
		}
		if _, ok := <-wake; !ok {
			t.Error("nothing is said of a device that was set down")
		}
		if err := netlink.LinkSetName(v, "theirs"); err != nil {
			return err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			t.Error("nothing is said of a device that got another name")
		}
		if err := netlink.LinkSetName(v, netdev.TunnelDevice); err != nil {
			return err
		}
		if err := netlink.LinkDel(v); err != nil {
			return err
		}
		for gone := false; !gone; {
			if _, ok := <-wake; !ok {
				return errors.New("nothing is said of a device that was removed")
			}
			there, err := netdev.TunnelDeviceExists()
			if err != nil {
				return err
			}
			gone = !there
		}
		return nil
	})
}
