// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

func (h *harness) establish(port uint16) {
	h.t.Helper()
	h.establishFrom(podA, podR, port)
}

// establishFrom makes a flow of a pod here to one of node 2.
func (h *harness) establishFrom(a, r host, port uint16) {
	h.t.Helper()
	h.passed(h.fromPod(a, h.sent(a, segment(a.ip, r.ip, port, 80, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(r.ip, a.ip, 80, port, "SA"))))
	h.passed(h.fromPod(a, h.sent(a, segment(a.ip, r.ip, port, 80, "A"))))
}

func TestConntrackFull(t *testing.T) {
	h := newHarness(t)
	h.establish(1000)
	ct := h.d.Maps().Ct4
	for i := range ct.MaxEntries() - 1 {
		k := maps.Tuple4{Source: [4]byte{1, 0, byte(i >> 8), byte(i)}, SourcePort: maps.PortFrom(uint16(i >> 16))}
		if err := ct.Put(k, maps.CTEntry{}); err != nil {
			t.Fatalf("filling entry %d: %v", i, err)
		}
	}
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1001, 80, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1001, "SA"))))
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1001, 80, "A"))), maps.DropConntrackFull)
	// Live flows are untouched.
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "A"))))
}

func TestConntrackCounts(t *testing.T) {
	h := newHarness(t)
	h.establish(1000)
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "FA"))))
	all, open := h.flows()
	if len(all) != 1 || open != 0 {
		t.Fatalf("%d flows, %d half-open", len(all), open)
	}
	for _, e := range all {
		if e.Packets != [2]uint32{3, 1} || e.Bytes[0] == 0 || e.TCP != maps.CTFinForward || e.SrcID != uint32(idA) ||
			e.DstID != uint32(idR) || e.Flags&maps.CTReplied == 0 {
			t.Errorf("entry %+v", e)
		}
	}
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "FA"))))
	// The port is used again: a new flow, judged as one.
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true})
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
	if all, _ := h.flows(); len(all) != 0 {
		t.Errorf("the closed flow is still there: %v", all)
	}
}

func TestCollectExpired(t *testing.T) {
	h := newHarness(t)
	h.establish(1000)
	h.establish(1001)
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1001, "R"))))
	all, _ := h.flows()
	var now uint32
	for _, e := range all {
		now = max(now, e.LastSeen)
	}
	limits := maps.Timeouts{TCP: 1000, HalfOpen: 10, Closing: 100, Other: 10}
	for _, step := range []struct {
		at      uint32
		deleted int
	}{{now + 90, 0}, {now + 500, 1}, {now + 900, 0}, {now + 2000, 1}} {
		_, deleted, err := maps.CollectConntrack[maps.Tuple4](h.d.Maps().Ct4, limits, step.at)
		if err != nil || deleted != step.deleted {
			t.Errorf("%d jiffies later: %d deleted (%v), want %d", step.at-now, deleted, err, step.deleted)
		}
	}
	old := maps.CTEntry{LastSeen: 5}
	if limits.Expired(maps.ProtocolTCP, old, 1) {
		t.Error("an entry touched after the clock was read is old")
	}
}

// The collector's report says that a table is full, and counts what finds no room.
func TestFullConntrackIsTold(t *testing.T) {
	h := newHarness(t)
	h.establish(1000)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	done := make(chan error)
	go func() { done <- h.d.RunGC(ctx, loader.GCConfig{Interval: 20 * time.Millisecond}) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	until := func(what string, ok func(loader.FlowReport) bool) {
		t.Helper()
		for !ok(h.d.Flows()) {
			if ctx.Err() != nil {
				t.Fatalf("%s is not told: %+v", what, h.d.Flows())
			}
			time.Sleep(time.Millisecond)
		}
	}
	until("one flow", func(r loader.FlowReport) bool {
		return len(r.Tables) == 2 && r.Tables[0].Map == "ct4" && r.Tables[0].Flows == 1 && !r.Tables[0].Pressed() && r.Refused == 0
	})
	all, _ := h.flows()
	ct := h.d.Maps().Ct4
	for _, e := range all {
		for i := range ct.MaxEntries() - 1 {
			k := maps.Tuple4{Source: [4]byte{1, 0, byte(i >> 8), byte(i)}, Protocol: maps.ProtocolTCP}
			if err := ct.Put(k, maps.CTEntry{Flags: maps.CTReplied, LastSeen: e.LastSeen}); err != nil {
				t.Fatalf("filling entry %d: %v", i, err)
			}
		}
	}
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1001, 80, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1001, "SA"))))
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1001, 80, "A"))), maps.DropConntrackFull)
	until("a full table", func(r loader.FlowReport) bool {
		return r.Tables[0].Pressed() && r.Tables[0].Flows == int(ct.MaxEntries()) && !r.Tables[1].Pressed() && r.Refused == 1
	})
}
