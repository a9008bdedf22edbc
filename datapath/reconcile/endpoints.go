// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	gomaps "maps"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/internal/table"
)

// endpoints writes the node's workloads: by interface for what they send, by
// address for what they receive. Where an address is decides the way of its
// packets, so its ipcache epoch moves too.
type endpoints struct {
	feed[uint16, datapath.Endpoint]
	devices *slots[maps.Endpoint]
	strays  *mirror[uint32, maps.Endpoint]
	addrs   *mirror[maps.IPKey, maps.Endpoint]
	epochs  *ebpf.Map
}

func newEndpoints(kernel *objects.HawserMaps, t *table.Table[uint16, datapath.Endpoint]) (*endpoints, error) {
	devices, err1 := newSlots[maps.Endpoint]("ep_devices", kernel.EpDevices)
	strays, err2 := newMirror[uint32, maps.Endpoint]("ep_strays", kernel.EpStrays)
	addrs, err3 := newMirror[maps.IPKey, maps.Endpoint]("endpoints", kernel.Endpoints)
	return &endpoints{
		feed: newFeed(t), devices: devices, strays: strays, addrs: addrs,
		epochs: kernel.IpcacheEpochs,
	}, errors.Join(err1, err2, err3)
}

func (s *endpoints) sync() (uint64, error) { return s.each(s.put, s.drop) }

func (s *endpoints) put(id uint16, old *datapath.Endpoint, row datapath.Endpoint) error {
	row.ID = id
	v, keys, err := maps.EncodeEndpoint(row)
	if err != nil {
		return err
	}
	keep := map[maps.IPKey]struct{}{}
	for _, k := range keys {
		keep[k] = struct{}{}
		if err := s.setAddr(k, v); err != nil {
			return err
		}
	}
	if err := s.setDevice(row.IfIndex, v); err != nil {
		return err
	}
	if old == nil {
		return nil
	}
	if old.IfIndex != row.IfIndex {
		if err := s.dropDevice(old.IfIndex, id); err != nil {
			return err
		}
	}
	return s.dropAddrs(*old, keep)
}

func (s *endpoints) drop(id uint16, old datapath.Endpoint) error {
	old.ID = id
	return errors.Join(s.dropDevice(old.IfIndex, id), s.dropAddrs(old, nil))
}

func (s *endpoints) setAddr(k maps.IPKey, v maps.Endpoint) error {
	changed, err := s.addrs.set(k, v)
	if err != nil || !changed {
		return err
	}
	return bump(s.epochs, maps.IPEpochIndex(k))
}

// dropAddrs removes the old row's addresses, unless another endpoint has taken
// them.
func (s *endpoints) dropAddrs(old datapath.Endpoint, keep map[maps.IPKey]struct{}) error {
	for _, a := range old.Addrs {
		k := maps.IPKey{Addr: maps.AddrFrom(a)}
		if _, ok := keep[k]; ok || s.addrs.have[k].ID != old.ID {
			continue
		}
		if _, err := s.addrs.del(k); err != nil {
			return err
		}
		if err := bump(s.epochs, maps.IPEpochIndex(k)); err != nil {
			return err
		}
	}
	return nil
}

func (s *endpoints) setDevice(ifindex uint32, v maps.Endpoint) error {
	var err error
	if ifindex < s.devices.m.MaxEntries() {
		_, err = s.devices.set(ifindex, v)
	} else {
		_, err = s.strays.set(ifindex, v)
	}
	return err
}

func (s *endpoints) dropDevice(ifindex uint32, id uint16) error {
	var err error
	if ifindex >= s.devices.m.MaxEntries() {
		if s.strays.have[ifindex].ID == id {
			_, err = s.strays.del(ifindex)
		}
	} else if s.devices.have[ifindex].ID == id {
		_, err = s.devices.del(ifindex)
	}
	return err
}

// discard takes what the kernel has of the endpoints that are gone, before any row
// is written, and returns their addresses.
func (s *endpoints) discard(gone func(maps.Endpoint) bool) (addrs []netip.Addr, err error) {
	var errs []error
	for k, e := range gomaps.Clone(s.addrs.have) {
		if !gone(e) {
			continue
		}
		_, err := s.addrs.del(k)
		errs = append(errs, err, bump(s.epochs, maps.IPEpochIndex(k)))
		addrs = append(addrs, k.Addr.Netip())
	}
	for index, e := range gomaps.Clone(s.devices.have) {
		if gone(e) {
			_, err := s.devices.del(index)
			errs = append(errs, err)
		}
	}
	for index, e := range gomaps.Clone(s.strays.have) {
		if gone(e) {
			_, err := s.strays.del(index)
			errs = append(errs, err)
		}
	}
	return addrs, errors.Join(errs...)
}

func (s *endpoints) repair(prune bool) error {
	var errs []error
	changed := func(k maps.IPKey) { errs = append(errs, bump(s.epochs, maps.IPEpochIndex(k))) }
	err := errors.Join(s.addrs.repair(prune, changed), s.devices.repair(prune),
		s.strays.repair(prune, func(uint32) {}))
	return errors.Join(append(errs, err)...)
}
