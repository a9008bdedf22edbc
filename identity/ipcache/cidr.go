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
}

// DeleteCIDR withdraws SetCIDR.
func (c *Cache) DeleteCIDR(p netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cidrs.Delete(p)
	c.unclaim(source{Kind: KindCIDR}, p)
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

// isInMesh reports whether somebody in the mesh claims a prefix that covers p.
func (c *Cache) isInMesh(p netip.Prefix) bool {
	_, ok := c.mesh.LookupPrefix(p)
	return ok
}

// noteMesh keeps the list of what the mesh claims, and hides or shows the
// policies' prefixes inside it.
func (c *Cache) noteMesh(p netip.Prefix, claimed bool) {
	if _, was := c.mesh.Get(p); was == claimed {
		return
	}
	if claimed {
		c.mesh.Insert(p, struct{}{})
	} else {
		c.mesh.Delete(p)
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
