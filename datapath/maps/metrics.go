// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
)

// MetricRow is one non-zero counter: packets and bytes since the map was made,
// over all CPUs. Reason 0 is "forwarded".
type MetricRow struct {
	Reason    datapath.DropReason
	Direction datapath.Direction
	Program   string
	Packets   uint64
	Bytes     uint64
}

// ReadMetrics reads the metrics map.
func ReadMetrics(m *ebpf.Map) ([]MetricRow, error) {
	var rows []MetricRow
	for i := range m.MaxEntries() {
		var cpus []Metric
		if err := m.Lookup(i, &cpus); err != nil {
			return nil, fmt.Errorf("read metric %d: %w", i, err)
		}
		row := MetricRow{
			Reason:    datapath.DropReason(i / (2 * programs)),
			Direction: datapath.Direction(i / programs % 2),
			Program:   ProgramName(uint8(i % programs)),
		}
		for _, c := range cpus {
			row.Packets += c.Packets
			row.Bytes += c.Bytes
		}
		if row.Packets != 0 {
			rows = append(rows, row)
		}
	}
	return rows, nil
}
