// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/objects"
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

// However much comes and goes while a full map is moved, what left it is looked for
// once: that is a walk over all of the new one.
func TestFullMapIsPrunedOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes eBPF maps")
	}
	const room, changes = 50_000, 100
	var ms [2]*ebpf.Map
	for i := range ms {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: room})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		ms[i] = m
		for k := range uint32(room) {
			if err := m.Put(k, uint64(k)); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := &move{name: "ct4", old: ms[0], new: ms[1], fields: []field{{name: "all", size: 8}}}
	var next uint32
	replace := func() {
		for range changes {
			if err := errors.Join(m.old.Delete(next), m.old.Put(room+next, uint64(next))); err != nil {
				t.Fatal(err)
			}
			next++
		}
	}
	prunes := 0
	m.pruned = func() {
		prunes++
		replace()
	}
	replace()
	if err := m.fill(true); err != nil || prunes != 1 {
		t.Errorf("filled: %v, looked %d times for what left", err, prunes)
	}
	value := uint64(0)
	for k := range uint32(changes) {
		if err := m.new.Lookup(room+k, &value); err != nil || value != uint64(k) {
			t.Fatalf("what came before the move, %d: %d, %v", k, value, err)
		}
	}
}

// The programs that run during a move can use entries before that are shorter or
// longer than theirs, and are not made where what they would copy is another thing.
func TestProgramsDuringAMove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads eBPF programs")
	}
	for before, shared := range map[uint32]uint32{96: 96, 112: 104, 160: 104} {
		spec, err := objects.LoadHawser()
		if err != nil {
			t.Fatal(err)
		}
		dropSockets(spec)
		var moves []*move
		kept := map[string]*ebpf.Map{}
		for name, m := range pinnedMaps(spec) {
			m.MaxEntries = min(m.MaxEntries, 4096)
			if !slices.Contains(flowMaps(), name) {
				continue
			}
			was := *m
			was.ValueSize, was.Value = before, nil
			old, err := ebpf.NewMap(&was)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = old.Close() })
			moves = append(moves, &move{name: name, old: old, shared: shared})
		}
		progs, err := loadDuring(spec, kept, moves)
		if err != nil {
			t.Fatalf("entries before of %d bytes: %v", before, err)
		}
		if err := closeAll(progs); err != nil {
			t.Error(err)
		}
		moves[0].shared = 0
		if _, err := loadDuring(spec, kept, moves); err == nil {
			t.Error("programs copy what is another thing")
		}
	}
	a, b := field{"a", 0, 8}, field{"b", 8, 8}
	for _, c := range []struct {
		was, is []field
		want    uint32
	}{
		{[]field{a}, []field{a, b}, 8},
		{[]field{a, b}, []field{a}, 8},
		{[]field{b}, []field{a, b}, 0},
	} {
		both, err := common(c.was, c.is)
		size := func(f []field) uint32 { return f[len(f)-1].offset + f[len(f)-1].size }
		if got := beginning(c.was, c.is, both, size(c.was), size(c.is)); err != nil || got != c.want {
			t.Errorf("%v and %v have %d bytes in common, want %d; %v", c.was, c.is, got, c.want, err)
		}
	}
}
