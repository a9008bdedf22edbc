// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/features"
	"github.com/hawser-mesh/hawser/datapath/objects"
)

// feature is a set of constants that are 0 where it is off: what an operator wants,
// and what this kernel may have and another not.
type feature struct {
	name      string
	constants map[string]any
}

func constantFeatures() []feature {
	return []feature{
		{"masquerade", map[string]any{"snat_first": uint32(20000), "snat_ports": uint32(4096)}},
		{"an IPv6 address", map[string]any{"node_addr6": addr(self6).As16()}},
		{"headers of Ethernet", map[string]any{"encap_extra_flags": uint64(features.EncapL2Eth)}},
		{"stripping to IPv6", map[string]any{"decap6_flag": uint64(features.DecapL3IPv6)}},
		{"checksums of IPv6", map[string]any{"csum6_flag": uint64(features.ChecksumOfIPv6)}},
	}
}

// TestFeaturesLoad has the verifier see the programs without features and with those
// that go together: kernels have learned the last three one after the other. Dead
// branches make other programs.
func TestFeaturesLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads eBPF programs")
	}
	const masquerade, v6, encap, decap, csum = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
	for _, set := range []int{
		0, masquerade, v6, masquerade | v6, masquerade | v6 | encap, masquerade | v6 | encap | decap,
		masquerade | encap | decap | csum, v6 | encap | decap | csum,
	} {
		var names []string
		constants := map[string]any{}
		for n, f := range constantFeatures() {
			if set>>n&1 == 1 {
				names = append(names, f.name)
				maps.Copy(constants, f.constants)
			}
		}
		t.Run("with "+strings.Join(names, ", "), func(t *testing.T) { loads(t, constants) })
	}
}

// loads loads the programs that see packets, with small maps.
func loads(t *testing.T, constants map[string]any) {
	t.Helper()
	spec, err := objects.LoadHawser()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		if p.Type != ebpf.SchedCLS {
			delete(spec.Programs, name)
		}
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		switch m.Type {
		case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie, ebpf.HashOfMaps:
			m.MaxEntries = 64
		}
	}
	errs := []error{spec.Variables["identity_shift"].Set(uint32(16))}
	for name, v := range constants {
		errs = append(errs, spec.Variables[name].Set(v))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer c.Close()
	for name, p := range c.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := info.VerifiedInstructions(); ok && n > verifierLimit/2 {
			t.Errorf("%s takes %d instructions", name, n)
		}
	}
}
