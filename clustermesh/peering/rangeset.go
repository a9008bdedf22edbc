// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// rangeSet are ranges in which one is found without a look at each: a grant may
// have thousands, and so may a record that is judged by it. It is not changed
// once it is made.
type rangeSet struct {
	list []netip.Prefix // as they were given
	tree *bart.Lite
}

func newRangeSet(list []netip.Prefix) rangeSet {
	s := rangeSet{list: list, tree: &bart.Lite{}}
	for _, p := range list {
		s.tree.Insert(p)
	}
	return s
}

// has reports whether an address is in one of them.
func (s rangeSet) has(a netip.Addr) bool { return a.Zone() == "" && s.tree.Contains(a) }

// covers reports whether one of them holds all of a range.
func (s rangeSet) covers(p netip.Prefix) bool { return s.tree.LookupPrefix(p) }
