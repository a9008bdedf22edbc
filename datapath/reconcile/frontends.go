// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/internal/table"
)

// frontends writes services: new backends, slots, the frontend with its count,
// its epoch, then the slots and backends that are over. Numbers of frontends and
// backends come from the pinned maps after a restart.
type frontends struct {
	feed[datapath.FrontendKey, datapath.Frontend]
	services *mirror[maps.FrontendKey, maps.Frontend]
	slots    *mirror[maps.SlotKey, uint32]
	backends *mirror[uint32, maps.Backend]
	epochs   *ebpf.Map

	numbers *numbering[maps.FrontendKey]
	ids     *numbering[maps.Backend]
	used    map[maps.Backend]int // by how many wanted rows
	adopted bool                 // unknown leftovers may use backends
}

func newFrontends(kernel *objects.HawserMaps, t *table.Table[datapath.FrontendKey, datapath.Frontend]) (*frontends, error) {
	services, err1 := newMirror[maps.FrontendKey, maps.Frontend]("services", kernel.Services)
	slots, err2 := newMirror[maps.SlotKey, uint32]("service_slots", kernel.ServiceSlots)
	backends, err3 := newMirror[uint32, maps.Backend]("backends", kernel.Backends)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	s := &frontends{
		feed: newFeed(t), services: services, slots: slots, backends: backends,
		epochs:  kernel.ServiceEpochs,
		numbers: newNumbering[maps.FrontendKey](kernel.ServiceEpochs.MaxEntries()),
		ids:     newNumbering[maps.Backend](0), used: map[maps.Backend]int{},
		adopted: len(services.have) > 0,
	}
	for k, v := range services.have {
		s.numbers.adopt(k, v.Number)
	}
	for id, b := range backends.have {
		s.ids.adopt(b, id)
	}
	return s, nil
}

func (s *frontends) sync() (uint64, error) { return s.each(s.put, s.drop) }

func (s *frontends) put(k datapath.FrontendKey, old *datapath.Frontend, row datapath.Frontend) error {
	key := maps.EncodeFrontendKey(k)
	number, err := s.numbers.of(key)
	if err != nil {
		return fmt.Errorf("number frontend %s:%d: %w", k.Addr, k.Port, err)
	}
	moved := false
	for i, b := range row.Backends {
		changed, err := s.putSlot(maps.SlotKey{Frontend: number, Slot: uint32(i)}, maps.EncodeBackend(b))
		if err != nil {
			return err
		}
		moved = moved || changed
	}
	for _, b := range row.Keeping {
		if _, err := s.putBackend(maps.EncodeBackend(b)); err != nil {
			return err
		}
	}
	v := maps.Frontend{Number: number, Service: row.Service, Count: uint32(len(row.Backends))}
	before := s.services.have[key].Count
	changed, err := s.services.set(key, v)
	if err != nil {
		return err
	}
	if changed || moved {
		if err := bump(s.epochs, number); err != nil {
			return err
		}
	}
	s.count(row, 1)
	if old != nil {
		s.count(*old, -1)
	}
	if err := s.trim(number, v.Count, before, old); err != nil {
		s.count(row, -1) // the row will come again
		if old != nil {
			s.count(*old, 1)
		}
		return err
	}
	return nil
}

func (s *frontends) putSlot(k maps.SlotKey, b maps.Backend) (bool, error) {
	id, err := s.putBackend(b)
	if err != nil {
		return false, err
	}
	return s.slots.set(k, id)
}

func (s *frontends) putBackend(b maps.Backend) (id uint32, err error) {
	if id, err = s.ids.of(b); err == nil {
		_, err = s.backends.set(id, b)
	}
	return id, err
}

// trim deletes the slots from count on and the backends that nothing uses.
func (s *frontends) trim(number, count, before uint32, old *datapath.Frontend) error {
	for i := count; i < before; i++ {
		if _, err := s.slots.del(maps.SlotKey{Frontend: number, Slot: i}); err != nil {
			return err
		}
	}
	if old == nil {
		return nil
	}
	gone := false
	for _, b := range slices.Concat(old.Backends, old.Keeping) {
		dropped, err := s.dropBackend(maps.EncodeBackend(b))
		if err != nil {
			return err
		}
		gone = gone || dropped
	}
	if !gone {
		return nil
	}
	return bump(s.epochs, number) // a flow may have been found alive meanwhile
}

func (s *frontends) dropBackend(b maps.Backend) (dropped bool, err error) {
	id, ok := s.ids.numbers[b]
	if !ok || s.used[b] > 0 {
		return false, nil
	}
	if s.adopted {
		delete(s.backends.want, id) // the first prune takes it
		return false, nil
	}
	if _, err := s.backends.del(id); err != nil {
		return false, err
	}
	s.ids.release(b)
	return true, nil
}

func (s *frontends) count(row datapath.Frontend, by int) {
	for _, b := range slices.Concat(row.Backends, row.Keeping) {
		key := maps.EncodeBackend(b)
		s.used[key] += by
		if s.used[key] == 0 {
			delete(s.used, key)
		}
	}
}

func (s *frontends) drop(k datapath.FrontendKey, old datapath.Frontend) error {
	key := maps.EncodeFrontendKey(k)
	number, ok := s.numbers.numbers[key]
	if !ok {
		return nil
	}
	if _, err := s.services.del(key); err != nil {
		return err
	}
	if err := bump(s.epochs, number); err != nil {
		return err
	}
	s.count(old, -1)
	if err := s.trim(number, 0, uint32(len(old.Backends)), &old); err != nil {
		return err
	}
	s.numbers.release(key)
	return nil
}

func (s *frontends) repair(prune bool) error {
	moved := map[uint32]struct{}{}
	err := errors.Join(
		s.services.repair(prune, func(k maps.FrontendKey) {
			if n, ok := s.numbers.numbers[k]; ok {
				moved[n] = struct{}{}
			}
		}),
		s.slots.repair(prune, func(k maps.SlotKey) { moved[k.Frontend] = struct{}{} }),
		s.backends.repair(prune, func(uint32) {}),
	)
	for n := range moved {
		err = errors.Join(err, bump(s.epochs, n))
	}
	if prune && err == nil {
		s.adopted = false
		s.numbers.keep(func(k maps.FrontendKey) bool { _, ok := s.services.have[k]; return ok })
		s.ids.keep(func(b maps.Backend) bool { return s.used[b] > 0 })
	}
	return err
}
