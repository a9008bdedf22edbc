// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// MasqueradedAs6 is the address that the programs pinned under a path, of whichever
// build, give IPv6 flows to the outside, while there are established ones; the zero
// Addr when there are none, or no programs.
func MasqueradedAs6(pinPath string) (netip.Addr, error) {
	a, err := masqueradedAs6(pinPath)
	if errors.Is(err, os.ErrNotExist) {
		return netip.Addr{}, nil
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the address that masqueraded flows have: %w", err)
	}
	return a, nil
}

func masqueradedAs6(pinPath string) (netip.Addr, error) {
	flows, err := ebpf.LoadPinnedMap(filepath.Join(pinPath, mapsDir, "snat6"), nil)
	if err != nil {
		return netip.Addr{}, err
	}
	defer flows.Close()
	first := make([]byte, flows.KeySize())
	if err := flows.NextKey(nil, &first); errors.Is(err, ebpf.ErrKeyNotExist) {
		return netip.Addr{}, nil
	} else if err != nil {
		return netip.Addr{}, err
	}
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(pinPath, programsDir, "from_pod6"), nil)
	if err != nil {
		return netip.Addr{}, err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return netip.Addr{}, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return netip.Addr{}, err
		}
		var a maps.Addr
		found, err := readConstant(m, "snat_addr6", a[:])
		if err := errors.Join(err, m.Close()); err != nil || found {
			return a.Netip(), err
		}
	}
	return netip.Addr{}, nil
}

// readConstant reads a constant into out if the map is one of constants and has it.
func readConstant(m *ebpf.Map, name string, out []byte) (bool, error) {
	info, err := m.Info()
	if err != nil || !strings.HasPrefix(info.Name, ".rodata") {
		return false, err
	}
	h, err := m.Handle()
	if err != nil {
		return false, err
	}
	defer h.Close()
	spec, err := h.Spec(nil)
	if err != nil {
		return false, err
	}
	var sec *btf.Datasec
	if err := spec.TypeByName(info.Name, &sec); err != nil {
		return false, fmt.Errorf("find the section %s: %w", info.Name, err)
	}
	value, err := m.LookupBytes(uint32(0))
	if err != nil {
		return false, err
	}
	for _, v := range sec.Vars {
		if v.Type.TypeName() == name && int(v.Size) == len(out) && int(v.Offset+v.Size) <= len(value) {
			copy(out, value[v.Offset:])
			return true, nil
		}
	}
	return false, nil
}
