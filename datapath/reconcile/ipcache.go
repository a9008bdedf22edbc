// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"errors"
	gomaps "maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/table"
)

// ipcache writes single addresses to a hash and prefixes to a trie. Epochs are
// bumped once per pass, after all writes.
//
// Narrow prefixes are written before wide ones and deleted after them, so that no
// address is ever taken for one of a prefix that held it neither before nor
// afterwards. What cannot be written is missing: see withheld.go.
type ipcache struct {
	feed[datapath.IPKey, datapath.IPEntry]
	ids    *nodeIDs
	self   netip.Addr
	hosts  *mirror[maps.IPKey, maps.IPEntry]
	prefix *mirror[maps.IPPrefix, maps.IPEntry]
	epochs *ebpf.Map
	moved  map[uint32]struct{} // epochs to bump
	// blocksMoved: an address may be in other ipBlocks now, which renewBlocks has
	// not yet been told.
	blocksMoved bool
	renewBlocks func() error
	// vouch reports whether the rule sets know what an identity may.
	vouch   func(identity.Number) bool
	held    []datapath.IPKey // whose identity is hidden because they do not
	missing prefixSet
	// withheld are the elements whose identity is hidden, with the one to put
	// back if it was left by an agent before this one.
	withheld map[maps.IPPrefix]maps.IPEntry
	// adopted are those that an agent before this one has hidden. What is missing in
	// them may not be in the table yet: they stay hidden until it is complete.
	adopted map[maps.IPPrefix]struct{}
	told    atomic.Pointer[Withheld]
}

func newIPCache(kernel *objects.HawserMaps, t *table.Table[datapath.IPKey, datapath.IPEntry],
	ids *nodeIDs, self netip.Addr, renewBlocks func() error, vouch func(identity.Number) bool,
) (*ipcache, error) {
	hosts, err1 := newMirror[maps.IPKey, maps.IPEntry]("ipcache", kernel.Ipcache)
	prefix, err2 := newMirror[maps.IPPrefix, maps.IPEntry]("ipcache_prefix", kernel.IpcachePrefix)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	prefix.spare = sparePrefixes
	prefix.order = func(k1 maps.IPPrefix, _ maps.IPEntry, k2 maps.IPPrefix, _ maps.IPEntry) int {
		return cmp.Compare(k2.Bits, k1.Bits)
	}
	s := &ipcache{
		feed: newFeed(t), ids: ids, self: self, hosts: hosts, prefix: prefix,
		epochs: kernel.IpcacheEpochs, moved: map[uint32]struct{}{}, renewBlocks: renewBlocks, vouch: vouch,
		missing: prefixSet{}, withheld: map[maps.IPPrefix]maps.IPEntry{}, adopted: map[maps.IPPrefix]struct{}{},
	}
	s.adopt()
	return s, nil
}

// sync writes, hides what would be found instead of what is missing, deletes, and
// tries once more with the room that this has made.
func (s *ipcache) sync() (uint64, error) {
	taken := s.batch()
	puts, drops := slices.Collect(gomaps.Keys(taken.rows)), taken.gone
	s.hold(taken.rows)
	narrowFirst := func(a, b datapath.IPKey) int { return cmp.Compare(width(a), width(b)) }
	slices.SortFunc(puts, narrowFirst)
	slices.SortFunc(drops, narrowFirst)
	slices.Reverse(drops)
	failed, _ := s.putAll(puts, taken.rows)
	leaving := map[maps.IPPrefix]struct{}{}
	for _, k := range drops {
		s.missing.remove(k)
		if !maps.IsHost(k) {
			leaving[maps.EncodeIPPrefix(k)] = struct{}{}
		}
	}
	errs := []error{s.withhold(leaving), s.dropStale(failed)}
	for _, k := range drops {
		if err := s.drop(k); err != nil {
			errs = append(errs, err)
			s.changes.Requeue(k)
		}
	}
	failed, err := s.putAll(failed, taken.rows)
	errs = append(errs, s.withhold(nil), s.release(), s.tell(err), s.requeueHeld())
	s.changes.Requeue(failed...)
	return taken.revision, errors.Join(append(errs, s.bumpMoved())...)
}

// width is how many addresses a prefix has, as a power of two.
func width(k datapath.IPKey) int { return k.Prefix.Addr().BitLen() - k.Prefix.Bits() }

