// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/internal/table"
)

// ipcache writes single addresses to a hash and prefixes to a trie. Epochs are
// bumped once per pass, after all writes.
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
}

func newIPCache(kernel *objects.HawserMaps, t *table.Table[datapath.IPKey, datapath.IPEntry],
	ids *nodeIDs, self netip.Addr, renewBlocks func() error,
) (*ipcache, error) {
	hosts, err1 := newMirror[maps.IPKey, maps.IPEntry]("ipcache", kernel.Ipcache)
	prefix, err2 := newMirror[maps.IPPrefix, maps.IPEntry]("ipcache_prefix", kernel.IpcachePrefix)
	return &ipcache{
		feed: newFeed(t), ids: ids, self: self, hosts: hosts, prefix: prefix,
		epochs: kernel.IpcacheEpochs, moved: map[uint32]struct{}{}, renewBlocks: renewBlocks,
	}, errors.Join(err1, err2)
}

func (s *ipcache) sync() (uint64, error) {
	revision, err := s.eachKey(s.put, s.drop)
	return revision, errors.Join(err, s.bumpMoved())
}

func (s *ipcache) put(k datapath.IPKey, row datapath.IPEntry) error {
	v := maps.IPEntry{Identity: uint32(row.Identity), Flags: uint8(row.Flags)}
	if row.Tunnel.IsValid() && row.Tunnel != s.self {
		id, err := s.ids.of(row.Tunnel)
		if err != nil {
			return err
		}
		v.Node = id
	}
	if !maps.IsHost(k) {
		changed, err := s.prefix.set(maps.EncodeIPPrefix(k), v)
		s.note(changed, k.ClusterID, maps.IPEpochPrefix)
		return err
	}
	key := maps.EncodeIPKey(k)
	changed, err := s.hosts.set(key, v)
	s.note(changed, k.ClusterID, maps.IPEpochIndex(key))
	return err
}

// drop takes away what put has written. What an agent before this one has left
// stays for the first prune.
func (s *ipcache) drop(k datapath.IPKey) error {
	if !maps.IsHost(k) {
		changed, err := s.prefix.delWanted(maps.EncodeIPPrefix(k))
		s.note(changed, k.ClusterID, maps.IPEpochPrefix)
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
	err1 := s.hosts.repair(prune, func(k maps.IPKey) { s.note(true, k.Cluster, maps.IPEpochIndex(k)) })
	err2 := s.prefix.repair(prune, func(k maps.IPPrefix) { s.note(true, k.Cluster, maps.IPEpochPrefix) })
	return errors.Join(err1, err2, s.bumpMoved())
}
