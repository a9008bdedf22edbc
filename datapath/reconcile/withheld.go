// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// An address whose narrowest prefix is not in the kernel is found in a wider one,
// or in none, and would be judged by that one's identity or as world: a deny of
// the narrow prefix would be void. So the identity of what is found instead is
// hidden, and policy drops what it holds as "identity unknown yet", until the
// narrow one can be written. Where nothing is found, an element for all addresses
// of the family is put there.

// sparePrefixes is how much room the trie keeps for elements for all addresses:
// one for each family. One more lets an element be replaced in kernels that
// refuse that to a full trie.
const sparePrefixes = 3

// Withheld is what of the ipcache the kernel could not be told.
type Withheld struct {
	// Missing are the rows that are not in the kernel, or only without identity.
	Missing []datapath.IPKey
	// Around are the prefixes whose identity is hidden because of them: packets
	// from and to what they hold are dropped by every endpoint with a policy.
	Around []datapath.IPKey
}

// Withheld is what of the ipcache the kernel could not be told at the last
// attempt. The caller must not change it.
func (r *Reconciler) Withheld() Withheld {
	for _, t := range r.tables {
		if s, ok := t.(*ipcache); ok && s.told.Load() != nil {
			return *s.told.Load()
		}
	}
	return Withheld{}
}

// hidden is an element that tells no identity.
func hidden(v maps.IPEntry) maps.IPEntry {
	v.Identity, v.Flags = 0, v.Flags|uint8(datapath.IPWithheld)
	return v
}

// adopt takes over what an agent before this one has hidden.
func (s *ipcache) adopt() {
	for k, v := range s.prefix.have {
		if v.Identity == 0 && v.Flags&uint8(datapath.IPWithheld) != 0 {
			s.prefix.want[k] = v
			s.withheld[k], s.adopted[k] = maps.IPEntry{}, struct{}{}
		}
	}
}

