// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// settleRuleSet brings the dirty rows of a rule set up to date, and leaves out
// what it has no room for.
func (e *Engine) settleRuleSet(rs *ruleSet, c *Change) {
	var drafts [2]draft
	for dir := range rs.dirs {
		e.prepare(&rs.dirs[dir])
		drafts[dir] = e.draft(rs, dir, whole)
	}
	for e.maxEntries > 0 && drafts[0].size+drafts[1].size > e.maxEntries {
		dir := larger(drafts)
		drafts[dir].rows = nil // before the next are made
		drafts[dir] = e.draft(rs, dir, drafts[dir].extent+1)
	}
	for dir := range rs.dirs {
		rs.dirs[dir].apply(dir, drafts[dir], c)
	}
}

// prepare notes which rows are dirty.
func (e *Engine) prepare(d *direction) {
	closed := d.closes > 0 || e.mode == ModeAlways
	enforced := closed || d.denies > 0
	if e.mode == ModeNever {
		closed, enforced = false, false
	}
	if enforced != d.enforced || closed != d.closed {
		d.enforced, d.closed, d.all = enforced, closed, true
	}
	if !d.all {
		e.spread(d)
	}
}

// apply has a direction be as drafted; nothing in it is dirty any more.
func (d *direction) apply(dir int, as draft, c *Change) {
	if as.all {
		for n := range d.rows {
			if _, ok := as.rows[n]; !ok {
				d.replace(dir, n, nil, c)
			}
		}
		c.Upsert = slices.Grow(c.Upsert, as.size)
	}
	for n, row := range as.rows {
		d.replace(dir, n, row, c)
	}
	d.extent, d.size, d.all = as.extent, as.size, false
	clear(d.nets.dirty)
	clear(d.dirty)
}

// draft makes the dirty rows of a direction, all of them when it has another
// extent now.
func (e *Engine) draft(rs *ruleSet, dir int, as extent) draft {
	d := &rs.dirs[dir]
	out := draft{extent: as, all: d.all || as != d.extent, limit: e.maxEntries}
	switch {
	case !out.all:
		e.draftDirty(rs, dir, &out)
	case !d.enforced: // no rows
	case as == nothing:
		if own := hostRow(dir, identity.Host); own != nil {
			out.add(identity.Host, own)
		}
	case as == whole && d.named == 0 && d.fits(&out):
		e.draftAll(rs, dir, &out)
	case as != whole || d.mayFit(dir, e.maxEntries):
		e.draftOneByOne(rs, dir, &out)
	default:
		out.tooMuch()
	}
	return out
}

// draftDirty makes the rows that are dirty.
func (e *Engine) draftDirty(rs *ruleSet, dir int, out *draft) {
	d := &rs.dirs[dir]
	held := d.size
	if out.extent == nothing || len(d.dirty) == 0 {
		out.size = held
		return
	}
	wild := d.rows[0]
	if _, ok := d.dirty[0]; ok {
		held -= len(wild)
		wild = rs.wildRow(dir)
		out.add(0, wild)
	}
	for n := range d.dirty {
		if n == 0 {
			continue
		}
		held -= len(d.rows[n])
		if !out.add(n, e.rowOf(rs, dir, n, wild, out.extent)) {
			return
		}
	}
	if out.size += held; out.limit > 0 && out.size > out.limit {
		out.tooMuch()
	}
}

// wildRow is the settled row of any identity.
func (rs *ruleSet) wildRow(dir int) []verdict {
	d := &rs.dirs[dir]
	if !d.enforced {
		return nil
	}
	var vs []verdict
	for _, p := range d.wild {
		vs = append(vs, p.verdicts...)
		vs = p.resolve(vs, rs.ports) // of egress parts compile has taken the names out
	}
	if !d.closed {
		vs = append(vs, verdict{}) // only denies are enforced: the rest passes
	}
	return settle(vs, nil)
}

// rowOf is the settled row of one identity; wild is that of any.
func (e *Engine) rowOf(rs *ruleSet, dir int, n identity.Number, wild []verdict, as extent) []verdict {
	d := &rs.dirs[dir]
	if !d.enforced {
		return nil
	}
	if own := hostRow(dir, n); own != nil {
		return own
	}
	id, ok := e.identities[n]
	if !ok {
		return nil
	}
	ports := rs.ports // a name means a port of who is connected to
	if dir == int(datapath.Egress) {
		ports = id.ports
	}
	vs := d.saidOf(id, ports, as)
	if id.net.IsValid() {
		vs = d.nets.verdicts(vs, id.net, id.ports, e.around(id.net))
	}
	if as == deniesOnly {
		vs = slices.DeleteFunc(vs, func(v verdict) bool { return !v.deny })
	}
	vs = settle(vs, wild)
	if cap(vs) > 2*len(vs) {
		vs = slices.Clone(vs) // it is kept
	}
	return vs
}

