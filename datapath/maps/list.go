// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// Info is what "map list" shows of one map.
type Info struct {
	Name       string
	Type       string
	ID         uint32
	KeySize    uint32 // bytes
	ValueSize  uint32 // bytes
	MaxEntries uint32
	Entries    uint64 // in use; an array is always full
	Memory     uint64 // bytes charged by the kernel
	Pin        string
}

// Describe reads the facts of a map. It walks hashes to count their entries.
func Describe(name, pin string, m *ebpf.Map) (Info, error) {
	info, err := m.Info()
	if err != nil {
		return Info{}, fmt.Errorf("describe map %s: %w", name, err)
	}
	id, _ := info.ID()
	out := Info{
		Name: name, Type: m.Type().String(), ID: uint32(id), KeySize: m.KeySize(),
		ValueSize: m.ValueSize(), MaxEntries: m.MaxEntries(), Pin: pin,
	}
	if out.Memory, err = memory(m.FD()); err != nil {
		return Info{}, fmt.Errorf("describe map %s: %w", name, err)
	}
	if out.Entries, err = entries(m); err != nil {
		return Info{}, fmt.Errorf("count map %s: %w", name, err)
	}
	return out, nil
}

// memory is the map's memlock value, from the kernel's description of its file.
func memory(fd int) (uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "memlock:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, nil
}

// countBatch is how many keys are read at once.
const countBatch = 4096

func entries(m *ebpf.Map) (uint64, error) {
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash:
	case ebpf.LPMTrie, ebpf.HashOfMaps:
		return walk(m)
	case ebpf.RingBuf:
		return 0, nil
	default:
		return uint64(m.MaxEntries()), nil
	}
	var cursor ebpf.MapBatchCursor
	keys, values := elements(m.KeySize()), elements(m.ValueSize())
	var n uint64
	for {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		n += uint64(got)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return n, nil
		}
		if err != nil {
			return walk(m)
		}
	}
}

// elements is a []([size]byte), whatever the size is.
func elements(size uint32) any {
	elem := reflect.ArrayOf(int(size), reflect.TypeFor[byte]())
	return reflect.MakeSlice(reflect.SliceOf(elem), countBatch, countBatch).Interface()
}

func walk(m *ebpf.Map) (uint64, error) {
	var n uint64
	var key []byte
	it := m.Iterate()
	var value []byte
	for it.Next(&key, &value) {
		n++
	}
	return n, it.Err()
}
