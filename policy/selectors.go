// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"slices"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// ident is an identity with the selectors in use that select it.
type ident struct {
	number  identity.Number
	own     labels.Set // without those of the services that it serves
	labels  labels.Set
	ports   []NamedPort // what workloads call their ports
	net     prefixKey   // whose identity it is; the zero value: not of a prefix
	matched []*selector
	scratch int // of a full build: how many verdicts, then where they go
}

// selector is a peer selector in use, with the identities that it selects now.
// Parts that select the same share it.
type selector struct {
	api.Selector
	id      string
	parts   int // users
	matches map[*ident]struct{}
	// ruleSets counts, by direction, the parts through which a rule set uses
	// the selector.
	ruleSets [2]map[*ruleSet]int
}

// term is a label as an index knows it; source labels.Any stands for all.
type term struct{ source, key, value string }

// termsOf are the terms under which a set of labels is found.
func termsOf(ls labels.Set) iter.Seq[term] {
	return func(yield func(term) bool) {
		for _, l := range ls {
			if !yield(term{l.Source, l.Key, l.Value}) || !yield(term{labels.Any, l.Key, l.Value}) {
				return
			}
		}
	}
}

// termIndex finds the selectors that may select a set of labels: each is filed
// under the values of one In requirement, the rarest when it was added.
type termIndex[T comparable] struct {
	terms  map[term]map[T]struct{}
	pivots map[T]int // index of the requirement; absent: in rest
	rest   map[T]struct{}
}

func newTermIndex[T comparable]() termIndex[T] {
	return termIndex[T]{terms: map[term]map[T]struct{}{}, pivots: map[T]int{}, rest: map[T]struct{}{}}
}

func (x *termIndex[T]) add(s api.Selector, v T) {
	best, size := -1, 0
	for i, r := range s.Requirements {
		if r.Operator != api.In {
			continue
		}
		n := 0
		for _, value := range r.Values {
			n += 2 * (1 + len(x.terms[term{r.Source, r.Key, value}]))
		}
		if r.Source == labels.Mesh || r.Source == labels.Namespace {
			n++ // cluster and namespace are seldom what tells workloads apart
		}
		if best < 0 || n < size {
			best, size = i, n
		}
	}
	if best < 0 {
		x.rest[v] = struct{}{}
		return
	}
	x.pivots[v] = best
	for t := range pivotTerms(s, best) {
		insert(x.terms, t, v)
	}
}

func (x *termIndex[T]) remove(s api.Selector, v T) {
	delete(x.rest, v)
	if pivot, ok := x.pivots[v]; ok {
		delete(x.pivots, v)
		for t := range pivotTerms(s, pivot) {
			erase(x.terms, t, v)
		}
	}
}

func pivotTerms(s api.Selector, pivot int) iter.Seq[term] {
	return func(yield func(term) bool) {
		r := s.Requirements[pivot]
		for _, value := range r.Values {
			if !yield(term{r.Source, r.Key, value}) {
				return
			}
		}
	}
}

// candidates are all selectors that may select ls; one may come twice when two
// sources have the same key.
func (x *termIndex[T]) candidates(ls labels.Set) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := range x.rest {
			if !yield(v) {
				return
			}
		}
		for t := range termsOf(ls) {
			for v := range x.terms[t] {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// addIdentity stores an identity and marks the entries that it brings.
func (e *Engine) addIdentity(id *ident) {
	e.identities[id.number] = id
	for t := range termsOf(id.labels) {
		insert(e.byLabel, t, id)
	}
	for s := range e.selIndex.candidates(id.labels) {
		if _, twice := s.matches[id]; twice || !s.Matches(id.labels) {
			continue
		}
		s.matches[id] = struct{}{}
		id.matched = append(id.matched, s)
		e.markSelector(s, id.number)
	}
	if id.net.IsValid() {
		e.markNet(id, true)
	}
}

// dropIdentity undoes addIdentity.
func (e *Engine) dropIdentity(id *ident) {
	delete(e.identities, id.number)
	for t := range termsOf(id.labels) {
		erase(e.byLabel, t, id)
	}
	for _, s := range id.matched {
		delete(s.matches, id)
		e.markSelector(s, id.number)
	}
	if id.net.IsValid() {
		e.markNet(id, false)
	}
}

// markSelector marks the row of an identity in all rule sets that use s.
func (e *Engine) markSelector(s *selector, n identity.Number) {
	for d, users := range s.ruleSets {
		for rs := range users {
			e.mark(rs, d, n)
		}
	}
}

// useSelector returns the shared selector, resolved against all identities.
func (e *Engine) useSelector(sel api.Selector) *selector {
	id := sel.ID()
	s, ok := e.selectors[id]
	if ok {
		s.parts++
		return s
	}
	s = &selector{Selector: sel, id: id, parts: 1, matches: map[*ident]struct{}{},
		ruleSets: [2]map[*ruleSet]int{{}, {}}}
	e.selectors[id] = s
	e.selIndex.add(sel, s)
	for i := range e.identitiesFor(sel) {
		if _, twice := s.matches[i]; !twice && sel.Matches(i.labels) {
			s.matches[i] = struct{}{}
			i.matched = append(i.matched, s)
		}
	}
	return s
}

// unuseSelector undoes one useSelector. Call sweep when all are undone.
func (e *Engine) unuseSelector(s *selector) {
	if s.parts--; s.parts > 0 {
		return
	}
	delete(e.selectors, s.id)
	e.selIndex.remove(s.Selector, s)
	e.unused = append(e.unused, s)
}

// sweep has identities forget the selectors that are not in use any more, each
// identity once.
func (e *Engine) sweep() {
	seen := map[*ident]struct{}{}
	for _, s := range e.unused {
		for i := range s.matches {
			if _, twice := seen[i]; !twice {
				seen[i] = struct{}{}
				i.matched = slices.DeleteFunc(i.matched, func(s *selector) bool { return s.parts == 0 })
			}
		}
	}
	e.unused = nil
}

// identitiesFor are the identities that sel may select: those with a value of
// its rarest In requirement, or all.
func (e *Engine) identitiesFor(sel api.Selector) iter.Seq[*ident] {
	return func(yield func(*ident) bool) {
		best, size := -1, 0
		for i, r := range sel.Requirements {
			if r.Operator != api.In {
				continue
			}
			n := 0
			for t := range pivotTerms(sel, i) {
				n += len(e.byLabel[t])
			}
			if best < 0 || n < size {
				best, size = i, n
			}
		}
		if best < 0 {
			for _, i := range e.identities {
				if !yield(i) {
					return
				}
			}
			return
		}
		for t := range pivotTerms(sel, best) {
			for i := range e.byLabel[t] {
				if !yield(i) {
					return
				}
			}
		}
	}
}

func insert[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	s, ok := m[k]
	if !ok {
		s = map[V]struct{}{}
		m[k] = s
	}
	s[v] = struct{}{}
}

func erase[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if s, ok := m[k]; ok {
		if delete(s, v); len(s) == 0 {
			delete(m, k)
		}
	}
}
