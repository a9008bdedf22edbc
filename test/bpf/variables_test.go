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
// what datapath/features looks for and on those that do not, with masquerade alone
// and with an IPv6 address of the node alone (both, and neither: TestConstantsLoad).
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
	for n := range 4 { // each two of the three in all ways
		device, newer := n&1 != 0, n&2 != 0
		six := device != newer
		t.Run(fmt.Sprintf("device %v, newer kernel %v, IPv6 %v", device, newer, six), func(t *testing.T) {
			spec, err := objects.LoadHawser()
			if err != nil {
				t.Fatal(err)
			}
			keySize := uint32(28)
			if newer {
				keySize = features.TunnelKeySize
			}
			var addr6 [4]uint32
			if six {
				addr6 = [4]uint32{0xFD, 0, 0, 1}
			}
			for name, v := range map[string]any{
				"tunnel_ifindex": uint32(on(device, 7)), "tunnel_key_size": keySize,
				"encap_extra_flags": on(newer, features.EncapL2Eth), "decap6_flag": on(newer, features.DecapL3IPv6),
				"csum6_flag": on(newer, features.ChecksumOfIPv6), "node_addr6": addr6,
				"snat_first":       uint32(on(!six, uint64(loader.MasqueradePorts().First))),
				"snat_ports":       uint32(on(!six, uint64(loader.MasqueradePorts().Count))),
				"ct_moving":        uint32(on(newer, 104)),
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