// saidOf is what is said of an identity through selectors. When many say the
// same, no more of it is in memory than there is, twice.
func (d *direction) saidOf(id *ident, ports []NamedPort, as extent) (vs []verdict) {
	const few = 4096
	distinct := 0
	for _, s := range id.matched {
		said, ok := d.peers[s]
		if !ok {
			continue
		}
		if as == whole {
			vs = append(vs, said.verdicts()...)
		}
		for _, p := range said.parts {
			switch {
			case as == whole:
				vs = p.resolve(vs, ports)
			case p.deny:
				vs = p.resolve(append(vs, p.verdicts...), ports)
			}
		}
		if len(vs) > 2*distinct+few {
			vs = unique(vs)
			distinct = len(vs)
		}
	}
	return vs
}

// hostRow lets the own host in, whatever the rules say: its probes must arrive.
func hostRow(dir int, n identity.Number) []verdict {
	if n != identity.Host || dir != int(datapath.Ingress) {
		return nil
	}
	return []verdict{{}}
}

// draftAll makes all rows of a direction: one pass counts the verdicts of each
// identity, the second lays them out in one array.
func (e *Engine) draftAll(rs *ruleSet, dir int, out *draft) {
	d := &rs.dirs[dir]
	wild := rs.wildRow(dir)
	touched, total := d.countVerdicts()
	buf := make([]verdict, total)
	at := 0
	for _, i := range touched {
		i.scratch, at = at, at+i.scratch
	}
	starts := make([]int, len(touched), len(touched)+1)
	for k, i := range touched {
		starts[k] = i.scratch
	}
	starts = append(starts, total)
	d.layOut(buf)
	out.rows = make(map[identity.Number][]verdict, len(touched)+2)
	out.add(0, wild)
	for k, i := range touched {
		i.scratch = 0
		vs := buf[starts[k]:starts[k+1]:starts[k+1]]
		if hostRow(dir, i.number) != nil || out.over() {
			continue
		}
		if i.net.IsValid() {
			vs = d.nets.verdicts(vs, i.net, i.ports, e.around(i.net))
		}
		out.add(i.number, settle(vs, wild))
	}
	if len(d.nets.points) > 0 {
		for i := range e.prefixIdentities() {
			if _, done := out.rows[i.number]; !done && !out.over() {
				out.add(i.number, settle(d.nets.verdicts(nil, i.net, i.ports, e.around(i.net)), wild))
			}
		}
	}
	if own := hostRow(dir, identity.Host); own != nil {
		out.add(identity.Host, own)
	}
}

// draftOneByOne is draftAll for a direction with ports by name, of which each
// identity may have another number, and for one that may not fit: no more rows
// are made than do.
func (e *Engine) draftOneByOne(rs *ruleSet, dir int, out *draft) {
	d := &rs.dirs[dir]
	wild := rs.wildRow(dir)
	if !out.add(0, wild) {
		return
	}
	touched := map[identity.Number]struct{}{identity.Host: {}}
	for s, said := range d.peers {
		if out.extent == deniesOnly && !said.denies() {
			continue
		}
		for i := range s.matches {
			touched[i.number] = struct{}{}
		}
	}
	if len(d.nets.points) > 0 {
		for i := range e.prefixIdentities() {
			touched[i.number] = struct{}{}
		}
	}
	for n := range touched {
		if !out.add(n, e.rowOf(rs, dir, n, wild, out.extent)) {
			return
		}
	}
}

func (d *direction) countVerdicts() (touched []*ident, total int) {
	for s, said := range d.peers {
		n := len(said.verdicts())
		if n == 0 {
			continue
		}
		for i := range s.matches {
			if i.scratch == 0 {
				touched = append(touched, i)
			}
			i.scratch += n
			total += n
		}
	}
	return touched, total
}

func (d *direction) layOut(buf []verdict) {
	for s, said := range d.peers {
		vs := said.verdicts()
		for i := range s.matches {
			i.scratch += copy(buf[i.scratch:], vs)
		}
	}
}
