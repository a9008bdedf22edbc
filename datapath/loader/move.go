// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// newSuffix is behind the pin's name of a map that is to take another's place. A
// BPF file system keeps dots for itself.
const newSuffix = "+new"

// move is a map whose layout or size is another in this build. Both are there
// while the programs are replaced: the new one is filled from the old before and
// after.
type move struct {
	name     string
	old, new *ebpf.Map
	fields   []field // of the value, that both have
	shared   uint32  // how long both values' common beginning is; 0: it is not all of one
	pruned   func()  // a test's: called after prune
}

// finishMoves ends what an upgrade that was killed has begun, whichever build it
// was: a new map that attached programs use takes its place with all flows, one
// that none uses is made anew when it is wanted.
func (d *Datapath) finishMoves(notes *layouts) error {
	pins, _ := filepath.Glob(d.pinPath(mapsDir, "*"+newSuffix)) // the pattern is well formed
	if len(pins) == 0 {
		return nil
	}
	used, err := d.mapsInUse()
	if err != nil {
		return err
	}
	for _, pin := range pins {
		if err := d.finishMove(pin, used, notes); err != nil {
			return fmt.Errorf("finish the upgrade that was interrupted, map %s: %w", pin, err)
		}
	}
	return nil
}

func (d *Datapath) finishMove(pin string, used map[uint32]bool, notes *layouts) error {
	name := strings.TrimSuffix(filepath.Base(pin), newSuffix)
	m := &move{name: name}
	var err error
	if m.new, err = ebpf.LoadPinnedMap(pin, nil); err != nil {
		return err
	}
	defer m.new.Close()
	id, err := mapID(m.new)
	if err != nil {
		return err
	}
	if !used[id] {
		return os.Remove(pin)
	}
	if m.old, err = ebpf.LoadPinnedMap(d.pinPath(mapsDir, name), nil); err != nil {
		return err
	}
	is, err := notes.of(m.new, layout{})
	if err != nil {
		return err
	}
	was, err := notes.of(m.old, is)
	if err != nil {
		return err
	}
	if m.fields, err = common(was.value, is.value); err != nil {
		return err
	}
	if err := m.fill(false); err != nil {
		return err
	}
	return m.end(d)
}

// slotsInUse are the programs that attached ones jump to, also by a map of slots
// that is being moved itself.
func (d *Datapath) slotsInUse() (progs []ebpf.ProgramID, err error) {
	for _, name := range []string{"slots", "slots" + newSuffix} {
		m, err := ebpf.LoadPinnedMap(d.pinPath(mapsDir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open map %s: %w", name, err)
		}
		for i := range m.MaxEntries() {
			var id uint32
			if err := m.Lookup(i, &id); err == nil {
				progs = append(progs, ebpf.ProgramID(id))
			} else if !errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil, errors.Join(fmt.Errorf("read slot %d: %w", i, err), m.Close())
			}
		}
		if err := m.Close(); err != nil {
			return nil, err
		}
	}
	return progs, nil
}

// mapsInUse are the maps of the programs that are attached, and of those that they
// jump to, by the kernel's numbers.
func (d *Datapath) mapsInUse() (map[uint32]bool, error) {
	pins, err := linkPins(d.cfg.PinPath)
	if err != nil {
		return nil, err
	}
	var progs []ebpf.ProgramID
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			return nil, fmt.Errorf("open link %s: %w", pin, err)
		}
		info, err := l.Info()
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, fmt.Errorf("describe link %s: %w", pin, err)
		}
		progs = append(progs, info.Program)
	}
	filters, err := filterObjects()
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		progs = append(progs, ebpf.ProgramID(f.ID))
	}
	jumps, err := d.slotsInUse()
	if err != nil {
		return nil, err
	}
	progs = append(progs, jumps...)
	out := map[uint32]bool{}
	for _, id := range progs {
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // its device went meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("open program %d: %w", id, err)
		}
		info, err := p.Info()
		_ = p.Close()
		if err != nil {
			return nil, fmt.Errorf("describe program %d: %w", id, err)
		}
		ids, _ := info.MapIDs()
		for _, m := range ids {
			out[uint32(m)] = true
		}
	}
	return out, nil
}

// plan compares the pinned maps with what this build wants: adopted are those
// that fit as they are, moves those that are to be replaced.
func plan(pinned map[string]*ebpf.Map, spec *ebpf.CollectionSpec, notes *layouts) (moves []*move, err error) {
	var errs []error
	for _, name := range sortedKeys(pinnedMaps(spec)) {
		old, want := pinned[name], spec.Maps[name]
		if old == nil {
			continue
		}
		m, err := planOne(name, old, want, notes)
		if err != nil {
			errs = append(errs, fmt.Errorf("map %s: %w", name, err))
		} else if m != nil {
			moves = append(moves, m)
		}
	}
	return moves, errors.Join(errs...)
}

