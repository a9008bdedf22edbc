// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// field is a scalar of a key or a value. Padding is no field: it is zero, so a
// later version may put one there.
type field struct {
	name         string
	offset, size uint32 // bytes
}

func (f field) overlaps(o field) bool {
	return f.offset < o.offset+o.size && o.offset < f.offset+f.size
}

// layout is how a map's keys and values look, by offset.
type layout struct{ key, value []field }

// layoutOf reads it from the objects.
func layoutOf(m *ebpf.MapSpec) (layout, error) {
	if m.InnerMap != nil { // all inner maps are equal
		in := m.InnerMap
		return layout{
			key:   []field{{"", 0, m.KeySize}},
			value: []field{{fmt.Sprintf("%s/%d/%d/%d", in.Type, in.KeySize, in.ValueSize, in.MaxEntries), 0, m.ValueSize}},
		}, nil
	}
	key, err1 := fieldsOf(m.Key, m.KeySize)
	value, err2 := fieldsOf(m.Value, m.ValueSize)
	if err := errors.Join(err1, err2); err != nil {
		return layout{}, fmt.Errorf("layout of map %s: %w", m.Name, err)
	}
	return layout{key, value}, nil
}

func fieldsOf(t btf.Type, size uint32) ([]field, error) {
	if t == nil {
		return []field{{"", 0, size}}, nil
	}
	return appendFields(nil, "", 0, t)
}

func appendFields(out []field, name string, at uint32, t btf.Type) ([]field, error) {
	s, ok := btf.UnderlyingType(t).(*btf.Struct)
	if !ok {
		size, err := btf.Sizeof(t)
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", name, err)
		}
		return append(out, field{name, at, uint32(size)}), nil
	}
	for _, m := range s.Members {
		if strings.HasPrefix(m.Name, "pad") {
			continue
		}
		inner := m.Name
		if name != "" {
			inner = name + "." + m.Name
		}
		var err error
		if out, err = appendFields(out, inner, at+m.Offset.Bytes(), m.Type); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// String is "name@offset+size …|name@offset+size …": key and value.
func (l layout) String() string {
	text := func(fields []field) string {
		out := make([]string, len(fields))
		for i, f := range fields {
			out[i] = fmt.Sprintf("%s@%d+%d", f.name, f.offset, f.size)
		}
		return strings.Join(out, " ")
	}
	return text(l.key) + "|" + text(l.value)
}

func parseLayout(s string) (layout, error) {
	key, value, ok := strings.Cut(s, "|")
	if !ok {
		return layout{}, fmt.Errorf("layout %q: no value", s)
	}
	parse := func(s string) (out []field, err error) {
		for _, part := range strings.Split(s, " ") {
			name, place, ok := strings.Cut(part, "@")
			at, size, ok2 := strings.Cut(place, "+")
			offset, err1 := strconv.ParseUint(at, 10, 32)
			length, err2 := strconv.ParseUint(size, 10, 32)
			if !ok || !ok2 || err1 != nil || err2 != nil {
				return nil, fmt.Errorf("layout: field %q", part)
			}
			out = append(out, field{name, uint32(offset), uint32(length)})
		}
		return out, nil
	}
	var l layout
	var err1, err2 error
	l.key, err1 = parse(key)
	l.value, err2 = parse(value)
	return l, errors.Join(err1, err2)
}

// common are the fields that two layouts have in the same place. It is an error
// if one of the others overlaps something: its bytes would be read as what they
// are not.
func common(was, is []field) ([]field, error) {
	var out []field
	for _, old := range was {
		for _, f := range is {
			if old == f {
				out = append(out, f)
			} else if old.overlaps(f) {
				return nil, fmt.Errorf("%q is where %q was", f.name, old.name)
			}
		}
	}
	return out, nil
}

// guess is the layout of a map from before there were notes: fields are added at
// the end only.
func (l layout) guess(m *ebpf.Map) layout {
	within := func(fields []field, size uint32) []field {
		return slices.DeleteFunc(slices.Clone(fields), func(f field) bool { return f.offset >= size })
	}
	return layout{within(l.key, m.KeySize()), within(l.value, m.ValueSize())}
}

// layoutsMap has the layout of each map by the kernel's number of the map.
const layoutsMap = "layouts"

type layoutText [1024]byte

// layouts are notes of what the maps that are pinned look like.
type layouts struct{ m *ebpf.Map }

// openLayouts opens the notes, or begins them.
func openLayouts(pinPath string) (*layouts, error) {
	path := filepath.Join(pinPath, layoutsMap)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		const room = 256
		m, err = ebpf.NewMap(&ebpf.MapSpec{Name: layoutsMap, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(len(layoutText{})), MaxEntries: room})
		if err == nil {
			err = m.Pin(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("notes of layouts %s: %w", path, err)
	}
	return &layouts{m}, nil
}

// of is a map's layout; is is what it is expected to be.
func (n *layouts) of(m *ebpf.Map, is layout) (layout, error) {
	id, err := mapID(m)
	if err != nil {
		return layout{}, err
	}
	var text layoutText
	err = n.m.Lookup(id, &text)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return is.guess(m), nil
	}
	if err != nil {
		return layout{}, fmt.Errorf("read the note of map %d: %w", id, err)
	}
	return parseLayout(string(bytes.TrimRight(text[:], "\x00")))
}

// write notes a map's layout.
func (n *layouts) write(m *ebpf.Map, l layout) error {
	id, err := mapID(m)
	if err != nil {
		return err
	}
	var text layoutText
	if s := l.String(); copy(text[:], s) < len(s) {
		return fmt.Errorf("note the layout of map %d: %d bytes are too much", id, len(s))
	}
	if err := n.m.Put(id, text); err != nil {
		return fmt.Errorf("note the layout of map %d: %w", id, err)
	}
	return nil
}

// keep forgets all maps but these.
func (n *layouts) keep(ids []uint32) error {
	have, err := maps.Dump[uint32, layoutText](n.m)
	if err != nil {
		return err
	}
	for id := range have {
		if slices.Contains(ids, id) {
			continue
		}
		if err := n.m.Delete(id); err != nil {
			return fmt.Errorf("forget the layout of map %d: %w", id, err)
		}
	}
	return nil
}

func (n *layouts) close() error { return n.m.Close() }

func mapID(m *ebpf.Map) (uint32, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("describe map: %w", err)
	}
	id, _ := info.ID()
	return uint32(id), nil
}
