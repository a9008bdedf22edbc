// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// SetHostAddrs tells the addresses that this node has beside those of its record,
// in place of those told before. They are the host's for this node's pods; other
// nodes do not know them. One inside a range of a cluster's pods or services is
// what the mesh says it is.
func (c *Cache) SetHostAddrs(addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.host = slices.Clone(addrs)
	c.claimHost()
}

// claimHost claims the node's addresses that are in no range.
func (c *Cache) claimHost() {
	s := source{Kind: KindHost, Cluster: c.cfg.Cluster}
	now := map[netip.Prefix]struct{}{}
	for _, a := range c.host {
		if p := hostPrefix(a); !c.inRange(p.Addr()) {
			now[p] = struct{}{}
		}
	}
	for p := range c.hostClaims {
		if _, ok := now[p]; !ok {
			c.unclaim(s, p)
		}
	}
	for p := range now {
		if _, ok := c.hostClaims[p]; !ok {
			c.claim(s, Entry{Prefix: p, IPEntry: datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost | datapath.IPLocal},
				Cluster: c.cfg.Cluster, Node: c.cfg.Node, Source: KindHost})
		}
	}
	c.hostClaims = now
}

func (c *Cache) inRange(a netip.Addr) bool {
	for _, ranges := range c.ranges {
		if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}
