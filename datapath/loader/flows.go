// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// FlowTable is how full a table of established flows is.
type FlowTable struct {
	Map   string
	Flows int
	Room  int // for how many there is
}

// Pressed reports whether a table is so full that flows are forgotten earlier.
func (t FlowTable) Pressed() bool {
	return t.Room > 0 && float64(t.Flows) >= pressureFill*float64(t.Room)
}

// FlowReport is what the collector found in its last pass.
type FlowReport struct {
	Tables []FlowTable
	// Refused are packets of new flows for which there was no room, until there
	// have been none for a minute.
	Refused uint64

	counted bool   // total is known
	total   uint64 // of all time
	last    uint32 // jiffies, when it last grew
}

// Flows is the report of the collector's last pass; it has no tables before the
// first.
func (d *Datapath) Flows() FlowReport {
	d.flowsMu.Lock()
	defer d.flowsMu.Unlock()
	r := d.flows
	r.Tables = slices.Clone(r.Tables)
	return r
}

// noteFlows makes the report of a pass at now jiffies.
func (d *Datapath) noteFlows(now, hz uint32, flows4, flows6 int) error {
	rows, err := maps.ReadMetrics(d.maps.Metrics)
	if err != nil {
		return err
	}
	var total uint64
	for _, r := range rows {
		if r.Reason == maps.DropConntrackFull {
			total += r.Packets
		}
	}
	d.flowsMu.Lock()
	defer d.flowsMu.Unlock()
	d.flows.Tables = []FlowTable{
		{Map: "ct4", Flows: flows4, Room: int(d.maps.Ct4.MaxEntries())},
		{Map: "ct6", Flows: flows6, Room: int(d.maps.Ct6.MaxEntries())},
	}
	d.flows.refuse(total, now, hz)
	return nil
}

// refuse takes note of how many packets have been refused in all.
func (r *FlowReport) refuse(total uint64, now, hz uint32) {
	switch {
	case !r.counted || total < r.total: // the first pass, or the counters are new
	case total > r.total:
		r.Refused += total - r.total
		r.last = now
	case now-r.last > refusedFor*hz:
		r.Refused = 0
	}
	r.counted, r.total = true, total
}

// ForgetFlows deletes the flows that begin or end at an address that is gone and
// returns how many. It walks all of conntrack.
func (d *Datapath) ForgetFlows(gone func(netip.Addr) bool) (deleted int, err error) {
	n4, err1 := maps.ForgetFlows[maps.Tuple4](d.maps.Ct4, gone)
	o4, err2 := maps.ForgetFlows[maps.Tuple4](d.maps.Ct4Open, gone)
	n6, err3 := maps.ForgetFlows[maps.Tuple6](d.maps.Ct6, gone)
	o6, err4 := maps.ForgetFlows[maps.Tuple6](d.maps.Ct6Open, gone)
	return n4 + o4 + n6 + o6, errors.Join(err1, err2, err3, err4)
}
