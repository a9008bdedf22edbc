// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/loadbalancer/maglev"
)

// testMap is a map of the datapath's, for one test, with room for so many entries.
func testMap(t *testing.T, name string, room uint32) *ebpf.Map {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes eBPF maps")
	}
	spec, err := objects.LoadHawser()
	if err != nil {
		t.Fatal(err)
	}
	s := spec.Maps[name].Copy()
	if s.MaxEntries = room; s.Type == ebpf.Hash {
		s.Flags = 0 // preallocated: full to the entry
	}
	if s.InnerMap != nil {
		s.InnerMap = s.InnerMap.Copy()
		s.InnerMap.MaxEntries = maglev.SmallSize
	}
	m, err := ebpf.NewMap(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}
