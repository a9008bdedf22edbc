// SPDX-License-Identifier: Apache-2.0

// Package ipcache knows which identity every address has and on which node it
// is: it merges what the own node, the own cluster and the peers claim into the
// rows of the datapath, one winner for each prefix.
//
// Start with Cache. claims.go holds the order of precedence, records.go what
// each record of the keyspace claims. Whether a peer may publish a prefix at
// all is decided before, against its grant.
package ipcache

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/gaissmai/bart"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/table"
)

// Config says whose cache it is.
type Config struct {
	Cluster string // own cluster
	Node    string // own node
	// Tunnel is the own node's tunnel address: what others reach through it is
	// on this node.
	Tunnel netip.Addr
}

// Entry is the answer to who has a prefix.
type Entry struct {
	Prefix netip.Prefix
	datapath.IPEntry
	Cluster  string // empty for what is of no cluster
	Node     string
	Workload string // namespace/name
	Source   Kind
}

// Conflict is a prefix that two claim who should not both have it.
type Conflict struct {
	Winner, Loser Entry
}

// Cache merges claims. It is safe for concurrent use; methods block on its
// mutex only. Lookup and List see a change at once, the tables with Publish.
type Cache struct {
	cfg Config

	mu         sync.Mutex
	addrs      claims[netip.Prefix, *Entry] // entries are not changed, only replaced
	tunnels    claims[netip.Addr, datapath.Node]
	byPrefix   *bart.Table[*Entry] // the winners, the same as in addrs
	contested  map[netip.Prefix]struct{}
	mesh       *bart.Table[*Entry]              // prefixes that somebody in the mesh claims
	external   *bart.Table[struct{}]            // those of them that are external endpoints'
	cidrs      *bart.Table[identity.Number]     // KindCIDR claims
	blocks     map[netip.Prefix]identity.Number // of BlockSpace
	dirtyBlock map[netip.Prefix]struct{}
	nodes      map[nodeKey]nodeClaims
	clusters   map[string]uint32
	ranges     map[string][]netip.Prefix // of each cluster
	host       []netip.Addr              // as told to SetHostAddrs
	hostClaims map[netip.Prefix]struct{} // those of them that are claimed
	dirtyAddrs map[netip.Prefix]struct{}
	dirtyNodes map[netip.Addr]struct{}
	pathMTUs   map[netip.Addr]uint32 // as told to SetPathMTU
	assumed    map[netip.Addr]uint32 // as told to AssumePathMTUs, until SetPathMTU
}

// New makes an empty Cache.
func New(cfg Config) (*Cache, error) {
	if cfg.Cluster == "" || cfg.Node == "" || !cfg.Tunnel.IsValid() {
		return nil, fmt.Errorf("ipcache: own cluster %q, node %q and tunnel address %s are all required",
			cfg.Cluster, cfg.Node, cfg.Tunnel)
	}
	cfg.Tunnel = cfg.Tunnel.Unmap()
	order := func(a, b source) int { return a.compare(b, cfg.Cluster) }
	// Whoever declares a tunnel endpoint does not hide the node that has it.
	nodesFirst := func(a, b source) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), order(a, b)) }
	return &Cache{
		cfg:        cfg,
		addrs:      newClaims[netip.Prefix, *Entry](order),
		tunnels:    newClaims[netip.Addr, datapath.Node](nodesFirst),
		byPrefix:   &bart.Table[*Entry]{},
		contested:  map[netip.Prefix]struct{}{},
		mesh:       &bart.Table[*Entry]{},
		external:   &bart.Table[struct{}]{},
		cidrs:      &bart.Table[identity.Number]{},
		blocks:     map[netip.Prefix]identity.Number{},
		dirtyBlock: map[netip.Prefix]struct{}{},
		nodes:      map[nodeKey]nodeClaims{},
		clusters:   map[string]uint32{},
		ranges:     map[string][]netip.Prefix{},
		hostClaims: map[netip.Prefix]struct{}{},
		dirtyAddrs: map[netip.Prefix]struct{}{},
		dirtyNodes: map[netip.Addr]struct{}{},
		pathMTUs:   map[netip.Addr]uint32{},
		assumed:    map[netip.Addr]uint32{},
	}, nil
}

