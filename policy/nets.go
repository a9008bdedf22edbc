// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/policy/api"
)

// Prefixes as peers are not selectors: nearly every "all but these" selects nearly
// every identity of a prefix, so that what each selects could not be kept. A
// direction keeps, by prefix, what begins and what is excepted there, together
// for all parts of one shape (the same ports and verdict). A part selects an
// identity when its prefix is around that of the identity and none of its excepts
// is: on the way from an identity's prefix to the widest one, beginnings count up
// and excepts count down, and what is left is how many parts select it.

// net is a prefix of a part, with the excepts that are not inside each other.
type net struct {
	prefixKey
	except spans
	origin uint32
}

func newNet(c api.CIDR, origin uint32) *net {
	return &net{prefixKey{c.Prefix, c.Block}, newSpans(c.Except), origin}
}

// shape is what parts have in common that say the same of their prefixes.
type shape struct {
	key   string
	cells []cell
	named []namedPort // of egress; of ingress the endpoint's own ports are in cells
	deny  bool
	users int
}

// netPoint is what parts of a shape say at a prefix.
type netPoint struct {
	shape  *shape
	begin  map[*net]struct{} // nil before the first
	sorted []*net            // begin, the widest first; nil: not known
	except int
}

// nets are the prefixes of the parts of a direction.
type nets struct {
	points map[prefixKey][]*netPoint
	shapes map[string]*shape
	dirty  map[prefixKey]struct{} // rows of identities inside are dirty
}

func newNets() nets {
	return nets{points: map[prefixKey][]*netPoint{}, shapes: map[string]*shape{}, dirty: map[prefixKey]struct{}{}}
}

// add takes the prefixes of a part in, or out when by is -1. ports are what the
// rule set's endpoints call theirs.
func (x *nets) add(p *part, ports []NamedPort, by int) {
	if len(p.nets) == 0 {
		return
	}
	s := x.shapeOf(p, ports)
	for _, n := range p.nets {
		at := x.point(n.prefixKey, s)
		at.sorted = nil
		if by < 0 {
			delete(at.begin, n)
		} else {
			if at.begin == nil {
				at.begin = map[*net]struct{}{}
			}
			at.begin[n] = struct{}{}
		}
		x.tidy(n.prefixKey, at)
		for _, e := range n.except {
			k := prefixKey{e, n.block}
			at := x.point(k, s)
			at.except += by
			x.tidy(k, at)
		}
		x.dirty[n.prefixKey] = struct{}{}
	}
	if s.users += by; s.users == 0 {
		delete(x.shapes, s.key)
	}
}

func (x *nets) shapeOf(p *part, ports []NamedPort) *shape {
	vs := p.verdicts
	var b strings.Builder
	var named []namedPort
	if p.dir == int(datapath.Ingress) {
		vs = p.resolve(slices.Clone(vs), ports)
	} else {
		named = p.named
	}
	for _, n := range named {
		fmt.Fprintf(&b, "%s/%d ", n.name, n.proto)
	}
	b.WriteString(strconv.FormatBool(p.deny))
	for _, v := range vs {
		for _, n := range []int{int(v.proto), int(v.wild), int(v.port)} {
			b.WriteByte(' ')
			b.WriteString(strconv.Itoa(n))
		}
	}
	s, ok := x.shapes[b.String()]
	if !ok {
		s = &shape{key: b.String(), named: named, deny: p.deny}
		for _, v := range vs {
			s.cells = append(s.cells, v.cell)
		}
		x.shapes[s.key] = s
	}
	return s
}

func (x *nets) point(k prefixKey, s *shape) *netPoint {
	list := x.points[k]
	if i := slices.IndexFunc(list, func(at *netPoint) bool { return at.shape == s }); i >= 0 {
		return list[i]
	}
	at := &netPoint{shape: s}
	x.points[k] = append(list, at)
	return at
}

// tidy forgets a point at which nothing is left.
func (x *nets) tidy(k prefixKey, at *netPoint) {
	if len(at.begin) > 0 || at.except != 0 {
		return
	}
	x.points[k] = slices.DeleteFunc(x.points[k], func(other *netPoint) bool { return other == at })
	if len(x.points[k]) == 0 {
		delete(x.points, k)
	}
}

