// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	gomaps "maps"
	"slices"

	"github.com/cilium/ebpf"
)

// beforeSuffix is behind the name of a map of flows: under that name the programs
// that run during a move know the map that it takes the place of.
const beforeSuffix = "_before"

// toldSize is that of struct ct_told (bpf/lib/conntrack.h).
const toldSize = 160 // bytes

// flowMaps are the maps that have one.
func flowMaps() []string { return []string{"ct4", "ct4_open", "ct6", "ct6_open"} }

// isBefore tells the maps that only programs during a move use, and nobody pins.
func isBefore(name string) bool {
	return slices.ContainsFunc(flowMaps(), func(s string) bool { return name == s+beforeSuffix })
}

// during loads the programs that run until all hooks are changed over: as
// the new ones, but they also look for flows in the maps before, and write new ones
// there too. It returns nil where no flows are moved, and where the kernel or the
// layouts do not allow it; then a flow that begins during the switch may be missed.
func (d *Datapath) during(spec *ebpf.CollectionSpec, moves []*move) map[string]*ebpf.Program {
	flows := slices.DeleteFunc(slices.Clone(moves), func(m *move) bool { return !slices.Contains(flowMaps(), m.name) })
	if len(flows) == 0 {
		return nil
	}
	kept := gomaps.Clone(d.pins)
	for _, m := range moves {
		kept[m.name] = m.new
	}
	progs, err := loadDuring(spec, kept, flows)
	if err != nil {
		d.log.Warn("connections that begin while the programs are replaced may be interrupted", "maps", moveNames(flows), "error", err)
	}
	return progs
}

func loadDuring(spec *ebpf.CollectionSpec, kept map[string]*ebpf.Map, moves []*move) (map[string]*ebpf.Program, error) {
	spec = spec.Copy()
	for _, m := range moves {
		if err := checkTold(m, moves[0].shared); err != nil {
			return nil, fmt.Errorf("map %s: %w", m.name, err)
		}
		before := spec.Maps[m.name+beforeSuffix]
		info, err := m.old.Info()
		if err != nil {
			return nil, fmt.Errorf("describe map %s: %w", m.name, err)
		}
		before.Type, before.ValueSize, before.MaxEntries, before.Flags = info.Type, info.ValueSize, info.MaxEntries, info.Flags
		before.Key, before.Value = nil, nil
		kept[before.Name] = m.old
	}
	if err := spec.Variables["ct_moving"].Set(moves[0].shared); err != nil {
		return nil, fmt.Errorf("set constants: %w", err)
	}
	coll, err := newCollection(spec, kept)
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	defer coll.Close()
	progs := map[string]*ebpf.Program{}
	for name := range spec.Programs {
		progs[name] = coll.DetachProgram(name)
	}
	return progs, nil
}

// checkTold reports why programs cannot use both maps of a move.
func checkTold(m *move, shared uint32) error {
	if m.shared == 0 || m.shared != shared {
		return fmt.Errorf("its entries and those before have more than their beginning (%d bytes) in common, or less", m.shared)
	}
	if size := m.old.ValueSize(); size > toldSize {
		return fmt.Errorf("entries before had %d bytes and may have %d", size, toldSize)
	}
	return nil
}

// beginning is how many bytes at their beginning two layouts have in common, if they
// have all fields there in common; else 0.
func beginning(was, is, both []field, wasSize, isSize uint32) uint32 {
	size := min(wasSize, isSize)
	for _, f := range slices.Concat(was, is) {
		if f.offset < size && !slices.Contains(both, f) {
			return 0
		}
	}
	return size
}

func closeAll(progs map[string]*ebpf.Program) error {
	for name, p := range progs {
		if err := p.Close(); err != nil {
			return fmt.Errorf("close program %s: %w", name, err)
		}
	}
	return nil
}
