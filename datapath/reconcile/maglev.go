// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/loadbalancer/maglev"
)

// tables are the maglev map: a table for each service with more than one
// backend. A change of the map of maps costs a grace period of the kernel, so
// changes are collected and written in batches.
type tables struct {
	m         *ebpf.Map
	size      uint32
	have      map[uint32]struct{}  // frontends with a table in the kernel
	want      map[uint32][]uint32  // backend numbers by place
	unwritten map[uint32]*ebpf.Map // to be written; nil: to be deleted
}

func newTables(m *ebpf.Map, size uint32) (*tables, error) {
	t := &tables{m: m, size: size, want: map[uint32][]uint32{}, unwritten: map[uint32]*ebpf.Map{}}
	return t, t.refresh()
}

func (t *tables) refresh() error {
	have, err := maps.Dump[uint32, uint32](t.m)
	if err != nil {
		return err
	}
	t.have = map[uint32]struct{}{}
	for k := range have {
		t.have[k] = struct{}{}
	}
	return nil
}

// build notes a service's table; numbers are those of the row's backends. moved
// says that they are others than the kernel's slots had.
func (t *tables) build(frontend uint32, row datapath.Frontend, numbers []uint32, moved bool) error {
	if len(row.Backends) < 2 {
		t.drop(frontend)
		return nil
	}
	_, there := t.have[frontend]
	if there && !moved {
		if _, pending := t.unwritten[frontend]; !pending {
			_, ours := t.want[frontend]
			if ours || t.names(frontend, numbers) {
				if !ours {
					t.want[frontend] = nil // as the kernel has it
				}
				return nil
			}
		}
	}
	ids := make([]maglev.ID, len(row.Backends))
	for i, b := range row.Backends {
		ids[i] = maglev.ID{Cluster: b.ClusterID, Addr: b.Addr, Port: b.Port}
	}
	table := maglev.Table(t.size, ids)
	for place, i := range table {
		table[place] = numbers[i]
	}
	t.want[frontend] = table
	return t.write(frontend, table)
}

// names reports whether a table that was left by an agent before this one has these
// backends and no others. One that was killed may have written slots without it.
func (t *tables) names(frontend uint32, numbers []uint32) bool {
	var id ebpf.MapID
	if err := t.m.Lookup(frontend, &id); err != nil {
		return false
	}
	inner, err := ebpf.NewMapFromID(id)
	if err != nil {
		return false
	}
	defer inner.Close()
	wrong, seen := false, map[uint32]bool{}
	err = maps.DumpBatches(inner, func(_, backend uint32) {
		if !seen[backend] {
			seen[backend] = true
			wrong = wrong || !slices.Contains(numbers, backend)
		}
	})
	return err == nil && !wrong && len(seen) == len(numbers)
}

// write makes the inner map.
func (t *tables) write(frontend uint32, table []uint32) error {
	inner, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "maglev_table", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: t.size,
	})
	if err != nil {
		return fmt.Errorf("make table of frontend %d: %w", frontend, err)
	}
	places := make([]uint32, t.size)
	for i := range places {
		places[i] = uint32(i)
	}
	if _, err = inner.BatchUpdate(places, table, nil); errors.Is(err, ebpf.ErrNotSupported) {
		err = nil
		for i, b := range table {
			err = errors.Join(err, inner.Put(uint32(i), b))
		}
	}
	if err != nil {
		_ = inner.Close()
		return fmt.Errorf("fill table of frontend %d: %w", frontend, err)
	}
	t.forget(frontend)
	t.unwritten[frontend] = inner
	return nil
}

// forget gives up what was to be written.
func (t *tables) forget(frontend uint32) {
	if m := t.unwritten[frontend]; m != nil {
		_ = m.Close()
	}
	delete(t.unwritten, frontend)
}

func (t *tables) drop(frontend uint32) {
	delete(t.want, frontend)
	t.forget(frontend)
	if _, ok := t.have[frontend]; ok {
		t.unwritten[frontend] = nil
	}
}

// flush writes what was collected, in one batch each way where the kernel has
// batches for maps of maps.
func (t *tables) flush() error {
	var put, del, fds []uint32
	for n, inner := range t.unwritten {
		if inner == nil {
			del = append(del, n)
			continue
		}
		put, fds = append(put, n), append(fds, uint32(inner.FD()))
	}
	if len(put) > 0 {
		_, err := t.m.BatchUpdate(put, fds, nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			err = nil
			for i, n := range put {
				err = errors.Join(err, t.m.Put(n, fds[i]))
			}
		}
		if err != nil {
			return whenFull(t.m, "maglev", "write maglev tables", err)
		}
	}
	if len(del) > 0 {
		_, err := t.m.BatchDelete(del, nil)
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, ebpf.ErrKeyNotExist) {
			err = nil
			for _, n := range del {
				if derr := t.m.Delete(n); !errors.Is(derr, ebpf.ErrKeyNotExist) {
					err = errors.Join(err, derr)
				}
			}
		}
		if err != nil {
			return fmt.Errorf("delete maglev tables: %w", err)
		}
	}
	for _, n := range put {
		t.have[n] = struct{}{}
		t.forget(n)
	}
	for _, n := range del {
		delete(t.have, n)
		t.forget(n)
	}
	return nil
}

// repair writes tables that went, and deletes those that nobody wants if prune
// is set.
func (t *tables) repair(prune bool) error {
	err := t.refresh()
	if err != nil {
		return err
	}
	for n, table := range t.want {
		if _, ok := t.have[n]; !ok && table != nil {
			err = errors.Join(err, t.write(n, table))
		}
	}
	for n := range t.have {
		if _, ok := t.want[n]; !ok && prune {
			t.unwritten[n] = nil
		}
	}
	return errors.Join(err, t.flush())
}

// forgetClients deletes the clients of frontends that stay with other backends
// than these.
func forgetClients(m *ebpf.Map, stay map[uint32][]uint32) error {
	var keys []maps.AffinityKey
	err := maps.DumpBatches(m, func(k maps.AffinityKey, v maps.Affinity) {
		if backends, ok := stay[k.Frontend]; ok && !slices.Contains(backends, v.Backend) {
			keys = append(keys, k)
		}
	})
	for _, k := range keys {
		if derr := m.Delete(k); derr != nil && !errors.Is(derr, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, fmt.Errorf("delete affinity: %w", derr))
		}
	}
	return err
}
