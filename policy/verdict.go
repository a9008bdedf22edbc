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
	port  uint16
}

// covers reports whether every packet of b is one of c.
func (c cell) covers(b cell) bool {
	return c.proto == 0 || c.proto == b.proto && (c.port == 0 || c.port == b.port)
}

func (c cell) compare(b cell) int {
	return cmp.Or(cmp.Compare(c.proto, b.proto), cmp.Compare(c.port, b.port))
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
	vs = slices.CompactFunc(vs, func(a, b verdict) bool { return a.cell == b.cell })
	own := vs
	for i := range vs {
		if vs[i].deny {
			continue
		}
		if d, ok := denied(vs[i].cell, own, wild); ok {
			vs[i].deny, vs[i].origin = true, d.origin
			continue
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

// denied finds a deny that covers c.
func denied(c cell, own, wild []verdict) (verdict, bool) {
	for _, vs := range [][]verdict{own, wild} {
		for _, wide := range []cell{{}, {proto: c.proto}, c} {
			if i, ok := search(vs, wide); ok && vs[i].deny {
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

// Decide looks a packet up as the kernel does: the first of the six probes that
// hits decides; without a hit, the direction's default.
func Decide(rs datapath.RuleSet, d datapath.Direction, peer identity.Number, proto uint8, port uint16) Decision {
	enforced := rs.Ingress
	if d == datapath.Egress {
		enforced = rs.Egress
	}
	for _, n := range []identity.Number{peer, 0} {
		for _, c := range []cell{{proto, port}, {proto, 0}, {0, 0}} {
			k := datapath.PolicyKey{Direction: d, Identity: n, Protocol: c.proto, Port: c.port}
			if entry, ok := rs.Entries[k]; ok && enforced {
				return Decision{Allow: !entry.Deny, Key: k, Origin: entry.Origin}
			}
		}
	}
	return Decision{Allow: !enforced, Default: true}
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
