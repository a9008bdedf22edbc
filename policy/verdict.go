// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// cell is what a verdict is about, beside the peer. Zero fields match anything;
// a port has a protocol.
type cell struct {
	proto uint8
	wild  uint8 // low bits of port that match anything: even, up to maxWild
	port  uint16
}

const maxWild = datapath.MaxPortWild

func (c cell) anyPort() bool { return c.port == 0 && c.wild == 0 }

// covers reports whether every packet of b is one of c.
func (c cell) covers(b cell) bool {
	return c.proto == 0 || c.proto == b.proto &&
		(c.anyPort() || !b.anyPort() && c.wild >= b.wild && c.port>>c.wild == b.port>>c.wild)
}

// widened is the cell with more wild bits.
func (c cell) widened(wild uint8) cell { return cell{c.proto, wild, c.port >> wild << wild} }

func (c cell) compare(b cell) int {
	return cmp.Or(cmp.Compare(c.proto, b.proto), cmp.Compare(c.port, b.port), cmp.Compare(c.wild, b.wild))
}

// verdict is an entry of one identity in one direction.
type verdict struct {
	cell
	deny   bool
	origin uint32
}

// settle turns what the parts say about one identity into entries whose first
// hit is right, in the order in which the kernel probes: the identity's own
// entries from narrow to wide, then those of any identity.
//
// So an own allow must not hide a deny that covers it or overlaps with it: an
// allow inside a deny becomes a deny, and a deny for any identity inside an own
// allow is repeated for the identity. wild are the settled entries for any
// identity (nil when settling those). It reorders vs and may return it.
func settle(vs, wild []verdict) []verdict {
	vs = unique(vs)
	if !slices.ContainsFunc(vs, isDeny) && !slices.ContainsFunc(wild, isDeny) {
		return vs
	}
	own := vs
	for i := range vs {
		if vs[i].deny {
			continue
		}
		if d, ok := denied(vs[i].cell, own, wild); ok {
			vs[i].deny, vs[i].origin = true, d.origin
			continue
		}
		if !vs[i].anyPort() && vs[i].wild == 0 {
			continue // covers nothing but itself
		}
		for _, d := range wild {
			if d.deny && vs[i].covers(d.cell) && !has(own, d.cell) {
				vs = append(vs, d)
			}
		}
	}
	if len(vs) > len(own) {
		slices.SortFunc(vs, func(a, b verdict) int { return a.compare(b.cell) })
		vs = slices.CompactFunc(vs, func(a, b verdict) bool { return a.cell == b.cell })
	}
	return vs
}

// unique sorts verdicts and leaves one of each cell: a deny if there is one, and
// of equals that of the lowest origin. It reorders vs and returns it.
func unique(vs []verdict) []verdict {
	slices.SortFunc(vs, func(a, b verdict) int {
		c := a.compare(b.cell)
		if c == 0 && a.deny != b.deny {
			if a.deny {
				return -1
			}
			return 1
		}
		return cmp.Or(c, cmp.Compare(a.origin, b.origin))
	})
	return slices.CompactFunc(vs, func(a, b verdict) bool { return a.cell == b.cell })
}

func isDeny(v verdict) bool { return v.deny }

// denied finds a deny that covers c.
func denied(c cell, own, wild []verdict) (verdict, bool) {
	for _, vs := range [][]verdict{own, wild} {
		for _, wide := range []cell{{}, {proto: c.proto}, c} {
			if i, ok := search(vs, wide); ok && vs[i].deny {
				return vs[i], true
			}
		}
		for bits := c.wild + 2; bits <= maxWild && !c.anyPort(); bits += 2 {
			if i, ok := search(vs, c.widened(bits)); ok && vs[i].deny {
				return vs[i], true
			}
		}
	}
	return verdict{}, false
}

func search(vs []verdict, c cell) (int, bool) {
	return slices.BinarySearchFunc(vs, c, func(v verdict, c cell) int { return v.compare(c) })
}

func has(vs []verdict, c cell) bool {
	_, ok := search(vs, c)
	return ok
}

// Decision is what a rule set says about a packet.
type Decision struct {
	Allow bool
	// Key is the entry that decided; Default is set instead when none did.
	Key     datapath.PolicyKey
	Default bool
	Origin  uint32
}

// Peer is the far side of a packet.
type Peer struct {
	Identity identity.Number
	// Block is the identity of the ipBlocks that its address is in; 0 is none.
	Block identity.Number
}

// Decide looks a packet up as the kernel does: the first probe that hits
// decides; a second row of probes for the peer's ipBlock may turn that into a
// deny, or allow when nothing was hit. Without a hit it is the direction's
// default. For ICMP the port is api.ICMPPort.
func Decide(rs datapath.RuleSet, d datapath.Direction, peer Peer, proto uint8, port uint16) Decision {
	enforced := rs.Ingress
	if d == datapath.Egress {
		enforced = rs.Egress
	}
	if !enforced {
		return Decision{Allow: true, Default: true}
	}
	first, ok := probe(rs, d, []identity.Number{peer.Identity, 0}, proto, port)
	if peer.Block != 0 && (!ok || first.Allow) {
		if second, hit := probe(rs, d, []identity.Number{peer.Block}, proto, port); hit && (!ok || !second.Allow) {
			return second
		}
	}
	if ok {
		return first
	}
	return Decision{Default: true}
}

func probe(rs datapath.RuleSet, d datapath.Direction, ids []identity.Number, proto uint8, port uint16) (Decision, bool) {
	for _, n := range ids {
		cells := []cell{{proto: proto, port: port}}
		for wild := uint8(2); wild <= maxWild; wild += 2 {
			cells = append(cells, cells[0].widened(wild))
		}
		for _, c := range append(cells, cell{proto: proto}, cell{}) {
			k := verdict{cell: c}.key(int(d), n)
			if entry, ok := rs.Entries[k]; ok {
				return Decision{Allow: !entry.Deny, Key: k, Origin: entry.Origin}, true
			}
		}
	}
	return Decision{}, false
}

// InitRuleSet is datapath.InitRuleSet: nothing passes but to and from the own
// host.
func InitRuleSet() datapath.RuleSet {
	return datapath.RuleSet{
		ID: datapath.InitRuleSet, Ingress: true, Egress: true,
		Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
			{Direction: datapath.Ingress, Identity: identity.Host}: {},
			{Direction: datapath.Egress, Identity: identity.Host}:  {},
		},
	}
}
