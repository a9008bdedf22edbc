// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
)

// ruleSet is the resolved policy of the endpoints with one set of labels.
type ruleSet struct {
	id     uint32
	key    string // Subject.key
	name   string // Subject.Name
	labels labels.Set
	ports  []NamedPort // what the endpoints call their ports
	audit  bool
	users  int
	rules  map[*rule]struct{}
	dirs   [2]direction
}

// direction is half of a rule set. rows are settled; what is dirty is not.
type direction struct {
	rows     map[identity.Number][]verdict // 0: any identity
	enforced bool                          // what rows were settled for
	closed   bool                          // default deny, as rows have it

	peers  map[*selector]*said
	nets   nets
	wild   []*part // parts for any identity
	closes int     // rules that ask for default deny
	denies int     // parts that deny
	named  int     // parts that name ports

	all   bool // every row is dirty
	dirty map[identity.Number]struct{}
}

// said is what parts say about the identities that one selector selects.
type said struct {
	parts  []*part
	merged []verdict // of the parts, for ports by number
	stale  bool
}

func (s *said) add(p *part) { s.parts, s.stale = append(s.parts, p), true }

func (s *said) remove(p *part) { s.parts, s.stale = without(s.parts, p), true }

// verdicts are those of all parts, each cell once.
func (s *said) verdicts() []verdict {
	if len(s.parts) == 1 {
		return s.parts[0].verdicts
	}
	if s.stale {
		s.merged, s.stale = nil, false
		for _, p := range s.parts {
			s.merged = append(s.merged, p.verdicts...)
		}
		s.merged = slices.Clip(unique(s.merged))
	}
	return s.merged
}

func newRuleSet(id uint32, s Subject) *ruleSet {
	rs := &ruleSet{id: id, labels: s.Labels, ports: s.Ports, audit: s.Audit, users: 1, rules: map[*rule]struct{}{}}
	for i := range rs.dirs {
		rs.dirs[i] = direction{rows: map[identity.Number][]verdict{}, peers: map[*selector]*said{}, nets: newNets(),
			all: true, dirty: map[identity.Number]struct{}{}}
	}
	return rs
}

// mark makes one row dirty.
func (e *Engine) mark(rs *ruleSet, dir int, n identity.Number) {
	if d := &rs.dirs[dir]; !d.all {
		d.dirty[n] = struct{}{}
	}
	e.dirty[rs] = struct{}{}
}

func (e *Engine) markAll(rs *ruleSet, dir int) {
	rs.dirs[dir].all = true
	clear(rs.dirs[dir].dirty)
	e.dirty[rs] = struct{}{}
}

// attach adds a rule to a rule set and marks what that concerns.
func (e *Engine) attach(rs *ruleSet, r *rule) {
	if _, twice := rs.rules[r]; twice {
		return
	}
	rs.rules[r] = struct{}{}
	r.ruleSets[rs] = struct{}{}
	e.count(rs, r, 1)
	for _, p := range r.parts {
		d := &rs.dirs[p.dir]
		if p.any {
			d.wild = append(d.wild, p)
		}
		for _, s := range p.selectors {
			if d.peers[s] == nil {
				d.peers[s] = &said{}
			}
			d.peers[s].add(p)
			s.ruleSets[p.dir][rs]++
		}
		d.nets.add(p, rs.ports, 1)
		e.markPart(rs, p)
	}
}

// detach undoes attach.
func (e *Engine) detach(rs *ruleSet, r *rule) {
	delete(rs.rules, r)
	delete(r.ruleSets, rs)
	e.count(rs, r, -1)
	for _, p := range r.parts {
		d := &rs.dirs[p.dir]
		d.wild = without(d.wild, p)
		for _, s := range p.selectors {
			if d.peers[s].remove(p); len(d.peers[s].parts) == 0 {
				delete(d.peers, s)
			}
			if s.ruleSets[p.dir][rs]--; s.ruleSets[p.dir][rs] == 0 {
				delete(s.ruleSets[p.dir], rs)
			}
		}
		d.nets.add(p, rs.ports, -1)
		e.markPart(rs, p)
	}
}

