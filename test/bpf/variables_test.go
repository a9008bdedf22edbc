// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/features"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/objects"
)

// The programs load with and without a device for the tunnel, on kernels that have
// what datapath/features looks for and on those that do not, while conntrack moves and
// at other times, with and without IPv6 in the mesh, masquerading nothing, IPv4, or both
// families: in every combination that the loader makes of these. The kernel's features
// are there all together or not at all, not each alone; the bits of the cluster, by
// which programs only shift, go round.
func TestVariablesLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads eBPF programs")
	}
	on := func(b bool, v uint64) uint64 {
		if b {
			return v
		}
		return 0
	}
	for i, w := range variableWays() {
		device, newer := w.device, w.newer
		t.Run(fmt.Sprintf("%+v", w), func(t *testing.T) {
			spec, err := objects.LoadHawser()
			if err != nil {
				t.Fatal(err)
			}
			keySize := uint32(28)
			if newer {
				keySize = features.TunnelKeySize
			}
			var addr6, out6 [4]uint32
			if w.mesh6 {
				addr6 = [4]uint32{0xFD, 0, 0, 1}
			}
			if w.out6 {
				out6 = [4]uint32{0xFE, 0, 0, 1}
			}
			for name, v := range map[string]any{
				"tunnel_ifindex": uint32(on(device, 7)), "tunnel_key_size": keySize,
				"encap_extra_flags": on(newer, features.EncapL2Eth), "decap6_flag": on(newer, features.DecapL3IPv6),
				"csum6_flag": on(newer, features.ChecksumOfIPv6), "node_addr6": addr6, "snat_addr6": out6,
				"snat_first":       uint32(on(w.out4, uint64(loader.MasqueradePorts().First))),
				"snat_ports":       uint32(on(w.out4, uint64(loader.MasqueradePorts().Count))),
				"ct_moving":        uint32(on(w.moving, 104)),
				"identity_shift":   uint32(16 - i%3),
				"underlay_ifindex": uint32(2), "node_addr4": uint32(0x010200C0), "tunnel_port": uint16(0x1821),
			} {
				if err := spec.Variables[name].Set(v); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			for _, m := range spec.Maps {
				if m.Type != ebpf.RingBuf && m.MaxEntries > 4096 {
					m.MaxEntries = 4096
				}
			}
			coll, err := ebpf.NewCollection(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer coll.Close()
			for name, p := range coll.Programs {
				info, err := p.Info()
				if err != nil {
					t.Fatal(err)
				}
				if n, ok := info.VerifiedInstructions(); ok && n > verifierLimit/2 {
					t.Errorf("%s takes %d instructions", name, n)
				}
			}
		})
	}
}

// variableWay is what sets variables on which the programs' ways depend.
type variableWay struct{ device, newer, moving, mesh6, out4, out6 bool }

// variableWays are all that the loader can make: IPv6 leaves by masquerading where
// IPv4 does, and in a mesh that has it.
func variableWays() (out []variableWay) {
	for i := range 1 << 6 {
		bit := func(n int) bool { return i>>n&1 == 1 }
		w := variableWay{bit(0), bit(1), bit(2), bit(3), bit(4), bit(5)}
		if !w.out6 || w.mesh6 && w.out4 {
			out = append(out, w)
		}
	}
	return out
}
