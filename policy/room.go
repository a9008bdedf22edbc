// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// A rule set has room for so many entries (Config.MaxEntries), since what its rules
// lead to is a product of ports and of identities, which are others' doing. When
// there are more, the larger direction goes one extent down, and again until the
// rest fits. That depends on nothing but what is said now, so that every order of
// events ends in the same entries, and all is back as soon as it fits. Whether
// it does is known before more rows are made than have room.

// extent is how much of what the parts of a direction say its rows hold. None of
// them lets pass what whole does not.
type extent uint8

const (
	whole extent = iota
	// deniesOnly leaves out what single identities are allowed; what any identity
	// is stays. Nothing that it allows is denied: denies are all there.
	deniesOnly
	nothing // passes but the own host
)

// draft is a direction as it is to be.
type draft struct {
	extent extent
	all    bool // rows are all that there are; else those that change
	rows   map[identity.Number][]verdict
	size   int // verdicts of the direction; limit+1 stands for any larger number
	limit  int // 0: none
}

// add takes a row, if there is room, and reports whether there is.
func (o *draft) add(n identity.Number, row []verdict) bool {
	if o.over() {
		return false
	}
	if o.rows == nil {
		o.rows = map[identity.Number][]verdict{}
	}
	o.rows[n] = row
	if o.size += len(row); o.over() {
		o.tooMuch()
		return false
	}
	return true
}

func (o *draft) over() bool { return o.limit > 0 && o.size > o.limit }

// tooMuch drops what there is of a draft that does not fit.
func (o *draft) tooMuch() { o.rows, o.size = nil, o.limit+1 }

// larger is the direction that has to give way: of equals ingress.
func larger(drafts [2]draft) int {
	if drafts[datapath.Ingress].extent == nothing || drafts[datapath.Egress].size > drafts[datapath.Ingress].size {
		return int(datapath.Egress)
	}
	return int(datapath.Ingress)
}

// fits reports whether all verdicts have room even if no two are about the same,
// but for those that settling repeats.
func (d *direction) fits(as *draft) bool {
	if as.limit == 0 {
		return true
	}
	total := 0
	for s, said := range d.peers {
		if total += len(said.verdicts()) * len(s.matches); total > as.limit {
			return false
		}
	}
	return true
}

// mayFit is false when there are more entries for sure: each cell has one for each
// identity of the widest selector that it is said of.
func (d *direction) mayFit(dir, limit int) bool {
	if limit == 0 {
		return true
	}
	most, total := map[cell]int{}, 0
	for s, said := range d.peers {
		identities := len(s.matches)
		if hostRow(dir, identity.Host) != nil {
			identities-- // the own host has a row that is not of the rules
		}
		for _, v := range said.verdicts() {
			more := identities - most[v.cell]
			if more <= 0 {
				continue
			}
			most[v.cell] = identities
			if total += more; total > limit {
				return false
			}
		}
	}
	return true
}

// missed says what a direction of a rule set lacks.
func (e *Engine) missed(id uint32, d datapath.Direction) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	rs, ok := e.byID[id]
	if !ok || rs.dirs[d].extent == whole {
		return ""
	}
	if rs.dirs[d].extent == nothing {
		return fmt.Sprintf("more than %d entries: nothing passes", e.maxEntries)
	}
	return fmt.Sprintf("more than %d entries: rules left out", e.maxEntries)
}

// Excess is an object of whose rules some are left out, because a rule set has no
// room for all entries.
type Excess struct {
	Object     string // namespace/name
	Directions []datapath.Direction
	// Closed: in one of them nothing passes, since the denies alone are too many.
	Closed   bool
	RuleSets int // in how many
	Entries  int // about so many the object asks for in the one where it asks for most
	Limit    int // Config.MaxEntries
}

// Excesses are all that there are, those that ask for most first.
func (e *Engine) Excesses() (out []Excess) {
	e.mu.Lock()
	defer e.mu.Unlock()
	found := map[string]Excess{}
	for _, rs := range e.ruleSets {
		for object, x := range rs.excesses() {
			all := found[object]
			for _, dir := range x.Directions {
				if !slices.Contains(all.Directions, dir) {
					all.Directions = append(all.Directions, dir)
				}
			}
			all.Closed, all.Entries = all.Closed || x.Closed, max(all.Entries, x.Entries)
			all.RuleSets++
			found[object] = all
		}
	}
	for object, x := range found {
		slices.Sort(x.Directions)
		x.Object, x.Limit = object, e.maxEntries
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Excess) int {
		return cmp.Or(cmp.Compare(b.Entries, a.Entries), strings.Compare(a.Object, b.Object))
	})
	return out
}

// excesses are those in one rule set, by object.
func (rs *ruleSet) excesses() map[string]Excess {
	out := map[string]Excess{}
	for dir := range rs.dirs {
		as := rs.dirs[dir].extent
		if as == whole {
			continue
		}
		for r := range rs.rules {
			n := 0
			for _, p := range r.parts {
				if p.dir == dir {
					n += p.leftOut(as)
				}
			}
			if n == 0 {
				continue
			}
			x := out[r.object]
			if d := datapath.Direction(dir); !slices.Contains(x.Directions, d) {
				x.Directions = append(x.Directions, d)
			}
			x.Closed, x.Entries = x.Closed || as == nothing, x.Entries+n
			out[r.object] = x
		}
	}
	return out
}

// leftOut is about how many entries a part asks for that are not there.
func (p *part) leftOut(as extent) int {
	if p.deny && as == deniesOnly {
		return 0
	}
	peers := len(p.nets)
	for _, s := range p.selectors {
		peers += len(s.matches)
	}
	if p.any && as == nothing {
		peers++
	}
	return (len(p.verdicts) + len(p.named)) * peers
}