func without(ps []*part, p *part) []*part {
	return slices.DeleteFunc(ps, func(q *part) bool { return q == p })
}

func (e *Engine) count(rs *ruleSet, r *rule, by int) {
	for i := range rs.dirs {
		if r.spec.DefaultDeny[i] {
			rs.dirs[i].closes += by
		}
	}
	for _, p := range r.parts {
		if p.deny {
			rs.dirs[p.dir].denies += by
		}
		if len(p.named) > 0 {
			rs.dirs[p.dir].named += by
		}
	}
	e.dirty[rs] = struct{}{}
}

// markPart marks the rows that a part concerns: all of them when it denies to
// any identity.
func (e *Engine) markPart(rs *ruleSet, p *part) {
	if p.any {
		if p.deny {
			e.markAll(rs, p.dir)
		} else {
			e.mark(rs, p.dir, 0)
		}
	}
	if rs.dirs[p.dir].all {
		return
	}
	for _, s := range p.selectors {
		for i := range s.matches {
			e.mark(rs, p.dir, i.number)
		}
	}
}

// Change is what became of a rule set. In a list of changes, those that are
// Gone come first: their numbers may be in use again further on.
type Change struct {
	ID              uint32
	Gone            bool
	Ingress, Egress bool // as in datapath.RuleSet
	Upsert          []Entry
	Delete          []datapath.PolicyKey
}

// Entry is one entry of a rule set.
type Entry struct {
	Key datapath.PolicyKey
	datapath.PolicyEntry
}

// Changes settles all that is dirty and returns what changed since the last
// call, by rule set.
func (e *Engine) Changes() []Change {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Change
	for _, id := range e.gone {
		out = append(out, Change{ID: id, Gone: true})
	}
	e.gone = nil
	sets := slices.SortedFunc(maps.Keys(e.dirty), func(a, b *ruleSet) int { return cmp.Compare(a.id, b.id) })
	for _, rs := range sets {
		c := Change{ID: rs.id}
		for dir := range rs.dirs {
			e.settleDirection(rs, dir, &c)
		}
		c.Ingress, c.Egress = rs.dirs[datapath.Ingress].enforced, rs.dirs[datapath.Egress].enforced
		out = append(out, c)
	}
	clear(e.dirty)
	return out
}

