// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"log/slog"

	"github.com/cilium/ebpf"
)

// Steps at which an upgrade is given up by OpenOther.
const (
	AllSteps = iota
	Prepared // the new maps are there and filled, nothing uses them
	// One hook runs the new programs, all others those before.
	OverlaySwitched
	PodsSwitched
	Switched // the new programs run
)

// OpenOther is Open as another build of this program does it: one with another
// spec. It may end on the way, as a build that is killed does.
func OpenOther(cfg Config, log *slog.Logger, alter func(*ebpf.CollectionSpec), until int) (*Datapath, error) {
	cfg = cfg.withDefaults()
	spec, _, err := buildSpec(cfg)
	if err != nil {
		return nil, err
	}
	alter(spec)
	sum, err := specDigest(spec, constants{}, map[string]uint32{"other": 1})
	if err != nil {
		return nil, err
	}
	d := &Datapath{cfg: cfg, log: log, tcx: cfg.Attach != AttachClsact, sockets: hasSockets(spec)}
	if until == AllSteps {
		err = d.load(spec, sum)
	} else {
		err = d.partly(spec, until)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// partly does the steps of load and upgrade up to one.
func (d *Datapath) partly(spec *ebpf.CollectionSpec, until int) error {
	notes, err := openLayouts(d.cfg.PinPath)
	if err != nil {
		return err
	}
	defer func() { _ = notes.close() }()
	if err := d.finishMoves(notes); err != nil {
		return err
	}
	if d.pins, err = openPinnedMaps(d.cfg.PinPath, spec); err != nil {
		return err
	}
	moves, err := plan(d.pins, spec, notes)
	if err != nil {
		return err
	}
	progs, during, err := d.prepare(spec, moves, notes)
	if err != nil {
		return err
	}
	if err := d.take(d.pins, progs); err != nil {
		return err
	}
	if during == nil {
		during = progs
	}
	switch until {
	case OverlaySwitched:
		during = map[string]*ebpf.Program{"from_overlay": during["from_overlay"], "from_overlay6": during["from_overlay6"]}
	case PodsSwitched:
		during = map[string]*ebpf.Program{"from_pod": during["from_pod"], "from_pod6": during["from_pod6"]}
	}
	if until != Prepared {
		err = errors.Join(writeDigest(d.cfg.PinPath, digest{}), d.readyTunnel(progs), d.switchPrograms(during))
	}
	return err
}

// SettleNow makes the link of an endpoint that has a filter.
func (d *Datapath) SettleNow(dev string) error {
	d.unsettle(dev)
	return d.settle(dev)
}
