// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// outsideAddress6 is the node's address for IPv6 flows of pods to the outside, before
// if the node still has it; the zero Addr if they have none, or keep theirs.
func (c *Config) outsideAddress6(before netip.Addr) (netip.Addr, error) {
	if c.KeepPodAddresses || !c.PodCIDR6.IsValid() {
		return netip.Addr{}, nil
	}
	return netdev.OutsideAddr6(c.UnderlayDevice, before)
}

// readyTime is how long an address is waited for that the kernel has, and still looks
// whether it is nobody else's.
const readyTime = 3 * time.Second

// chooseAddress6 is outsideAddress6 for programs that are made now: while flows are
// established with the address of the programs that are there, that stays.
func (c *Config) chooseAddress6(ctx context.Context) (netip.Addr, error) {
	if c.KeepPodAddresses || !c.PodCIDR6.IsValid() {
		return netip.Addr{}, nil
	}
	before, err := loader.MasqueradedAs6(c.PinPath)
	if err != nil {
		c.Log.Warn("the IPv6 address for what pods send to the outside is chosen anew; flows with another one end", "error", err)
	}
	return netdev.AwaitOutsideAddr6(ctx, c.UnderlayDevice, before, readyTime)
}

// masqueradeAddresses are what flows of pods to the outside have in place of their
// own addresses, by families.
func masqueradeAddresses(cfg loader.Config) (out []string) {
	if cfg.Masquerade.Count == 0 {
		return nil
	}
	out = append(out, cfg.NodeAddr.String())
	if cfg.Masquerade6.IsValid() {
		out = append(out, cfg.Masquerade6.String())
	}
	return out
}

// otherAddress6 says that flows of IPv6 leave with another address than they should,
// since the device has got another one, or lost it, while the agent runs.
func otherAddress6(device string, was, is netip.Addr) []*hawserv1.Problem {
	if was == is {
		return nil
	}
	p := &hawserv1.Problem{Object: "masquerade " + device, Fix: "restart hawser-agent on the node: it chooses the address anew; flows to the outside with the old one end"}
	switch {
	case !was.IsValid():
		p.Problem = fmt.Sprintf("the device has got the IPv6 address %s, and what pods send to the outside keeps theirs", is)
	case is.IsValid():
		p.Problem = fmt.Sprintf("what pods send to the outside has the IPv6 address %s, which the device has lost; it has %s", was, is)
	default:
		p.Problem = fmt.Sprintf("what pods send to the outside has the IPv6 address %s, which the device has lost", was)
	}
	return []*hawserv1.Problem{p}
}
