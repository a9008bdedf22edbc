// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A full map is moved although its elements come and go meanwhile: what left the old
// one makes room. Once programs have filled the new one, flows without room are left,
// and rules are not.
func TestFullMapIsMoved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes eBPF maps")
	}
	const room = 4
	filled := func(first uint32) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: room})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		for i := range uint32(room) {
			if err := m.Put(first+i, uint64(first+i)); err != nil {
				t.Fatal(err)
			}
		}
		return m
	}
	m := &move{name: "ct4", old: filled(2), new: filled(0), fields: []field{{name: "all", size: 8}}}
	if err := m.fill(true); err != nil {
		t.Fatal(err)
	}
	var key uint32
	var value uint64
	n := 0
	for it := m.new.Iterate(); it.Next(&key, &value); n++ {
		if key < 2 || value != uint64(key) {
			t.Errorf("the new map has %d: %d", key, value)
		}
	}
	if n != room {
		t.Errorf("the new map has %d elements, want %d", n, room)
	}
	m = &move{name: "ct4", old: filled(0), new: filled(10), fields: m.fields}
	if err := m.fill(false); err != nil {
		t.Errorf("flows without room: %v", err)
	}
	m.name = "policy"
	if err := m.fill(false); !errors.Is(err, unix.E2BIG) {
		t.Errorf("rules without room: %v", err)
	}
}
