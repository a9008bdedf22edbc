// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy"
)

// who is someone as the old and the new rules know him.
type who struct{ before, after policy.Peer }

// prefixes find the identity of an address, as the kernel does: [0] those that
// addresses outside the mesh have, [1] those of ipBlocks.
type prefixes [2]*bart.Table[identity.Number]

func newPrefixes(cidrs []policy.CIDR) prefixes {
	out := prefixes{{}, {}}
	for _, c := range cidrs {
		if c.Block {
			out[1].Insert(c.Prefix, c.Number)
		} else {
			out[0].Insert(c.Prefix, c.Number)
		}
	}
	return out
}

// peer is who an address, or all of a prefix that is not divided further, is to
// the kernel; n is its identity, 0 for one outside the mesh.
func (x prefixes) peer(n identity.Number, p netip.Prefix) policy.Peer {
	block, _ := x[1].LookupPrefix(p)
	if n == 0 {
		var ok bool
		if n, ok = x[0].LookupPrefix(p); !ok {
			n = identity.World
		}
	}
	return policy.Peer{Identity: n, Block: block}
}

// target is someone to list, who may be several to the rules: one for each of
// his addresses, or of the regions that he may be in.
type target struct {
	name    string
	outside bool // everybody outside the mesh: regions have the name of their prefix
	spots   []spot
	regions []region
}

// spot is who somebody is at some of his addresses.
type spot struct {
	who
	at []netip.Addr
}

// region is the addresses of a prefix that are in no narrower one of the list.
type region struct {
	who
	in     netip.Prefix
	root   bool // no rule names the prefix: it is all of a family
	parent int  // region around that is not empty; -1: none
	empty  bool // nobody that is meant can have an address in it
}

// targets are all that a change is looked at for.
func (c Change) targets(before, after world) []target {
	identify := func(n identity.Number, p netip.Prefix) who {
		return who{before.prefixes.peer(n, p), after.prefixes.peer(n, p)}
	}
	used := &bart.Table[int]{}
	for _, x := range slices.Concat(before.prefixes[:], after.prefixes[:]) {
		for p := range x.All() {
			used.Insert(p, 0)
		}
	}
	var out []target
	node := func(n identity.Number, addrs []netip.Addr) {
		name, _ := n.Reserved()
		t := target{name: name}
		if len(addrs) > 0 {
			t.spots = spotsOf(n, addrs, identify)
		} else {
			t.regions = regionsOf(used, &bart.Table[struct{}]{}, n, identify)
		}
		out = append(out, t)
	}
	node(identity.Host, c.HostAddrs)
	node(identity.RemoteNode, c.NodeAddrs)
	for _, i := range c.Identities {
		t := target{name: i.Labels.String(), spots: spotsOf(i.Number, i.Addrs, identify)}
		if len(i.Addrs) == 0 { // counts as outside all blocks
			one := policy.Peer{Identity: i.Number}
			t.spots = []spot{{who: who{one, one}}}
		}
		out = append(out, t)
	}
	world, _ := identity.World.Reserved()
	return append(out, target{name: world, outside: true, regions: regionsOf(used, c.inside(), 0, identify)})
}

// inside are the prefixes in which nobody outside the mesh has an address.
func (c Change) inside() *bart.Table[struct{}] {
	out := &bart.Table[struct{}]{}
	single := func(addrs []netip.Addr) {
		for _, a := range addrs {
			out.Insert(netip.PrefixFrom(a, a.BitLen()), struct{}{})
		}
	}
	for _, p := range c.Inside {
		out.Insert(p, struct{}{})
	}
	single(c.HostAddrs)
	single(c.NodeAddrs)
	for _, i := range c.Identities {
		single(i.Addrs)
	}
	return out
}

func spotsOf(n identity.Number, addrs []netip.Addr, identify func(identity.Number, netip.Prefix) who) []spot {
	var out []spot
	at := map[who]int{}
	for _, a := range addrs {
		w := identify(n, netip.PrefixFrom(a, a.BitLen()))
		i, ok := at[w]
		if !ok {
			i = len(out)
			at[w], out = i, append(out, spot{who: w})
		}
		out[i].at = append(out[i].at, a)
	}
	return out
}

