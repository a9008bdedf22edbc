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
	tables   *tables
	clients  *ebpf.Map // that stay with a backend

	numbers *numbering[maps.FrontendKey]
	ids     *numbering[maps.Backend]
	used    map[maps.Backend]int // by how many wanted rows
	// stay are the backends that the clients of these frontends may stay with; those
	// of others are to be forgotten.
	stay    map[uint32][]uint32
	adopted bool // unknown leftovers may use backends
}

func newFrontends(kernel *objects.HawserMaps, places uint32, t *table.Table[datapath.FrontendKey, datapath.Frontend]) (*frontends, error) {
	services, err1 := newMirror[maps.FrontendKey, maps.Frontend]("services", kernel.Services)
	slots, err2 := newMirror[maps.SlotKey, uint32]("service_slots", kernel.ServiceSlots)
	backends, err3 := newMirror[uint32, maps.Backend]("backends", kernel.Backends)
	tables, err4 := newTables(kernel.Maglev, places)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	s := &frontends{
		feed: newFeed(t), services: services, slots: slots, backends: backends,
		epochs: kernel.ServiceEpochs, tables: tables, clients: kernel.Affinities,
		numbers: newNumbering[maps.FrontendKey](kernel.ServiceEpochs.MaxEntries()),
		ids:     newNumbering[maps.Backend](0), used: map[maps.Backend]int{}, stay: map[uint32][]uint32{},
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

func (s *frontends) sync() (uint64, error) {
	revision, err := s.each(s.put, s.drop)
	return revision, errors.Join(err, s.settle())
}

// settle writes the tables, and lets the clients go of backends that take no new
// flows any more: before, the tables would choose them again.
func (s *frontends) settle() error {
	if err := s.tables.flush(); err != nil {
		return err
	}
	if len(s.stay) == 0 {
		return nil
	}
	if err := forgetClients(s.clients, s.stay); err != nil {
		return err
	}
	clear(s.stay)
	return nil
}

func (s *frontends) put(k datapath.FrontendKey, old *datapath.Frontend, row datapath.Frontend) error {
	key := maps.EncodeFrontendKey(k)
	before := s.services.have[key].Count
	number, ids, moved, err := s.place(k, key, row)
	if err != nil {
		return err
	}
	if moved {
		if err := bump(s.epochs, number); err != nil {
			return err
		}
	}
	if err := s.tables.build(number, row, ids, moved); err != nil {
		return err
	}
	if row.Affinity != 0 && (old == nil || parted(*old, row)) {
		s.stay[number] = ids
	}
	s.count(row, 1)
	if old != nil {
		s.count(*old, -1)
	}
	if err := s.trim(number, uint32(len(ids)), before, old); err != nil {
		s.count(row, -1) // the row will come again
		if old != nil {
			s.count(*old, 1)
		}
		return err
	}
	return nil
}

// place writes a row's backends, slots and the frontend, or nothing: where a map is
// full, all is again as it was. ids are the numbers of its backends.
func (s *frontends) place(k datapath.FrontendKey, key maps.FrontendKey, row datapath.Frontend) (number uint32, ids []uint32, moved bool, err error) {
	_, known := s.numbers.numbers[key]
	if number, err = s.numbers.of(key); err != nil {
		return 0, nil, false, whenFull(s.services.m, s.services.name, fmt.Sprintf("number frontend %s:%d", k.Addr, k.Port), err)
	}
	was := map[maps.SlotKey]uint32{}
	if ids, moved, err = s.fill(number, key, row, was); err != nil {
		err = errors.Join(err, s.undo(number, row, was))
		if !known {
			s.numbers.release(key)
		}
	}
	return number, ids, moved, err
}

// fill is place without the way back: was gets what the slots that it changes had,
// 0 for nothing.
func (s *frontends) fill(number uint32, key maps.FrontendKey, row datapath.Frontend, was map[maps.SlotKey]uint32) (ids []uint32, moved bool, err error) {
	for _, b := range slices.Concat(row.Backends, row.Keeping) {
		id, err := s.putBackend(maps.EncodeBackend(b))
		if err != nil {
			return nil, false, err
		}
		ids = append(ids, id)
	}
	ids = ids[:len(row.Backends)]
	for i := len(ids) - 1; i >= 0; i-- { // those in use last: there is room for them
		slot := maps.SlotKey{Frontend: number, Slot: uint32(i)}
		old := s.slots.have[slot]
		changed, err := s.slots.set(slot, ids[i])
		if err != nil {
			return nil, false, err
		}
		if changed {
			was[slot] = old
		}
	}
	v := maps.Frontend{Number: number, Service: row.Service, Count: uint32(len(row.Backends)), Affinity: row.Affinity}
	changed, err := s.services.set(key, v)
	return ids, changed || len(was) > 0, err
}

// undo gives slots back what they had, and up the backends that only the row has.
func (s *frontends) undo(number uint32, row datapath.Frontend, was map[maps.SlotKey]uint32) error {
	var errs []error
	for slot, id := range was {
		var err error
		if id == 0 {
			_, err = s.slots.del(slot)
		} else {
			_, err = s.slots.set(slot, id)
		}
		errs = append(errs, err)
	}
	for _, b := range slices.Concat(row.Backends, row.Keeping) {
		_, err := s.dropBackend(maps.EncodeBackend(b))
		errs = append(errs, err)
	}
	if len(was) > 0 { // a flow may have found one of them
		errs = append(errs, bump(s.epochs, number))
	}
	return errors.Join(errs...)
}

// parted reports whether clients may stay with what takes no new flows any more.
func parted(old, row datapath.Frontend) bool {
	return old.Affinity == 0 || slices.ContainsFunc(old.Backends, func(b datapath.Backend) bool { return !slices.Contains(row.Backends, b) })
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
		if s.used[key] <= 0 {
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
	s.tables.drop(number)
	s.stay[number] = nil // whoever gets the number gets no clients with it
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
				if _, there := s.services.have[k]; !there {
					s.stay[n] = nil
				}
			}
		}),
		s.slots.repair(prune, func(k maps.SlotKey) { moved[k.Frontend] = struct{}{} }),
		s.backends.repair(prune, func(uint32) {}),
		s.tables.repair(prune), s.settle(),
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
