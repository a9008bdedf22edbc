// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// noise are labels that differ from pod to pod of one workload, or from rollout
// to rollout. With them each pod would be an identity of its own.
func noise() []string {
	return []string{
		"apps.kubernetes.io/pod-index=",
		"batch.kubernetes.io/controller-uid=",
		"batch.kubernetes.io/job-completion-index=",
		"controller-revision-hash=",
		"controller-uid=",
		"pod-template-generation=",
		"pod-template-hash=",
		"statefulset.kubernetes.io/pod-name=",
	}
}

// Filter says which of a workload's labels count for its identity. The zero
// value lets all count; ParseFilter adds the defaults.
type Filter struct {
	rules []filterRule // the longest first
	// listed: only what a rule names counts.
	listed bool
}

type filterRule struct {
	source  string // "" is any
	prefix  string // of "key="
	exclude bool
}

// ParseFilter reads rules, each "[!][source:]prefix", and puts the defaults,
// which leave out what differs from pod to pod, below them. A label counts or,
// after "!", does not when "key=" begins with the prefix: "app" names app and
// app.kubernetes.io/name, "app=" only app, "*" every key. Of several rules that
// name a label the one with the longest prefix decides, then the one with a
// source, then the one given before the defaults. If there is any rule without
// "!", labels that no rule names do not count; else they do. All problems are
// joined.
func ParseFilter(rules []string) (Filter, error) {
	var f Filter
	var errs []error
	given := map[filterRule]bool{}
	for _, text := range rules {
		r, err := parseRule(text)
		opposite := r
		opposite.exclude = !r.exclude
		switch {
		case err != nil:
			errs = append(errs, err)
		case given[opposite]:
			errs = append(errs, fmt.Errorf("label filter %q: there is also one that says the opposite", text))
		case !given[r]:
			given[r] = true
			f.rules = append(f.rules, r)
			f.listed = f.listed || !r.exclude
		}
	}
	for _, prefix := range noise() {
		f.rules = append(f.rules, filterRule{prefix: prefix, exclude: true})
	}
	slices.SortStableFunc(f.rules, func(a, b filterRule) int {
		if d := len(b.prefix) - len(a.prefix); d != 0 {
			return d
		}
		return len(b.source) - len(a.source)
	})
	return f, errors.Join(errs...)
}

func parseRule(text string) (filterRule, error) {
	rest, exclude := strings.CutPrefix(strings.TrimSpace(text), "!")
	r := filterRule{prefix: rest, exclude: exclude}
	if source, prefix, found := strings.Cut(rest, ":"); found {
		r.source, r.prefix = source, prefix
		if source == "" || source == Any {
			return r, fmt.Errorf("label filter %q: leave out the source to mean any", text)
		}
	}
	name, value, _ := strings.Cut(r.prefix, "=")
	switch {
	case r.source == Mesh, r.source == Reserved, r.source == CIDR:
		return r, fmt.Errorf("label filter %q: labels of source %s always count", text, r.source)
	case r.prefix == "*":
		r.prefix = ""
	case name == "":
		return r, fmt.Errorf("label filter %q: no prefix; * means every key", text)
	case value != "":
		return r, fmt.Errorf("label filter %q: goes by key; write %q", text, strings.TrimSuffix(strings.TrimSpace(text), value))
	case strings.ContainsAny(name, "*!; \t"):
		return r, fmt.Errorf("label filter %q: a prefix of a key, without '*', '!', ';' and spaces", text)
	}
	return r, nil
}

// Counts reports whether a label is part of the identity. Labels that Hawser
// sets itself always are.
func (f Filter) Counts(l Label) bool {
	if l.Source == Mesh || l.Source == Reserved || l.Source == CIDR {
		return true
	}
	for _, r := range f.rules {
		if (r.source == "" || r.source == l.Source) && strings.HasPrefix(l.Key+"=", r.prefix) {
			return !r.exclude
		}
	}
	return !f.listed
}

// Apply returns the labels of a set that count.
func (f Filter) Apply(s Set) Set {
	out := make(Set, 0, len(s))
	for _, l := range s {
		if f.Counts(l) {
			out = append(out, l)
		}
	}
	return out
}