// putAll returns the keys that could not be written.
func (s *ipcache) putAll(keys []datapath.IPKey, rows map[datapath.IPKey]datapath.IPEntry) (failed []datapath.IPKey, err error) {
	var errs []error
	for _, k := range keys {
		s.missing.remove(k)
		if err := s.put(k, rows[k]); err != nil {
			s.missing.add(k)
			failed = append(failed, k)
			errs = append(errs, err)
		}
	}
	return failed, errors.Join(errs...)
}

func (s *ipcache) encode(row datapath.IPEntry) (v maps.IPEntry, err error) {
	v = maps.IPEntry{Identity: uint32(row.Identity), Flags: uint8(row.Flags)}
	if row.Tunnel.IsValid() && row.Tunnel != s.self {
		v.Node, err = s.ids.of(row.Tunnel)
	}
	return v, err
}

func (s *ipcache) put(k datapath.IPKey, row datapath.IPEntry) error {
	v, err := s.encode(row)
	if err != nil {
		return err
	}
	if !maps.IsHost(k) {
		return s.putPrefix(k, v)
	}
	key := maps.EncodeIPKey(k)
	changed, err := s.hosts.set(key, v)
	s.note(changed, k.ClusterID, maps.IPEpochIndex(key))
	return err
}

// dropStale deletes who had the addresses before that could not be written.
func (s *ipcache) dropStale(failed []datapath.IPKey) error {
	var errs []error
	for _, k := range failed {
		if !maps.IsHost(k) {
			continue // withhold hides it
		}
		key := maps.EncodeIPKey(k)
		changed, err := s.hosts.del(key)
		s.note(changed, k.ClusterID, maps.IPEpochIndex(key))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *ipcache) putPrefix(k datapath.IPKey, v maps.IPEntry) error {
	key := maps.EncodeIPPrefix(k)
	_, adopted := s.adopted[key]
	hide := v.Identity != 0 && (adopted || s.missing.inside(k))
	if hide {
		v = hidden(v)
	}
	changed, err := s.prefix.set(key, v)
	s.note(changed, k.ClusterID, maps.IPEpochPrefix)
	if err != nil {
		return err
	}
	if delete(s.withheld, key); hide {
		s.withheld[key] = maps.IPEntry{}
	}
	return nil
}

// drop takes away what put has written. What an agent before this one has left
// stays for the first prune.
func (s *ipcache) drop(k datapath.IPKey) error {
	if !maps.IsHost(k) {
		key := maps.EncodeIPPrefix(k)
		if _, ok := s.withheld[key]; ok && k.Prefix.Bits() == 0 {
			return nil // release takes it away when nothing is missing
		}
		changed, err := s.prefix.delWanted(key)
		s.note(changed, k.ClusterID, maps.IPEpochPrefix)
		if changed {
			delete(s.withheld, key)
		}
		return err
	}
	key := maps.EncodeIPKey(k)
	changed, err := s.hosts.delWanted(key)
	s.note(changed, k.ClusterID, maps.IPEpochIndex(key))
	return err
}

func (s *ipcache) note(changed bool, cluster, epoch uint32) {
	switch {
	case !changed:
	case cluster == datapath.BlockSpace:
		s.blocksMoved = true
	default:
		s.moved[epoch] = struct{}{}
	}
}

// bumpMoved keeps what it could not bump for the next time.
func (s *ipcache) bumpMoved() error {
	for epoch := range s.moved {
		if err := bump(s.epochs, epoch); err != nil {
			return err
		}
		delete(s.moved, epoch)
	}
	if s.blocksMoved {
		if err := s.renewBlocks(); err != nil {
			return err
		}
		s.blocksMoved = false
	}
	return nil
}

func (s *ipcache) repair(prune bool) error {
	if err := errors.Join(s.hosts.refresh(), s.prefix.refresh()); err != nil {
		return err
	}
	host := func(k maps.IPKey) { s.note(true, k.Cluster, maps.IPEpochIndex(k)) }
	prefix := func(k maps.IPPrefix) { s.note(true, clusterOf(k), maps.IPEpochPrefix) }
	errs := []error{s.hosts.rewrite(host), s.prefix.rewrite(prefix)}
	if prune {
		errs = append(errs, s.prefix.prune(prefix), s.hosts.prune(host), s.withhold(nil))
		clear(s.adopted)
		errs = append(errs, s.release())
	}
	return errors.Join(append(errs, s.bumpMoved())...)
}
