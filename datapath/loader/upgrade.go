// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	gomaps "maps"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// upgrade loads the programs and puts them in the place of those that are
// attached. Maps that are to be replaced are there twice meanwhile; flows that
// the old programs open are moved after them.
func (d *Datapath) upgrade(spec *ebpf.CollectionSpec, sum digest, moves []*move, notes *layouts) error {
	progs, during, err := d.prepare(spec, moves, notes)
	if err != nil {
		for _, m := range moves {
			err = errors.Join(err, m.abandon(d))
		}
		return err
	}
	defer func() { _ = closeAll(during) }()
	if err := d.take(d.pins, progs); err != nil {
		return err
	}
	if err := d.initRuleSets(); err != nil {
		return err
	}
	// From here on no start may take what is pinned for what is attached.
	if err := writeDigest(d.cfg.PinPath, digest{}); err != nil {
		return err
	}
	if err := d.readyTunnel(progs); err != nil {
		return err
	}
	if err := d.changeOver(progs, during, moves); err != nil {
		return err
	}
	if err := d.judgeAnew(); err != nil {
		return err
	}
	if err := d.noteLayouts(spec, notes); err != nil {
		return err
	}
	if err := d.pinPrograms(progs); err != nil {
		return err
	}
	if d.cfg.TunnelDevice == "" {
		if err := d.detachTunnel(); err != nil {
			return err
		}
	}
	if err := d.dropUnknown(spec); err != nil {
		return err
	}
	return writeDigest(d.cfg.PinPath, sum) // last
}

// changeOver makes all hooks run the new programs, with those for during the move
// between, if there are any, and ends the moves.
func (d *Datapath) changeOver(progs, during map[string]*ebpf.Program, moves []*move) error {
	first := progs
	if during != nil {
		first = during
	}
	if err := d.switchPrograms(first); err != nil {
		return err
	}
	for _, m := range moves {
		if err := m.fill(false); err != nil {
			return err
		}
		if err := m.end(d); err != nil {
			return err
		}
	}
	if during == nil {
		return nil
	}
	return d.switchPrograms(progs)
}

// judgeAnew ends the outcomes that flows keep of what leaves the node: the programs of
// before may have let out what these do not.
func (d *Datapath) judgeAnew() error {
	last, epoch := uint32(maps.IPEpochPrefix), uint32(0)
	if err := d.maps.IpcacheEpochs.Lookup(last, &epoch); err != nil {
		return fmt.Errorf("read the epoch of all prefixes: %w", err)
	}
	if err := d.maps.IpcacheEpochs.Put(last, epoch+1); err != nil {
		return fmt.Errorf("have flows judged anew: %w", err)
	}
	return nil
}

// dropUnknown removes what only the build before had: hooks that this one has no
// program for would go on with maps that nobody writes.
func (d *Datapath) dropUnknown(spec *ebpf.CollectionSpec) error {
	pins, err := linkPins(d.cfg.PinPath)
	if err != nil {
		return err
	}
	var errs []error
	for _, pin := range pins {
		if prog, _ := splitPin(pin); spec.Programs[prog] == nil {
			errs = append(errs, removeLink(pin))
		}
	}
	for dir, known := range map[string]func(string) bool{
		programsDir: func(name string) bool { return spec.Programs[name] != nil },
		mapsDir:     func(name string) bool { return spec.Maps[name] != nil },
	} {
		pins, _ := filepath.Glob(d.pinPath(dir, "*")) // the pattern is well formed
		for _, pin := range pins {
			if !known(filepath.Base(pin)) {
				errs = append(errs, os.Remove(pin))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what another build had: %w", err)
	}
	return nil
}

// prepare loads the programs with all maps, new ones pinned and filled, and those for
// during the move (see during).
func (d *Datapath) prepare(spec *ebpf.CollectionSpec, moves []*move, notes *layouts) (progs, during map[string]*ebpf.Program, err error) {
	kept := gomaps.Clone(d.pins)
	for _, m := range moves {
		delete(kept, m.name)
	}
	coll, err := newCollection(spec, kept)
	if err != nil {
		return nil, nil, fmt.Errorf("load programs: %w", err)
	}
	defer coll.Close()
	if err := d.pinMaps(coll, spec, notes); err != nil {
		return nil, nil, err
	}
	for _, m := range moves {
		m.new = coll.DetachMap(m.name)
		if err := m.pin(d, spec.Maps[m.name], notes); err != nil {
			return nil, nil, err
		}
	}
	during = d.during(spec, moves)
	const passes = 2 // the second one is short, as is what happens during it
	for range passes {
		for _, m := range moves {
			if err := m.fill(true); err != nil {
				return nil, nil, errors.Join(err, closeAll(during))
			}
		}
	}
	for _, m := range moves {
		d.pins[m.name] = m.new
	}
	progs = map[string]*ebpf.Program{}
	for name := range spec.Programs {
		progs[name] = coll.DetachProgram(name)
	}
	return progs, during, nil
}

// pinMaps pins the maps that there was nothing of.
func (d *Datapath) pinMaps(coll *ebpf.Collection, spec *ebpf.CollectionSpec, notes *layouts) error {
	for name, ms := range pinnedMaps(spec) {
		if _, ok := d.pins[name]; ok {
			continue
		}
		m := coll.DetachMap(name)
		l, err := layoutOf(ms)
		if err != nil {
			return err
		}
		if err := notes.write(m, l); err != nil {
			return err
		}
		if err := m.Pin(d.pinPath(mapsDir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
		d.pins[name] = m
	}
	return nil
}

// noteLayouts notes what all maps look like, and forgets maps that went.
func (d *Datapath) noteLayouts(spec *ebpf.CollectionSpec, notes *layouts) error {
	var ids []uint32
	for name, ms := range pinnedMaps(spec) {
		l, err := layoutOf(ms)
		if err != nil {
			return err
		}
		if err := notes.write(d.pins[name], l); err != nil {
			return err
		}
		id, err := mapID(d.pins[name])
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	return notes.keep(ids)
}
