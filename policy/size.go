// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// Bounds of one object. They depend on nothing but its text, so that what was
// accepted once is accepted everywhere.
const (
	// MaxPrefixEntries is how many entries the prefixes of an object may become.
	MaxPrefixEntries = 1 << 16
	// MaxBroadSelectors is how many different peer selectors an object may have
	// each of which may select nearly everybody.
	MaxBroadSelectors = 1000
	// MaxBlockNames is how often an object may ask the workloads in an ipBlock for
	// the port that they have a name for.
	MaxBlockNames = 1000
)

// Check refuses objects whose cost, which grows with the product of their rules
// and peers, is beyond the bounds of one; the error joins all that is too much.
func Check(objects ...api.Object) error {
	var errs []error
	for _, o := range objects {
		errs = append(errs, checkSize(o))
	}
	return errors.Join(errs...)
}

func checkSize(o api.Object) error {
	var errs []error
	if n := prefixEntries(o); n > MaxPrefixEntries {
		errs = append(errs, fmt.Errorf("%s %s: its prefixes become %d entries for each kind of endpoint, more than %d: each port of a rule takes one for every "+
			"prefix of the object that is inside the rule's; name fewer ports or a range in rules with wide prefixes, or write fewer prefixes",
			o.Kind, o.ID(), n, MaxPrefixEntries))
	}
	if n := broadSelectors(o); n > MaxBroadSelectors {
		errs = append(errs, fmt.Errorf("%s %s: %d different peer selectors ask for no label's value, or exclude some, and so may select nearly everybody each; more than %d: "+
			"put what they exclude into one selector's values, or deny it with ingressDeny or egressDeny", o.Kind, o.ID(), n, MaxBroadSelectors))
	}
	if n := blockNames(o); n > MaxBlockNames {
		errs = append(errs, fmt.Errorf("%s %s: asks %d times, over all its ipBlocks of egress and the names of ports beside each, for the workloads in an ipBlock "+
			"that have a port of a name; more than %d: write the ports' numbers, or one ipBlock for several", o.Kind, o.ID(), n, MaxBlockNames))
	}
	return errors.Join(errs...)
}

// blockNames are, over all egress parts, their ipBlocks times their ports by name.
func blockNames(o api.Object) (total int) {
	for _, r := range o.Rules {
		for _, p := range r.Parts {
			blocks, names := 0, 0
			for _, c := range p.Peers.CIDRs {
				if c.Block {
					blocks++
				}
			}
			for _, port := range p.Ports {
				if port.Name != "" {
					names++
				}
			}
			if p.Direction == datapath.Egress {
				total += blocks * names
			}
		}
	}
	return total
}

// prefixEntries are, over all parts with the same ports and verdict together, the
// prefixes of the object inside theirs, times what their ports are in the kernel.
func prefixEntries(o api.Object) int {
	type say struct {
		ports string
		deny  bool
		in    bool
		block bool
	}
	var all [2][]netip.Prefix // by block
	wide := map[say][]netip.Prefix{}
	cells := map[say]int{}
	for _, r := range o.Rules {
		for _, p := range r.Parts {
			if len(p.Peers.CIDRs) == 0 {
				continue
			}
			s := say{ports: fmt.Sprint(p.Ports), deny: p.Deny, in: p.Direction == 0}
			n := max(1, len(p.Ports))
			for _, port := range p.Ports {
				if port.Name == "" {
					n += len(cellsOf(port)) - 1
				}
			}
			for _, c := range p.Peers.CIDRs {
				s.block = c.Block
				wide[s], cells[s] = append(wide[s], c.Prefix), n
				space := prefixKey{block: c.Block}.space()
				all[space] = append(append(all[space], c.Prefix), c.Except...)
			}
		}
	}
	for i := range all {
		slices.SortFunc(all[i], netip.Prefix.Compare)
		all[i] = slices.Compact(all[i])
	}
	total := 0
	for s, list := range wide {
		inside := all[prefixKey{block: s.block}.space()]
		for _, span := range newSpans(list) {
			first, _ := slices.BinarySearchFunc(inside, span, netip.Prefix.Compare)
			rest := inside[first:]
			total += cells[s] * sort.Search(len(rest), func(i int) bool { return !span.Contains(rest[i].Addr()) })
		}
	}
	return total
}

// broadSelectors counts different peer selectors that are not narrowed down to
// values of a workload's own labels, or exclude some.
func broadSelectors(o api.Object) int {
	seen := map[string]struct{}{}
	for _, r := range o.Rules {
		for _, p := range r.Parts {
			for _, s := range p.Peers.Selectors {
				if broad(s) {
					seen[s.ID()] = struct{}{}
				}
			}
		}
	}
	return len(seen)
}

func broad(s api.Selector) bool {
	narrow := false
	for _, r := range s.Requirements {
		switch r.Operator {
		case api.In:
			narrow = narrow || r.Source != labels.Mesh && r.Source != labels.Namespace
		case api.NotIn, api.DoesNotExist:
			return true
		}
	}
	return !narrow
}
