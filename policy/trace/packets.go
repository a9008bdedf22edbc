// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// cell is ports, or ICMP types, of a protocol between which no entry of two rule
// sets tells a difference.
type cell struct {
	proto       uint8
	first, last uint32
}

// otherProtocol stands for all protocols that have no ports and no types, such as
// GRE, ESP and IPIP: no rule names one of them. It is one that is nobody's (RFC 3692).
const otherProtocol = 253

// domain is what of a protocol policy is asked about: all ports, as nobody has port 0,
// and of ICMP the echo requests.
func domain(proto uint8) cell {
	switch {
	case isICMP(proto):
		echo := uint32(api.ICMPPort(api.EchoRequest(proto)))
		return cell{proto, echo, echo}
	case proto == otherProtocol:
		return cell{proto, 0, 0}
	}
	return cell{proto, 1, 65535}
}

// line is an entry of one identity.
type line struct {
	proto, wild uint8
	port        uint16
	deny        bool
}

// cellsOf are all packets that policy is asked about, cut wherever an entry of some rows begins or ends.
func cellsOf(rows ...[]line) (out []cell) {
	for _, proto := range protocols() {
		out = append(out, domain(proto).cut(rows)...)
	}
	return out
}

// cut cuts a cell.
func (c cell) cut(rows [][]line) (out []cell) {
	cuts := []uint32{c.first, c.last + 1}
	at := func(at uint32) {
		if c.first < at && at <= c.last {
			cuts = append(cuts, at)
		}
	}
	for _, lines := range rows {
		for _, l := range lines {
			if l.proto == c.proto && (l.port != 0 || l.wild != 0) {
				at(uint32(l.port))
				at(uint32(l.port) + 1<<l.wild)
			}
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i, first := range cuts[:len(cuts)-1] {
		out = append(out, cell{c.proto, first, cuts[i+1] - 1})
	}
	return out
}

// protocols are those that policy is asked about.
func protocols() []uint8 {
	return []uint8{api.TCP, api.UDP, api.SCTP, api.ICMP, api.ICMPv6, otherProtocol}
}

// delta is what becomes of the packets between two ends. The texts of equal ones
// are equal.
type delta struct{ opened, closed []string }

func (x delta) none() bool { return len(x.opened)+len(x.closed) == 0 }

func (x delta) equal(o delta) bool {
	return slices.Equal(x.opened, o.opened) && slices.Equal(x.closed, o.closed)
}

// deltaOf asks two rule sets about a packet of each cell.
func deltaOf(d datapath.Direction, old, now datapath.RuleSet, w who, cells []cell) delta {
	var opened, closed []cell
	for _, c := range cells {
		was := policy.Decide(old, d, w.before, c.proto, uint16(c.first)).Allow
		is := policy.Decide(now, d, w.after, c.proto, uint16(c.first)).Allow
		switch {
		case is && !was:
			opened = append(opened, c)
		case was && !is:
			closed = append(closed, c)
		}
	}
	return delta{cellTexts(opened), cellTexts(closed)}
}

// cellTexts names cells, which are in order, neighbours together.
func cellTexts(cells []cell) []string {
	var joined []cell
	whole := 0
	for _, c := range cells {
		if n := len(joined); n > 0 && joined[n-1].proto == c.proto && joined[n-1].last+1 == c.first {
			joined[n-1].last = c.last
		} else {
			joined = append(joined, c)
		}
		if joined[len(joined)-1] == domain(c.proto) {
			whole++
		}
	}
	if whole == len(protocols()) {
		return []string{"everything"}
	}
	var out []string
	for _, c := range joined {
		out = append(out, c.String())
	}
	return out
}

func (c cell) String() string {
	proto := ProtocolName(c.proto)
	switch {
	case c.proto == otherProtocol:
		return "other protocols"
	case isICMP(c.proto):
		return fmt.Sprintf("%s type %d", proto, c.first&0xFF)
	case c == domain(c.proto):
		return "all ports of " + proto
	case c.first == c.last:
		return fmt.Sprintf("%d/%s", c.first, proto)
	}
	return fmt.Sprintf("%d-%d/%s", c.first, c.last, proto)
}

// rows are the entries of a direction by identity, and a number for each row:
// those with the same say the same.
type rows struct {
	lines  map[identity.Number][]line
	number map[identity.Number]int
}

// rowsOf numbers the rows of a direction; known are the rows numbered so far, by
// what they say.
func rowsOf(d datapath.Direction, rs datapath.RuleSet, known map[string]int) rows {
	x := rows{map[identity.Number][]line{}, map[identity.Number]int{}}
	for k, e := range rs.Entries {
		if k.Direction == d {
			x.lines[k.Identity] = append(x.lines[k.Identity], line{k.Protocol, k.PortWild, k.Port, e.Deny})
		}
	}
	var text []byte
	for n, lines := range x.lines {
		slices.SortFunc(lines, func(a, b line) int {
			return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port), cmp.Compare(a.wild, b.wild))
		})
		text = text[:0]
		for _, l := range lines {
			deny := byte(0)
			if l.deny {
				deny = 1
			}
			text = append(text, l.proto, l.wild, byte(l.port>>8), byte(l.port), deny)
		}
		if _, ok := known[string(text)]; !ok {
			known[string(text)] = len(known) + 1
		}
		x.number[n] = known[string(text)]
	}
	return x
}

// kind is all that a decision about a peer depends on, beside the rows for any
// identity. An address in no block is not looked up a second time.
func (x rows) kind(p policy.Peer) [2]int {
	k := [2]int{x.number[p.Identity], 0}
	if p.Block != 0 {
		k[1] = x.number[p.Block]
	}
	return k
}

// met are the rows that a decision about a peer looks at.
func (x rows) met(p policy.Peer) [][]line {
	return [][]line{x.lines[0], x.lines[p.Identity], x.lines[p.Block]}
}
