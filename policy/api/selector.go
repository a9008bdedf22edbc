// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/identity/labels"
)

// Operator relates a label to values.
type Operator string

// Operators.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement is one condition on a label. Source labels.Any concerns the key
// whatever its source, except labels that are not the workload's own (mesh,
// namespace, reserved, cidr): In and Exists want one such label, NotIn and DoesNotExist want none.
type Requirement struct {
	Source, Key string
	Operator    Operator
	Values      []string // sorted; empty unless In or NotIn
}

// Matches reports whether a set of labels meets the requirement.
func (r Requirement) Matches(ls labels.Set) bool {
	found := slices.ContainsFunc(ls, r.finds)
	return found == (r.Operator == In || r.Operator == Exists)
}

func (r Requirement) finds(l labels.Label) bool {
	if l.Key != r.Key {
		return false
	}
	switch r.Source {
	case l.Source:
	case labels.Any:
		switch l.Source {
		case labels.Mesh, labels.Namespace, labels.Reserved, labels.CIDR, labels.Service:
			return false
		}
	default:
		return false
	}
	switch r.Operator {
	case In, NotIn:
		_, ok := slices.BinarySearch(r.Values, l.Value)
		return ok
	default:
		return true
	}
}

func (r Requirement) appendTo(b *strings.Builder) {
	name := r.Key
	if r.Source != labels.Any {
		name = r.Source + ":" + r.Key
	}
	switch {
	case r.Operator == Exists:
		b.WriteString(name)
	case r.Operator == DoesNotExist:
		b.WriteString("!" + name)
	case r.Operator == In && len(r.Values) == 1:
		b.WriteString(name + "=" + r.Values[0])
	case r.Operator == In:
		b.WriteString(name + " in (" + strings.Join(r.Values, ",") + ")")
	default:
		b.WriteString(name + " not in (" + strings.Join(r.Values, ",") + ")")
	}
}

// Selector selects sets of labels that meet all requirements; without any it
// selects every set. Make it with NewSelector.
type Selector struct {
	Requirements []Requirement
	text         string
}

// NewSelector puts requirements into canonical order, so that equal selectors
// have equal texts.
func NewSelector(reqs ...Requirement) Selector {
	reqs = slices.Clone(reqs)
	for i := range reqs {
		vs := slices.Clone(reqs[i].Values)
		slices.Sort(vs)
		reqs[i].Values = slices.Compact(vs)
	}
	slices.SortFunc(reqs, func(a, b Requirement) int {
		return cmp.Or(strings.Compare(a.Source, b.Source), strings.Compare(a.Key, b.Key),
			strings.Compare(string(a.Operator), string(b.Operator)), slices.Compare(a.Values, b.Values))
	})
	reqs = slices.CompactFunc(reqs, func(a, b Requirement) bool {
		return a.Source == b.Source && a.Key == b.Key && a.Operator == b.Operator &&
			slices.Equal(a.Values, b.Values)
	})
	var b strings.Builder
	for i, r := range reqs {
		if i > 0 {
			b.WriteString(", ")
		}
		r.appendTo(&b)
	}
	return Selector{Requirements: reqs, text: b.String()}
}

// With is the selector with more requirements.
func (s Selector) With(reqs ...Requirement) Selector {
	return NewSelector(append(slices.Clone(s.Requirements), reqs...)...)
}

// Matches reports whether the selector selects a set of labels.
func (s Selector) Matches(ls labels.Set) bool {
	for _, r := range s.Requirements {
		if !r.Matches(ls) {
			return false
		}
	}
	return true
}

// Names reports whether a requirement concerns exactly this source and key.
func (s Selector) Names(source, key string) bool {
	return slices.ContainsFunc(s.Requirements, func(r Requirement) bool {
		return r.Source == source && r.Key == key
	})
}

// String is the selector for people: "app=web, mesh:cluster in (east,west)";
// "all" when it has no requirement.
func (s Selector) String() string {
	if len(s.Requirements) == 0 {
		return "all"
	}
	return s.text
}

// ID tells selectors apart: two that mean the same conditions share it. Unlike
// String it cannot be forged by values that hold ',' or ')'.
func (s Selector) ID() string {
	var b strings.Builder
	for _, r := range s.Requirements {
		for _, part := range append([]string{r.Source, r.Key, string(r.Operator)}, r.Values...) {
			b.WriteString(part)
			b.WriteByte(0)
		}
		b.WriteByte(1)
	}
	return b.String()
}
