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
// at other times, masquerading nothing, IPv4, or both families: each two of the four in
// all ways, and both families with all that can be beside.
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
	ways := []struct{ device, newer, moving, out4, out6 bool }{
		{false, false, false, false, false},
		{true, true, true, false, false},
		{false, true, true, true, false},
		{true, false, false, true, false},
		{false, true, false, true, true},
		{true, false, true, true, true},
		{true, true, true, true, true},
	}
	for _, w := range ways {
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
			if w.out6 || !w.out4 {
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