// verdicts appends what the parts say about the identity of a prefix. ports are
// what the workload at it calls its own, around the prefixes in use that contain
// it, the longest first.
func (x *nets) verdicts(vs []verdict, k prefixKey, ports []NamedPort, around iter.Seq[netip.Prefix]) []verdict {
	type tally struct {
		left   int
		points []*netPoint
	}
	found := map[*shape]tally{}
	for p := range around {
		for _, at := range x.points[prefixKey{p, k.block}] {
			t := found[at.shape]
			found[at.shape] = tally{t.left + len(at.begin) - at.except, append(t.points, at)}
		}
	}
	for s, t := range found {
		if t.left <= 0 {
			continue
		}
		origin := selecting(t.points, k.Prefix)
		for _, c := range s.cells {
			vs = append(vs, verdict{cell: c, deny: s.deny, origin: origin})
		}
		vs = resolve(vs, s.named, ports, verdict{deny: s.deny, origin: origin})
	}
	return vs
}

// selecting is the origin of a part that selects a prefix, the same one whatever
// came first: of the narrowest beginning with any the one with the fewest excepts.
func selecting(points []*netPoint, p netip.Prefix) uint32 {
	for _, at := range points {
		for _, n := range at.inOrder() {
			if !n.except.cover(p) {
				return n.origin
			}
		}
	}
	return 0
}

func (at *netPoint) inOrder() []*net {
	if at.sorted == nil {
		for n := range at.begin {
			at.sorted = append(at.sorted, n)
		}
		slices.SortFunc(at.sorted, func(a, b *net) int {
			return cmp.Or(cmp.Compare(len(a.except), len(b.except)), cmp.Compare(a.origin, b.origin))
		})
	}
	return at.sorted
}

// begins reports whether a part begins at a prefix around.
func (x *nets) begins(block bool, around iter.Seq[netip.Prefix]) bool {
	if len(x.points) == 0 {
		return false
	}
	for p := range around {
		for _, at := range x.points[prefixKey{p, block}] {
			if len(at.begin) > 0 {
				return true
			}
		}
	}
	return false
}

// around are the prefixes in use that contain k's, the longest first.
func (e *Engine) around(k prefixKey) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for p := range e.prefixes.used[k.space()].Supernets(k.Prefix) {
			if !yield(p) {
				return
			}
		}
	}
}

// markNet marks the row of a prefix's identity that comes or goes.
func (e *Engine) markNet(id *ident, comes bool) {
	for _, rs := range e.ruleSets {
		for dir := range rs.dirs {
			d := &rs.dirs[dir]
			_, has := d.rows[id.number]
			// Without room for all, who goes may have had no row and make room.
			if has || d.extent != whole || comes && d.nets.begins(id.net.block, e.around(id.net)) {
				e.mark(rs, dir, id.number)
			}
		}
	}
}

// prefixIdentities are those of all prefixes, in use or not any more.
func (e *Engine) prefixIdentities() iter.Seq[*ident] {
	return func(yield func(*ident) bool) {
		one := func(p *prefix) bool {
			id, ok := e.identities[p.number]
			return !ok || yield(id)
		}
		for _, t := range e.prefixes.used {
			for _, p := range t.All() {
				if !one(p) {
					return
				}
			}
		}
		for _, p := range e.prefixes.retired {
			if !one(p) {
				return
			}
		}
	}
}

// spread marks the rows inside the prefixes that are dirty.
func (e *Engine) spread(d *direction) {
	var dirty [2][]netip.Prefix
	for k := range d.nets.dirty {
		dirty[k.space()] = append(dirty[k.space()], k.Prefix)
	}
	clear(d.nets.dirty)
	for space, t := range e.prefixes.used {
		all := newSpans(dirty[space])
		for _, span := range all {
			for _, p := range t.Subnets(span) {
				d.dirty[p.number] = struct{}{}
			}
		}
		for k, p := range e.prefixes.retired {
			if k.space() == space && all.cover(k.Prefix) {
				d.dirty[p.number] = struct{}{}
			}
		}
	}
}

// spans are prefixes in order, none inside another.
type spans []netip.Prefix

func newSpans(list []netip.Prefix) spans {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Prefix.Compare)
	var out spans
	for _, p := range list {
		if !out.cover(p) {
			out = append(out, p)
		}
	}
	return slices.Clip(out)
}

// cover reports whether p is one of them or inside one.
func (s spans) cover(p netip.Prefix) bool {
	after, same := slices.BinarySearchFunc(s, p, netip.Prefix.Compare)
	if same {
		return true
	}
	return after > 0 && s[after-1].Bits() <= p.Bits() && s[after-1].Contains(p.Addr())
}
