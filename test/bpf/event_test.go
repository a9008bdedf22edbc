// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

func (h *harness) watch(w maps.Watch) {
	h.t.Helper()
	if err := h.d.Maps().Watched.Put(uint32(0), w); err != nil {
		h.t.Fatal(err)
	}
}

// New flows are told when somebody wants to hear it, once each, with the rule
// that let them pass.
func TestVerdictEvents(t *testing.T) {
	h := newHarness(t)
	h.rules(podB, datapath.RuleSet{ID: 7, Ingress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Direction: datapath.Ingress, Protocol: tcp, Port: 80}: {Origin: 42},
	}})
	open := func(port uint16) {
		t.Helper()
		h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, port, 80, "S"))))
	}
	open(1000)
	if e := h.events(); len(e) != 0 {
		t.Fatalf("nobody listens: %+v", e)
	}
	h.watch(maps.Watch{Verdicts: 1})
	open(1000) // not new
	if e := h.events(); len(e) != 0 {
		t.Fatalf("an old flow: %+v", e)
	}
	open(1001)
	e := h.events()
	if len(e) != 1 || e[0].Type != datapath.EventVerdict || e[0].Origin != 42 || e[0].RuleSet != 7 || e[0].Reason != maps.Forwarded ||
		e[0].SourceID != idA || e[0].DestID != idB || e[0].Source.Port() != 1001 || e[0].Program != "from_pod" {
		t.Fatalf("events %+v", e)
	}
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 7, 80, "S"))))
	h.passed(h.fromHost(h.plain(segment(self, podA.ip, 7, 80, "S"))))
	if e := h.events(); len(e) != 2 || e[0].Program != "from_overlay" || e[1].Program != "from_host" {
		t.Errorf("events %+v", e)
	}
	// IPv6 is told alike.
	h.passed(h.from6(segment(podA6.ip, podB6.ip, 1001, 80, "S")))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 7, 80, "S"))))
	h.passed(h.fromHost(h.plain(segment(self6, podA6.ip, 7, 80, "S"))))
	e = h.events()
	if len(e) != 3 || e[0].Origin != 42 || e[0].Program != "from_pod" || e[0].Source != netip.MustParseAddrPort("["+podA6.ip+"]:1001") ||
		e[0].Destination != netip.MustParseAddrPort("["+podB6.ip+"]:80") || e[1].Program != "from_overlay" ||
		e[1].Outer.String() != node2 || e[2].Program != "from_host" {
		t.Errorf("events %+v", e)
	}
	// A burst is cut, and the next event says by how many.
	const burst = 200
	for port := range uint16(burst + 100) {
		open(2000 + port)
	}
	if n := len(h.events()); n < burst-10 || n > burst+60 {
		t.Errorf("%d events of a burst of %d", n, burst+100)
	}
}

func TestTraceEvents(t *testing.T) {
	h := newHarness(t)
	send := func(n int) (traces int) {
		t.Helper()
		for range n {
			h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "A"))))
		}
		for _, e := range h.events() {
			if e.Type != datapath.EventTrace || e.Source.Port() != 1000 {
				t.Errorf("event %+v", e)
			}
			traces++
		}
		return traces
	}
	if n := send(64); n != 0 {
		t.Errorf("nobody listens, %d traces", n)
	}
	h.watch(maps.Watch{Traces: 1})
	// The sample is per CPU, and the test may be moved between them.
	if n := send(640); n < 30 || n > 44 {
		t.Errorf("%d traces of 640 packets, want 40", n)
	}
}