// regionsOf cuts all addresses at the prefixes that are used; wider regions come
// before those in them. Only n's addresses are meant, 0 being outside the mesh,
// and none that is inside.
func regionsOf(used *bart.Table[int], inside *bart.Table[struct{}], n identity.Number, identify func(identity.Number, netip.Prefix) who) []region {
	var list []region
	for _, all := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		if _, ok := used.Get(all); !ok {
			list = append(list, region{in: all, root: true})
		}
	}
	for p := range used.All() {
		list = append(list, region{in: p})
	}
	slices.SortFunc(list, func(a, b region) int { return a.in.Compare(b.in) })
	var around []int // the regions that contain the one looked at
	for i := range list {
		r := &list[i]
		for len(around) > 0 && !list[around[len(around)-1]].in.Overlaps(r.in) {
			around = around[:len(around)-1]
		}
		r.parent, r.who = -1, identify(n, r.in)
		if len(around) > 0 {
			if r.parent = around[len(around)-1]; list[r.parent].empty {
				r.parent = list[r.parent].parent
			}
		}
		r.empty = !anybody(r.in, used, inside)
		around = append(around, i)
	}
	return list
}

// anybody reports whether a prefix has an address that is in no narrower one that
// is used and not inside.
func anybody(p netip.Prefix, used *bart.Table[int], inside *bart.Table[struct{}]) bool {
	for a := p.Addr(); a.IsValid() && p.Contains(a); {
		one := netip.PrefixFrom(a, a.BitLen())
		if q, _, ok := used.LookupPrefixLPM(one); ok && q.Bits() > p.Bits() {
			a = last(q).Next()
		} else if q, _, ok := inside.LookupPrefixLPM(one); ok {
			a = last(q).Next()
		} else {
			return true
		}
	}
	return false
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

// pairs are what becomes of a target's packets, those together that are the same.
func (t target) pairs(of func(who) delta) []Pair {
	if len(t.regions) > 0 {
		return t.regionPairs(of)
	}
	var out []Pair
	var at [][]netip.Addr
	var deltas []delta
	for _, s := range t.spots {
		x := of(s.who)
		i := slices.IndexFunc(deltas, x.equal)
		if i < 0 {
			i, deltas, at = len(deltas), append(deltas, x), append(at, nil)
		}
		at[i] = append(at[i], s.at...)
	}
	for i, x := range deltas {
		p := Pair{Peer: t.name, Opened: x.opened, Closed: x.closed}
		if len(deltas) > 1 {
			p.At = at[i]
		}
		if !x.none() {
			out = append(out, p)
		}
	}
	return out
}

// regionPairs lists a region together with those in it that have the same become
// of them, and the others as exceptions.
func (t target) regionPairs(of func(who) delta) []Pair {
	pairs := make([]Pair, len(t.regions))
	heads, deltas := make([]int, len(t.regions)), make([]delta, len(t.regions))
	roots := -1 // the head of both families
	for i, r := range t.regions {
		if r.empty {
			continue
		}
		deltas[i], heads[i] = of(r.who), i
		switch {
		case r.root && roots >= 0:
			heads[i], pairs[roots].In = roots, netip.Prefix{}
			continue
		case r.parent >= 0 && deltas[i].equal(deltas[r.parent]):
			heads[i] = heads[r.parent]
			continue
		case r.parent >= 0:
			parent := &pairs[heads[r.parent]]
			parent.Except = append(parent.Except, r.in)
		}
		p := Pair{Peer: t.name, In: r.in, Opened: deltas[i].opened, Closed: deltas[i].closed}
		if t.outside && !r.root {
			p.Peer, p.In = r.in.String(), netip.Prefix{}
		}
		if r.root {
			roots = i
		}
		pairs[i] = p
	}
	var out []Pair
	for i, p := range pairs {
		if heads[i] == i && !t.regions[i].empty && !deltas[i].none() {
			out = append(out, p)
		}
	}
	return out
}

// PeerText names the peer: "192.0.2.0/24 except 192.0.2.1/32", "remote-node at
// 172.16.0.1". Of long lists it names so many and counts the rest; 0 names all.
func (p Pair) PeerText(most int) string {
	text := p.Peer
	if p.In.IsValid() {
		text += " in " + p.In.String()
	}
	return text + listed(" at ", p.At, most) + listed(" except ", p.Except, most)
}

func listed[T fmt.Stringer](before string, list []T, most int) string {
	if len(list) == 0 {
		return ""
	}
	var names []string
	for _, v := range list {
		names = append(names, v.String())
	}
	if more := len(names) - most; most > 0 && more > 0 {
		return fmt.Sprintf("%s%s and %d more", before, strings.Join(names[:most], ", "), more)
	}
	return before + strings.Join(names, ", ")
}
