// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/cilium/ebpf"
)

// Dump reads a whole map, in batches where the kernel has them.
func Dump[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	out := map[K]V{}
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.Array:
		if err := DumpBatches(m, func(k K, v V) { out[k] = v }); err == nil {
			return out, nil
		}
		clear(out)
	}
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		out[k] = v
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("dump map %s: %w", m, err)
	}
	return out, nil
}

// DumpBatches calls visit for each element, countBatch of them per system call.
// Elements that move meanwhile may be missed or seen twice.
func DumpBatches[K comparable, V any](m *ebpf.Map, visit func(K, V)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, countBatch), make([]V, countBatch)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			visit(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("dump map %s: %w", m, err)
		}
	}
}

// Raw calls visit for each element as bytes, in batches where the kernel has
// them. Elements that move meanwhile may be missed or seen twice. visit may keep
// neither slice.
func Raw(m *ebpf.Map, visit func(key, value []byte) error) error {
	var cursor ebpf.MapBatchCursor
	keys, values := elements(m.KeySize()), elements(m.ValueSize())
	for m.Type() == ebpf.Hash || m.Type() == ebpf.LRUHash || m.Type() == ebpf.Array {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			break
		}
		for i := range n {
			if err := visit(bytesOf(keys, i), bytesOf(values, i)); err != nil {
				return err
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map %s: %w", m, err)
		}
	}
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		if err := visit(key, value); err != nil {
			return err
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", m, err)
	}
	return nil
}

func bytesOf(elements any, i int) []byte {
	return reflect.ValueOf(elements).Index(i).Bytes()
}
