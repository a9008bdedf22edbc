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
	size     int                           // verdicts in all rows
	extent   extent                        // of what the parts say, in rows
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

// denies reports whether one of the parts denies.
func (s *said) denies() bool {
	return slices.ContainsFunc(s.parts, func(p *part) bool { return p.deny })
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
		e.settleRuleSet(rs, &c)
		c.Ingress, c.Egress = rs.dirs[datapath.Ingress].enforced, rs.dirs[datapath.Egress].enforced
		out = append(out, c)
	}
	clear(e.dirty)
	return out
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
func (rs *ruleSet) size() int { return rs.dirs[datapath.Ingress].size + rs.dirs[datapath.Egress].size }

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
