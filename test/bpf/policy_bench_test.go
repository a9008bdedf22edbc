// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/datapath"
)

// BenchmarkPolicyLookup is what a rule set costs a packet that is not cached: one
// that all probes miss and the default denies. The difference to the first case is
// the cost of the probes.
func BenchmarkPolicyLookup(b *testing.B) {
	levels := func() entries {
		return entries{
			{Identity: idX, Protocol: tcp, Port: 1}: {}, {Identity: idX, Protocol: tcp}: {}, {Identity: idX}: {},
			{Protocol: 17, Port: 1}: {}, {Protocol: 17}: {},
		}
	}
	ranges := func(sizes ...uint8) entries {
		out := levels()
		for _, wild := range sizes {
			out[datapath.PolicyKey{Identity: idX, Protocol: tcp, Port: 1 << 15, PortWild: wild}] = datapath.PolicyEntry{}
		}
		return out
	}
	blocks := levels()
	blocks[datapath.PolicyKey{Identity: block1}] = datapath.PolicyEntry{}
	h := newHarness(b)
	for i := range 2000 {
		a := netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0})
		h.tables.IPCache.Set(datapath.IPKey{ClusterID: datapath.BlockSpace, Prefix: netip.PrefixFrom(a, 24)}, datapath.IPEntry{Identity: block2})
	}
	h.tables.IPCache.Set(blockKey("10.2.0.0/16"), datapath.IPEntry{Identity: block2})
	packet := h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1000, 80, "S"))
	for _, c := range []struct {
		name string
		entries
	}{
		{"default deny", nil}, {"levels", levels()}, {"one size of range", ranges(6)}, {"all sizes", ranges(2, 4, 6, 8, 10, 12, 14)}, {"ipBlocks among 2001", blocks},
	} {
		b.Run(c.name, func(b *testing.B) {
			h.t = b
			h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: c.entries})
			best := time.Duration(1<<62 - 1)
			for range b.N {
				h.in(func() error {
					_, took, err := h.d.Programs().FromOverlay.Benchmark(packet, 20000, b.ResetTimer)
					best = min(best, took)
					return err
				})
			}
			b.ReportMetric(float64(best.Nanoseconds()), "ns/packet")
		})
	}
}
