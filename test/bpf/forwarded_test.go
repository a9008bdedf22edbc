// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// byHost sends a packet over the host veth that came in on a device; 0 is none.
func (h *harness) byHost(cameIn uint32, packet []byte) result {
	h.t.Helper()
	opts := &ebpf.RunOptions{
		Data: packet, DataOut: make([]byte, len(packet)), Context: skb{CameIn: cameIn, IfIndex: h.ifindex("hawser_host")},
	}
	var act uint32
	h.in(func() (err error) {
		act, err = h.d.Programs().FromStack.Run(opts)
		return err
	})
	if act != actOK {
		h.t.Fatalf("from_stack: verdict %d", act)
	}
	if began := cameIn <= 1; bytes.Equal(opts.DataOut, packet) != began {
		h.t.Errorf("came in on %d: %x became %x", cameIn, packet[:14], opts.DataOut[:14])
	}
	return h.fromHost(opts.DataOut)
}

// The node's addresses are the host's only in what its own stack sends. By IPv4 the
// kernel sees to that, and what a NAT here gave them is the host's.
func TestForwardedFromTheNodesAddress(t *testing.T) {
	const lan = 77
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{
		{Direction: datapath.Ingress, Identity: identity.Host}: {},
	}})
	local, mask := "fd77::1", "fd77::1/128"
	h.tables.IPCache.Set(key(mask), datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost | datapath.IPLocal})
	h.sync()
	for _, from := range []string{self6, local} {
		to := func(dst string, sport uint16) []byte { return h.plain(segment(from, dst, sport, 80, "S")) }
		for _, cameIn := range []uint32{0, 1} {
			h.passed(h.byHost(cameIn, to(podA6.ip, 1000)))
		}
		if e := h.dropped(h.byHost(lan, to(podA6.ip, 1001)), maps.DropPolicyDenied); e.SourceID != identity.World {
			t.Errorf("from %s: event %+v", from, e)
		}
		h.passed(h.byHost(lan, to(podB6.ip, 1002))) // who lets the world in
		h.passed(h.byHost(0, to(podR6.ip, 1003)))
		h.dropped(h.byHost(lan, to(podR6.ip, 1003)), maps.DropSpoofedSource)
		// The host's flow with a pod is not continued.
		h.passed(h.byHost(0, to(podB6.ip, 1004)))
		h.dropped(h.byHost(lan, h.plain(segment(from, podB6.ip, 1004, 80, "A"))), maps.DropSpoofedSource)
	}
	h.passed(h.byHost(0, h.plain(segment(self, podA.ip, 1000, 80, "S"))))
	h.passed(h.byHost(lan, h.plain(segment(self, podA.ip, 1001, 80, "S"))))
}

// What the host forwards has part neither in the mesh's flows nor in the pods'.
func TestForwardedIntoFlowsOfTheMesh(t *testing.T) {
	const lan = 77
	h := newHarness(t)
	for _, f := range families() {
		h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, 1000, 80, "S"))))
		h.dropped(h.byHost(lan, h.plain(segment(f.r.ip, f.a.ip, 80, 1000, "SA"))), maps.DropSpoofedSource)
		h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 80, 1000, "SA"))))
		h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, 1000, 80, "A"))))
		h.dropped(h.byHost(lan, h.plain(segment(f.r.ip, f.a.ip, 80, 1000, "A"))), maps.DropSpoofedSource)
		// Nor do pods of this node send by the host.
		h.dropped(h.byHost(lan, h.plain(segment(f.b.ip, f.a.ip, 1001, 80, "S"))), maps.DropSpoofedSource)
		// The outside is the outside, and may answer.
		h.passed(h.byHost(lan, h.plain(segment(f.outside, f.a.ip, 1002, 80, "S"))))
		h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.outside, 1003, 80, "S")))
		h.passed(h.byHost(lan, h.plain(segment(f.outside, f.a.ip, 80, 1003, "SA"))))
	}
}