// withhold hides the identities that would be found instead of those of what is
// missing. Elements that are leaving are not what is found.
func (s *ipcache) withhold(leaving map[maps.IPPrefix]struct{}) error {
	var errs []error
	for k := range s.found(leaving) {
		old, ok := s.prefix.have[k]
		if ok && old.Identity == 0 {
			continue // it tells none
		}
		v := hidden(old)
		err := s.prefix.force(k, v)
		if errors.Is(err, unix.ENOSPC) && ok {
			// Before Linux 6.13 a full trie replaces nothing.
			_, err1 := s.prefix.del(k)
			err = errors.Join(err1, s.prefix.force(k, v))
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, wanted := s.prefix.want[k]; wanted || !ok {
			old = maps.IPEntry{}
		}
		s.withheld[k], s.prefix.want[k] = old, v
		s.note(true, clusterOf(k), maps.IPEpochPrefix)
	}
	return errors.Join(errs...)
}

// release puts back what need not be hidden any more.
func (s *ipcache) release() error {
	if len(s.withheld) == 0 {
		return nil
	}
	needed := s.found(nil)
	var errs []error
	for k, left := range s.withheld {
		_, need := needed[k]
		if _, adopted := s.adopted[k]; need || adopted {
			continue
		}
		err := s.releaseOne(k, left)
		if errors.Is(err, errNotYet) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		delete(s.withheld, k)
		s.note(true, clusterOf(k), maps.IPEpochPrefix)
	}
	return errors.Join(errs...)
}

// errNotYet is that of a row that has to be written first.
var errNotYet = errors.New("not yet")

func (s *ipcache) releaseOne(k maps.IPPrefix, left maps.IPEntry) error {
	key := rowKey(k)
	if row, ok := s.table.Get(key); ok {
		if s.changes.Has(key) {
			return errNotYet // the row may have an identity that the rule sets do not know
		}
		v, err := s.encode(row)
		if err == nil {
			err = s.prefix.force(k, v)
		}
		if err == nil {
			s.prefix.want[k] = v
			s.missing.remove(key)
		}
		return err
	}
	if left != (maps.IPEntry{}) {
		delete(s.prefix.want, k)
		return s.prefix.force(k, left)
	}
	_, err := s.prefix.delWanted(k)
	return err
}

// found are the keys of the elements that the kernel finds instead of those that
// are missing, or of elements to put there where it would find none.
func (s *ipcache) found(leaving map[maps.IPPrefix]struct{}) map[maps.IPPrefix]struct{} {
	out := map[maps.IPPrefix]struct{}{}
	if len(s.missing) == 0 {
		return out
	}
	widths := map[uint32]struct{}{}
	for k := range s.prefix.have {
		widths[k.Bits] = struct{}{}
	}
	for cluster, set := range s.missing {
		for p := range set.All() {
			if k, ok := s.around(datapath.IPKey{ClusterID: cluster, Prefix: p}, widths, leaving); ok {
				out[k] = struct{}{}
			}
		}
	}
	return out
}

// around is the narrowest element in the trie that holds p: p itself with an
// identity of before, else a wider one. Where there is none, an address is of
// the world, unless it is only asked for its ipBlocks: those only ever allow.
func (s *ipcache) around(p datapath.IPKey, widths map[uint32]struct{}, leaving map[maps.IPPrefix]struct{}) (maps.IPPrefix, bool) {
	var k maps.IPPrefix
	for bits := p.Prefix.Bits(); bits >= 0; bits-- {
		k = maps.EncodeIPPrefix(datapath.IPKey{ClusterID: p.ClusterID, Prefix: netip.PrefixFrom(p.Prefix.Addr(), bits)})
		if _, ok := widths[k.Bits]; !ok {
			continue
		}
		_, ok := s.prefix.have[k]
		if _, goes := leaving[k]; ok && !goes {
			return k, true
		}
	}
	return k, p.ClusterID != datapath.BlockSpace
}

// tell publishes what is missing, and adds to the error of writing it what that
// means.
func (s *ipcache) tell(err error) error {
	var w Withheld
	for cluster, set := range s.missing {
		for p := range set.AllSorted() {
			w.Missing = append(w.Missing, datapath.IPKey{ClusterID: cluster, Prefix: p})
		}
	}
	missing := len(w.Missing)
	w.Missing = append(w.Missing, s.held...)
	for k := range s.withheld {
		w.Around = append(w.Around, rowKey(k))
	}
	slices.SortFunc(w.Around, func(a, b datapath.IPKey) int { return a.Prefix.Compare(b.Prefix) })
	s.told.Store(&w)
	if err == nil || len(w.Around) == 0 {
		return err
	}
	var around []string
	for _, k := range w.Around[:min(len(w.Around), maxErrors)] {
		around = append(around, k.Prefix.String())
	}
	if more := len(w.Around) - len(around); more > 0 {
		around = append(around, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%d addresses and prefixes are not in the kernel; until they are, endpoints with a policy drop what is of no narrower prefix than %s as \"identity unknown yet\": %w",
		missing, strings.Join(around, ", "), few(err))
}

// clusterOf is the cluster of a trie key's row.
func clusterOf(k maps.IPPrefix) uint32 { return rowKey(k).ClusterID }

func rowKey(k maps.IPPrefix) datapath.IPKey {
	cluster, p := k.Prefix()
	return datapath.IPKey{ClusterID: cluster, Prefix: p}
}

// prefixSet are keys by cluster.
type prefixSet map[uint32]*bart.Table[struct{}]

func (s prefixSet) add(k datapath.IPKey) {
	if s[k.ClusterID] == nil {
		s[k.ClusterID] = &bart.Table[struct{}]{}
	}
	s[k.ClusterID].Insert(k.Prefix, struct{}{})
}

func (s prefixSet) remove(k datapath.IPKey) {
	if t := s[k.ClusterID]; t != nil {
		if t.Delete(k.Prefix); t.Size() == 0 {
			delete(s, k.ClusterID)
		}
	}
}

// inside reports whether there is any in k.
func (s prefixSet) inside(k datapath.IPKey) bool {
	if t := s[k.ClusterID]; t != nil {
		for range t.Subnets(k.Prefix) {
			return true
		}
	}
	return false
}
