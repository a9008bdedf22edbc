// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"net/netip"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/table"
)

// SetCIDR gives the addresses of a prefix an identity that only policies on this
// node know. It concerns addresses outside the mesh: whatever lies inside a
// prefix that somebody in the mesh claims has its identity from there, or none
// yet.
func (c *Cache) SetCIDR(p netip.Prefix, id identity.Number) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cidrs.Insert(p, id)
	c.claim(source{Kind: KindCIDR}, Entry{Prefix: p, IPEntry: datapath.IPEntry{Identity: id}, Source: KindCIDR})
	c.renewExternal(p)
}

// DeleteCIDR withdraws SetCIDR.
func (c *Cache) DeleteCIDR(p netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cidrs.Delete(p)
	c.unclaim(source{Kind: KindCIDR}, p)
	c.renewExternal(p)
}

// renewExternal resolves the external endpoints' prefixes within p anew: they may
// have another identity.
func (c *Cache) renewExternal(p netip.Prefix) {
	var inside []netip.Prefix
	for q := range c.external.Subnets(p) {
		inside = append(inside, q)
	}
	for _, q := range inside {
		c.resolve(q)
	}
}

// SetBlock tells which identity an ipBlock gives to all addresses of a prefix
// beside their own.
func (c *Cache) SetBlock(p netip.Prefix, id identity.Number) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocks[p] = id
	c.dirtyBlock[p] = struct{}{}
}

// DeleteBlock withdraws SetBlock.
func (c *Cache) DeleteBlock(p netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.blocks, p)
	c.dirtyBlock[p] = struct{}{}
}

func (c *Cache) publishBlocks(addrs *table.Table[datapath.IPKey, datapath.IPEntry]) {
	for p := range c.dirtyBlock {
		key := datapath.IPKey{ClusterID: datapath.BlockSpace, Prefix: p}
		if id, ok := c.blocks[p]; ok {
			addrs.Set(key, datapath.IPEntry{Identity: id})
		} else {
			addrs.Delete(key)
		}
	}
	clear(c.dirtyBlock)
}

// winner is the entry of p, whose best claim is given; nil is none. What the mesh
// has is not outside, so policies' prefixes do not show inside of it; but what is
// behind an external endpoint is outside, reached through its tunnel.
func (c *Cache) winner(p netip.Prefix, best *Entry) *Entry {
	switch {
	case best == nil:
		return nil
	case best.Source == KindExternal:
		w := *best
		w.Identity = identity.World
		if id, ok := c.cidrs.LookupPrefix(p); ok {
			w.Identity = id
		}
		return &w
	case best.Source == KindCIDR:
		around, ok := c.mesh.LookupPrefix(p)
		if !ok {
			return best
		}
		if around.Source != KindExternal {
			return nil
		}
		w := *around
		w.Prefix, w.Identity = p, best.Identity
		return &w
	}
	return best
}

// noteMesh keeps the list of what the mesh claims, and hides or shows the
// policies' prefixes inside it.
func (c *Cache) noteMesh(p netip.Prefix, best *Entry) {
	if best != nil && best.Source == KindCIDR {
		best = nil
	}
	was, _ := c.mesh.Get(p)
	if was != nil && best != nil && was.Source != KindExternal && best.Source != KindExternal || was == best {
		return
	}
	if best != nil {
		c.mesh.Insert(p, best)
	} else {
		c.mesh.Delete(p)
	}
	if best != nil && best.Source == KindExternal {
		c.external.Insert(p, struct{}{})
	} else {
		c.external.Delete(p)
	}
	if p.IsSingleIP() {
		return // nothing else is inside
	}
	var inside []netip.Prefix
	for q := range c.cidrs.Subnets(p) {
		if q != p {
			inside = append(inside, q)
		}
	}
	for _, q := range inside {
		c.resolve(q)
	}
}