// Lookup is the entry of the longest prefix that holds an address. Without one
// the address is outside the mesh: ok is false and the entry says world.
func (c *Cache) Lookup(a netip.Addr) (e Entry, ok bool) {
	a = a.Unmap().WithZone("")
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.IsValid() {
		if w, ok := c.byPrefix.Lookup(a); ok {
			return *w, true
		}
		e.Prefix = netip.PrefixFrom(a, a.BitLen())
	}
	e.Identity, e.Source = identity.World, KindReserved
	return e, false
}

// List are all winners, by prefix.
func (c *Cache) List() []Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Entry, 0, c.byPrefix.Size())
	for _, e := range c.byPrefix.AllSorted() {
		out = append(out, *e)
	}
	return out
}

// Conflicts are the prefixes claimed by several clusters, or by several nodes
// of one cluster, by prefix.
func (c *Cache) Conflicts() []Conflict {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Conflict
	for p := range c.contested {
		all := c.addrs.all(p)
		for _, l := range all[1:] {
			if contests(all[0].value, l.value) {
				out = append(out, Conflict{Winner: *all[0].value, Loser: *l.value})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Conflict) int { return comparePrefix(a.Winner.Prefix, b.Winner.Prefix) })
	return out
}

func contests(winner, loser *Entry) bool {
	return loser.Source != KindCIDR && (winner.Cluster != loser.Cluster || winner.Node != loser.Node && loser.Node != "" && winner.Node != "")
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// Publish writes what changed since the last call into the tables, and reports
// how many keys that were. It is for one caller.
func (c *Cache) Publish(addrs *table.Table[datapath.IPKey, datapath.IPEntry],
	nodes *table.Table[netip.Addr, datapath.Node]) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.dirtyAddrs) + len(c.dirtyNodes) + len(c.dirtyBlock)
	// Nodes first: entries refer to them by tunnel address.
	for a := range c.dirtyNodes {
		if row, ok := c.nodeRow(a); ok {
			nodes.Set(a, row)
		} else {
			nodes.Delete(a)
		}
	}
	for p := range c.dirtyAddrs {
		key := datapath.IPKey{Prefix: p}
		if e, ok := c.byPrefix.Get(p); ok {
			addrs.Set(key, e.IPEntry)
		} else {
			addrs.Delete(key)
		}
	}
	c.publishBlocks(addrs)
	clear(c.dirtyAddrs)
	clear(c.dirtyNodes)
	return n
}

// nodeRow is the node behind a tunnel address, unless that is this node.
func (c *Cache) nodeRow(a netip.Addr) (datapath.Node, bool) {
	all := c.tunnels.all(a)
	if len(all) == 0 || a == c.cfg.Tunnel || c.isSelf(all[0].source.Cluster, all[0].source.Name) {
		return datapath.Node{}, false
	}
	row := all[0].value
	if was := c.assumed[a]; row.MTU != 0 && was >= row.MTU {
		delete(c.assumed, a) // it was the record's
	}
	if way := cmp.Or(c.pathMTUs[a], c.assumed[a]); way > 0 && (row.MTU == 0 || way < row.MTU) {
		row.MTU = way
	}
	return row, true
}

func (c *Cache) isSelf(cluster, node string) bool {
	return cluster == c.cfg.Cluster && node == c.cfg.Node
}

// claim stores a claim to a prefix and resolves who has it now.
func (c *Cache) claim(s source, e Entry) {
	if e.Tunnel == c.cfg.Tunnel {
		e.Tunnel = netip.Addr{} // it is here
	}
	c.addrs.set(e.Prefix, s, &e)
	c.resolve(e.Prefix)
}

func (c *Cache) unclaim(s source, p netip.Prefix) {
	c.addrs.remove(p, s)
	c.resolve(p)
}

func (c *Cache) resolve(p netip.Prefix) {
	all := c.addrs.all(p)
	c.dirtyAddrs[p] = struct{}{}
	if len(all) > 1 {
		c.contested[p] = struct{}{}
	} else {
		delete(c.contested, p)
	}
	var best *Entry
	if len(all) > 0 {
		best = all[0].value
	}
	if w := c.winner(p, best); w != nil {
		c.byPrefix.Insert(p, w)
	} else {
		c.byPrefix.Delete(p)
	}
	c.noteMesh(p, best)
}