// planOne returns nil for a map that fits.
func planOne(name string, old *ebpf.Map, want *ebpf.MapSpec, notes *layouts) (*move, error) {
	is, err := layoutOf(want)
	if err != nil {
		return nil, err
	}
	was, err := notes.of(old, is)
	if err != nil {
		return nil, err
	}
	m := &move{name: name, old: old}
	if !copied(want.Type) {
		if want.Compatible(old) == nil && slices.Equal(was.value, is.value) {
			return nil, nil //nolint:nilnil // it fits
		}
		return m, nil
	}
	if old.KeySize() != want.KeySize || !slices.Equal(was.key, is.key) {
		return nil, fmt.Errorf("its keys were %s and are %s: %w", layout{key: was.key}, layout{key: is.key}, ErrIncompatible)
	}
	if m.fields, err = common(was.value, is.value); err != nil {
		return nil, fmt.Errorf("in its values %w: %w", err, ErrIncompatible)
	}
	if want.Compatible(old) == nil {
		return nil, nil //nolint:nilnil // it fits
	}
	m.shared = beginning(was.value, is.value, m.fields, old.ValueSize(), want.ValueSize)
	if !copied(old.Type()) {
		return nil, fmt.Errorf("it was a %s and is a %s: %w", old.Type(), want.Type, ErrIncompatible)
	}
	return m, nil
}

// copied tells the types whose elements must live on. The others hold what is of
// the moment or counted, and maglev's tables, which the agent writes again; until
// then a service's slots stand in for them.
func copied(t ebpf.MapType) bool {
	switch t {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie, ebpf.Array:
		return true
	}
	return false
}

// pin keeps the new map beside the old one, with a note of what it looks like.
func (m *move) pin(d *Datapath, want *ebpf.MapSpec, notes *layouts) error {
	l, err := layoutOf(want)
	if err != nil {
		return err
	}
	if err := notes.write(m.new, l); err != nil {
		return err
	}
	if err := m.new.Pin(d.pinPath(mapsDir, m.name+newSuffix)); err != nil {
		return fmt.Errorf("pin map %s: %w", m.name+newSuffix, err)
	}
	return nil
}

// fill writes the old map's elements into the new one. overwrite is for what
// no program of ours uses yet. A new map that is full is rid, once, of what left the
// old one meanwhile; once programs use it, flows without room are left, and judged anew.
func (m *move) fill(overwrite bool) error {
	if !copied(m.old.Type()) || !copied(m.new.Type()) || m.old.Type() == ebpf.Array && !overwrite {
		return nil // only the agent writes arrays
	}
	flags := ebpf.UpdateAny
	if !overwrite {
		flags = ebpf.UpdateNoExist
	}
	var late [][2][]byte // found no room
	err := maps.Raw(m.old, func(key, value []byte) error {
		is := m.converted(value)
		if m.old.Type() == ebpf.Array && !slices.ContainsFunc(is, func(b byte) bool { return b != 0 }) {
			return nil // as all new elements are
		}
		err := m.new.Update(key, is, flags)
		switch {
		case errors.Is(err, unix.E2BIG) && overwrite:
			late = append(late, [2][]byte{slices.Clone(key), is})
			return nil
		case errors.Is(err, ebpf.ErrKeyExist) || errors.Is(err, unix.E2BIG) && m.ofFlows():
			return nil
		}
		return err
	})
	if err == nil && len(late) > 0 {
		err = m.prune()
	}
	for _, e := range late {
		if err == nil {
			err = m.new.Update(e[0], e[1], flags)
		}
		if errors.Is(err, unix.E2BIG) && m.gone(e[0]) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("move map %s, which has room for %d, into one for %d: %w", m.name, m.old.MaxEntries(), m.new.MaxEntries(), err)
	}
	return nil
}

// converted is a value of the old map as the new one has it.
func (m *move) converted(value []byte) []byte {
	is := make([]byte, m.new.ValueSize())
	for _, f := range m.fields {
		copy(is[f.offset:f.offset+f.size], value[f.offset:f.offset+f.size])
	}
	return is
}

// ofFlows reports whether programs add to the map and the agent collects.
func (m *move) ofFlows() bool {
	return slices.Contains([]string{"ct4", "ct6", "snat4", "snat6", "sock_links"}, m.name)
}

// gone reports whether the old map has a key no more.
func (m *move) gone(key []byte) bool {
	value := make([]byte, m.old.ValueSize())
	return errors.Is(m.old.Lookup(key, &value), ebpf.ErrKeyNotExist)
}

// prune deletes from the new map, that no program uses yet, what the old one has not
// any more.
func (m *move) prune() error {
	var gone [][]byte
	value := make([]byte, m.old.ValueSize())
	err := maps.Raw(m.new, func(key, _ []byte) error {
		err := m.old.Lookup(key, &value)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			gone = append(gone, slices.Clone(key))
			return nil
		}
		return err
	})
	for _, key := range gone {
		err = errors.Join(err, m.new.Delete(key))
	}
	if m.pruned != nil {
		m.pruned()
	}
	return err
}

// end gives the new map the old one's place; the old one goes with its last user.
func (m *move) end(d *Datapath) error {
	if err := os.Rename(d.pinPath(mapsDir, m.name+newSuffix), d.pinPath(mapsDir, m.name)); err != nil {
		return fmt.Errorf("replace map %s: %w", m.name, err)
	}
	return m.old.Close()
}

// abandon takes back what pin did, before any program uses it.
func (m *move) abandon(d *Datapath) error {
	err := os.Remove(d.pinPath(mapsDir, m.name+newSuffix))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return err
}

func moveNames(moves []*move) string {
	names := make([]string, len(moves))
	for i, m := range moves {
		names[i] = m.name
	}
	return strings.Join(names, ", ")
}