// settleDirection brings the dirty rows of one direction up to date.
func (e *Engine) settleDirection(rs *ruleSet, dir int, c *Change) {
	d := &rs.dirs[dir]
	closed := d.closes > 0 || e.mode == ModeAlways
	enforced := closed || d.denies > 0
	if e.mode == ModeNever {
		closed, enforced = false, false
	}
	if enforced != d.enforced || closed != d.closed {
		d.enforced, d.closed, d.all = enforced, closed, true
	}
	if d.all {
		e.settleAll(rs, dir, c)
	} else {
		e.spread(d)
		if _, ok := d.dirty[0]; ok {
			d.replace(dir, 0, rs.wildRow(dir), c)
		}
		for n := range d.dirty {
			if n != 0 {
				d.replace(dir, n, e.rowOf(rs, dir, n), c)
			}
		}
	}
	d.all = false
	clear(d.nets.dirty)
	clear(d.dirty)
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

// rowOf is the settled row of one identity.
func (e *Engine) rowOf(rs *ruleSet, dir int, n identity.Number) []verdict {
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
	var vs []verdict
	for _, s := range id.matched {
		said, ok := d.peers[s]
		if !ok {
			continue
		}
		vs = append(vs, said.verdicts()...)
		for _, p := range said.parts {
			vs = p.resolve(vs, ports)
		}
	}
	if id.net.IsValid() {
		vs = d.nets.verdicts(vs, id.net, id.ports, e.around(id.net))
	}
	return settle(vs, d.rows[0])
}

// hostRow lets the own host in, whatever the rules say: its probes must arrive.
func hostRow(dir int, n identity.Number) []verdict {
	if n != identity.Host || dir != int(datapath.Ingress) {
		return nil
	}
	return []verdict{{}}
}

// settleAll builds all rows of a direction anew: one pass counts the verdicts
// of each identity, the second lays them out in one array.
func (e *Engine) settleAll(rs *ruleSet, dir int, c *Change) {
	d := &rs.dirs[dir]
	wild := rs.wildRow(dir)
	if d.named > 0 {
		e.settleOneByOne(rs, dir, wild, c)
		return
	}
	var touched []*ident
	total := 0
	if d.enforced {
		touched, total = d.countVerdicts()
	}
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
	if d.enforced {
		d.layOut(buf)
	}
	rows := make(map[identity.Number][]verdict, len(touched)+2)
	rows[0] = wild
	for k, i := range touched {
		i.scratch = 0
		vs := buf[starts[k]:starts[k+1]:starts[k+1]]
		if i.net.IsValid() {
			vs = d.nets.verdicts(vs, i.net, i.ports, e.around(i.net))
		}
		rows[i.number] = settle(vs, wild)
	}
	e.netRows(d, rows)
	if d.enforced && hostRow(dir, identity.Host) != nil {
		rows[identity.Host] = hostRow(dir, identity.Host)
	}
	for n := range d.rows {
		if _, ok := rows[n]; !ok {
			d.replace(dir, n, nil, c)
		}
	}
	c.Upsert = slices.Grow(c.Upsert, total+len(wild)+1)
	for n, row := range rows {
		d.replace(dir, n, row, c)
	}
}

// settleOneByOne is settleAll for a direction with ports by name, of which each
// identity may have another number.
func (e *Engine) settleOneByOne(rs *ruleSet, dir int, wild []verdict, c *Change) {
	d := &rs.dirs[dir]
	touched := map[identity.Number]struct{}{identity.Host: {}}
	for n := range d.rows {
		touched[n] = struct{}{}
	}
	for s := range d.peers {
		for i := range s.matches {
			touched[i.number] = struct{}{}
		}
	}
	if len(d.nets.points) > 0 {
		for i := range e.prefixIdentities() {
			touched[i.number] = struct{}{}
		}
	}
	d.replace(dir, 0, wild, c) // rowOf looks at it
	delete(touched, 0)
	for n := range touched {
		d.replace(dir, n, e.rowOf(rs, dir, n), c)
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

// replace stores a row and notes how it differs from the one before.
func (d *direction) replace(dir int, n identity.Number, row []verdict, c *Change) {
	old := d.rows[n]
	if len(row) == 0 {
		delete(d.rows, n)
	} else {
		d.rows[n] = row
	}
	for len(old) > 0 || len(row) > 0 {
		var order int
		switch {
		case len(old) == 0:
			order = 1
		case len(row) == 0:
			order = -1
		default:
			order = old[0].compare(row[0].cell)
		}
		if order < 0 {
			c.Delete = append(c.Delete, old[0].key(dir, n))
			old = old[1:]
			continue
		}
		if order > 0 || old[0] != row[0] {
			c.Upsert = append(c.Upsert, Entry{row[0].key(dir, n), row[0].entry()})
		}
		if order == 0 {
			old = old[1:]
		}
		row = row[1:]
	}
}

func (v verdict) key(dir int, n identity.Number) datapath.PolicyKey {
	return datapath.PolicyKey{Direction: datapath.Direction(dir), Identity: n, Protocol: v.proto, Port: v.port, PortWild: v.wild}
}

func (v verdict) entry() datapath.PolicyEntry {
	return datapath.PolicyEntry{Deny: v.deny, Origin: v.origin}
}

// size is how many entries there are.
func (rs *ruleSet) size() (n int) {
	for dir := range rs.dirs {
		for _, row := range rs.dirs[dir].rows {
			n += len(row)
		}
	}
	return n
}

// row is the rule set as the datapath wants it.
func (rs *ruleSet) row() datapath.RuleSet {
	out := datapath.RuleSet{ID: rs.id, Ingress: rs.dirs[datapath.Ingress].enforced,
		Egress: rs.dirs[datapath.Egress].enforced, Entries: make(map[datapath.PolicyKey]datapath.PolicyEntry, rs.size())}
	for dir := range rs.dirs {
		for n, row := range rs.dirs[dir].rows {
			for _, v := range row {
				out.Entries[v.key(dir, n)] = v.entry()
			}
		}
	}
	return out
}
