// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// Priorities of the fabric's routing rules, before the main table's.
const (
	cutPriority   = 100
	guardPriority = 200
)

// Actions of routing rules (linux/fib_rules.h).
const (
	blackhole = 6
	prohibit  = 8
)

// Cut makes the fabric at path lose every packet between a and b, silently, in
// both directions; with a port, only UDP to that port. Cutting again changes
// nothing.
func Cut(path string, a, b netip.Prefix, port uint16) error {
	return eachDirection(path, a, b, port, func(r *netlink.Rule) error {
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cut %s from %s: %w", a, b, err)
		}
		return nil
	})
}

// Heal ends a Cut. Healing what is not cut changes nothing.
func Heal(path string, a, b netip.Prefix, port uint16) error {
	return eachDirection(path, a, b, port, func(r *netlink.Rule) error {
		if err := netlink.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("heal %s and %s: %w", a, b, err)
		}
		return nil
	})
}

func eachDirection(path string, a, b netip.Prefix, port uint16, fn func(*netlink.Rule) error) error {
	return nsthread.InNetns(path, func() error {
		for _, d := range [][2]netip.Prefix{{a, b}, {b, a}} {
			rule := newRule(cutPriority, d[0], d[1])
			rule.Type = blackhole
			if port != 0 {
				rule.IPProto = unix.IPPROTO_UDP
				rule.Dport = netlink.NewRulePortRange(port, port)
			}
			if err := fn(rule); err != nil {
				return err
			}
		}
		return nil
	})
}

// newRule matches packets from src (the zero Prefix: from anywhere) to dst.
func newRule(priority int, src, dst netip.Prefix) *netlink.Rule {
	r := netlink.NewRule()
	r.Priority = priority
	r.Family = netlink.FAMILY_V4
	r.Dst = ipNet(dst.Masked())
	if src.IsValid() {
		r.Src = ipNet(src.Masked())
	}
	return r
}
