// SPDX-License-Identifier: Apache-2.0

// Package netns makes the network of a lab: named network namespaces, and a
// fabric namespace that routes between clusters, with a bridge for the nodes of
// each. Names and addresses are given; nothing outside the namespaces is
// touched.
package netns

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// Create makes the namespace that lives at path, quiet (no IPv6 of its own) and
// with its loopback device up.
func Create(path string) error {
	if err := prepareDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := nsthread.CreateNetns(path); err != nil {
		return err
	}
	return nsthread.InNetns(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("set up namespace %s: %w", path, err)
		}
		return errors.Join(
			netlink.LinkSetUp(lo),
			sysctls(map[string]string{
				"net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1",
				"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
			}))
	})
}

// LoopbackIPv6 lets the namespace at path reach IPv6 addresses of its own, as a
// host does that has not been quietened.
func LoopbackIPv6(path string) error {
	return nsthread.InNetns(path, func() error { return sysctls(map[string]string{"net/ipv6/conf/lo/disable_ipv6": "0"}) })
}

// Bridge is the fabric's bridge of one cluster.
type Bridge struct {
	Name    string
	Address netip.Prefix // of the fabric on it
}

// CreateFabric makes the namespace at path a router with these bridges. No
// address of guarded answers on guardedPort (TCP) to anybody behind another
// bridge: an agent that spoke to a foreign etcd would find nobody.
func CreateFabric(path string, bridges []Bridge, guarded []netip.Addr, guardedPort uint16) error {
	if err := Create(path); err != nil {
		return err
	}
	return nsthread.InNetns(path, func() error {
		if err := sysctls(map[string]string{"net/ipv4/ip_forward": "1"}); err != nil {
			return err
		}
		for _, b := range bridges {
			if err := addBridge(b); err != nil {
				return fmt.Errorf("make bridge %s: %w", b.Name, err)
			}
		}
		for _, a := range guarded {
			rule := newRule(guardPriority, netip.Prefix{}, netip.PrefixFrom(a, a.BitLen()))
			rule.IPProto = 6
			rule.Dport = netlink.NewRulePortRange(guardedPort, guardedPort)
			rule.Type = prohibit
			if err := netlink.RuleAdd(rule); err != nil {
				return fmt.Errorf("guard %s:%d: %w", a, guardedPort, err)
			}
		}
		return nil
	})
}

func addBridge(b Bridge) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = b.Name
	// Else it takes the lowest of its ports' addresses, another one when a port comes
	// or goes, and what neighbours send to the one before is lost.
	attrs.HardwareAddr = make(net.HardwareAddr, 6)
	if _, err := rand.Read(attrs.HardwareAddr); err != nil {
		return fmt.Errorf("address of bridge %s: %w", b.Name, err)
	}
	attrs.HardwareAddr[0] = attrs.HardwareAddr[0]&^1 | 2 // one host's, locally made
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil {
		return err
	}
	if err := netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(b.Address)}); err != nil {
		return err
	}
	return netlink.LinkSetUp(br)
}

// Port is a namespace's link to a bridge of the fabric.
type Port struct {
	Bridge  string
	Name    string // of the fabric's end
	Netns   string // path of the namespace that gets the other end, eth0
	Address netip.Prefix
	Gateway netip.Addr
	MTU     int
}

// Connect links a namespace to the fabric at path and gives it an address and a
// default route.
func Connect(fabric string, p Port) error {
	ns, err := os.Open(p.Netns)
	if err != nil {
		return fmt.Errorf("connect %s: %w", p.Name, err)
	}
	defer ns.Close()
	err = nsthread.InNetns(fabric, func() error {
		br, err := netlink.LinkByName(p.Bridge)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = p.Name, p.MTU, br.Attrs().Index
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: uint32(p.MTU), PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	if err == nil {
		err = nsthread.InNetns(p.Netns, func() error { return address(p) })
	}
	if err != nil {
		return fmt.Errorf("connect %s to the fabric: %w", p.Name, err)
	}
	return nil
}

func address(p Port) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p.Address)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: p.Gateway.AsSlice()})
}

// SetPort turns the fabric's end of a Port on or off: off, nothing gets through,
// and nobody is told.
func SetPort(fabric, name string, on bool) error {
	return nsthread.InNetns(fabric, func() error {
		link, err := netlink.LinkByName(name)
		if err == nil && on {
			err = netlink.LinkSetUp(link)
		} else if err == nil {
			err = netlink.LinkSetDown(link)
		}
		if err != nil {
			return fmt.Errorf("port %s of the fabric: %w", name, err)
		}
		return nil
	})
}

// Disconnect removes a Port, both ends of it; none there is no error.
func Disconnect(fabric, name string) error {
	return nsthread.InNetns(fabric, func() error {
		link, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			return fmt.Errorf("remove port %s of the fabric: %w", name, err)
		}
		return nil
	})
}

// SetMTU makes the fabric's end of a Port carry no larger packets; its bridge goes
// on carrying those of others, up to size. Larger ones are lost, and nobody is
// told: a bridge does not route.
func SetMTU(fabric, bridge, name string, mtu, size int) error {
	return nsthread.InNetns(fabric, func() error {
		port, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetMTU(port, mtu)
		}
		if err != nil {
			return fmt.Errorf("MTU of port %s of the fabric: %w", name, err)
		}
		// A bridge follows its smallest port until it is told its own, which is not
		// noticed when it is what it has: hence after the port.
		br, err := netlink.LinkByName(bridge)
		if err == nil {
			err = netlink.LinkSetMTU(br, size)
		}
		if err != nil {
			return fmt.Errorf("MTU of bridge %s of the fabric: %w", bridge, err)
		}
		return nil
	})
}

// Delete removes the namespace at path; none there is no error.
func Delete(path string) error { return nsthread.DeleteNetns(path) }

// List is the paths of all namespaces in dir whose names start with prefix.
func List(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

func sysctls(values map[string]string) error {
	var errs []error
	for name, v := range values {
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(v), 0o644)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(name, "net/ipv6/") {
			continue // a kernel without IPv6
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set sysctl %s=%s: %w", name, v, err))
		}
	}
	return errors.Join(errs...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
