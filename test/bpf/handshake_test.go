// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"testing"
	"time"

	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// step is a packet of a connection, by who opened it or by the other, and whether
// the flow is established behind it.
type step struct {
	by          string
	flags       string
	established bool
}

// A TCP flow is established when who opened it has confirmed the answer, and not
// before, whatever else the two say and wherever they are.
func TestEstablishedByConfirmation(t *testing.T) {
	connections := map[string][]step{
		"handshake":              {{"it", "S", false}, {"peer", "SA", false}, {"it", "A", true}},
		"retransmissions":        {{"it", "S", false}, {"it", "S", false}, {"peer", "SA", false}, {"it", "S", false}, {"peer", "SA", false}, {"it", "A", true}, {"peer", "SA", true}},
		"simultaneous open":      {{"it", "S", false}, {"peer", "S", false}, {"it", "SA", false}, {"peer", "SA", false}, {"it", "A", true}},
		"reset by who opened it": {{"it", "S", false}, {"peer", "SA", false}, {"it", "R", false}, {"it", "RA", false}},
		"refused":                {{"it", "S", false}, {"peer", "RA", false}},
		"closed at once":         {{"it", "S", false}, {"peer", "SA", false}, {"it", "FA", true}},
		"found on its way":       {{"it", "A", false}, {"peer", "A", false}, {"it", "A", true}},
	}
	for _, f := range families() {
		h := newHarness(t)
		for name, steps := range connections {
			for way, pass := range h.talks(f) {
				t.Run(f.prefix+name+", "+way, func(t *testing.T) {
					h.t = t
					for n, s := range steps {
						pass(s.by == "it", s.flags)
						all, open := h.entries(f)
						if all != 1 || (open == 0) != s.established {
							t.Fatalf("step %d (%s by %s): %d flows, %d half-open", n, s.flags, s.by, all, open)
						}
					}
				})
				h.forgetFlows()
			}
		}
	}
}

// talks are functions that pass a packet of a connection, each of another pair.
func (h *harness) talks(f family) map[string]func(it bool, flags string) {
	exchange := func(it, peer string, port uint16, forward, back func([]gopacket.SerializableLayer) result) func(bool, string) {
		return func(opener bool, flags string) {
			h.t.Helper()
			send, ls := back, segment(peer, it, port, 1000, flags)
			if opener {
				send, ls = forward, segment(it, peer, 1000, port, flags)
			}
			if r := send(ls); r.act == actShot {
				h.t.Fatalf("%s dropped: %+v", flags, h.events())
			}
		}
	}
	from := func(p host) func([]gopacket.SerializableLayer) result {
		return func(ls []gopacket.SerializableLayer) result { return h.fromPod(p, h.sent(p, ls)) }
	}
	tunnel := func(ls []gopacket.SerializableLayer) result { return h.fromOverlay(h.tunnelled(node2, idR, ls)) }
	plain := func(ls []gopacket.SerializableLayer) result { return h.fromOverlay(h.plain(ls)) }
	host := func(ls []gopacket.SerializableLayer) result { return h.fromHost(h.plain(ls)) }
	return map[string]func(bool, string){
		"on this node":     exchange(f.a.ip, f.b.ip, 80, from(f.a), from(f.b)),
		"to another node":  exchange(f.a.ip, f.r.ip, 80, from(f.a), tunnel),
		"from another":     exchange(f.r.ip, f.a.ip, 80, tunnel, from(f.a)),
		"from the outside": exchange(f.outside, f.a.ip, 80, plain, from(f.a)),
		"from the host":    exchange(f.self, f.a.ip, 80, host, from(f.a)),
		"of the host":      exchange(f.self, f.r.ip, 80, host, tunnel),
	}
}

// Both entries of a flow to a service are established together, also behind the
// retransmission of an answer.
func TestServiceEstablishedByConfirmation(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"service", func(t *testing.T) {
			h := newHarness(t)
			h.serve(f.vip, 80, tcp, f.b)
			h.sync()
			expectOpen := func(want int) {
				t.Helper()
				if all, open := h.entries(f); all != 2 || open != want {
					t.Fatalf("%d flows, %d half-open, want 2 and %d", all, open, want)
				}
			}
			to := func(flags string) { h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, 1000, 80, flags)))) }
			back := func(flags string) {
				h.passed(h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.a.ip, 8080, 1000, flags))))
			}
			to("S")
			back("SA")
			to("S")
			back("SA")
			expectOpen(2)
			to("A")
			expectOpen(0)
			back("A")
			to("FA")
			expectOpen(0)
		})
	}
}

// A connection whose answer is on its way stays where it is when its address
// becomes a service's.
func TestBecomesServiceDuringHandshake(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"service", func(t *testing.T) {
			h := newHarness(t)
			h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, 1000, 80, "S"))))
			h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 80, 1000, "SA"))))
			h.serve(f.r.ip, 80, tcp, f.b)
			h.sync()
			r := h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, 1000, 80, "A"))))
			expect(t, unwrapped(r.out), f.a.ip, 1000, f.r.ip, 80)
		})
	}
}

// Datagrams and echoes are established by their first answer.
func TestEstablishedByAnswer(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"UDP", func(t *testing.T) {
			h := newHarness(t)
			h.passed(h.fromPod(f.a, h.sent(f.a, datagram(f.a.ip, f.r.ip, 1000, 53, 8))))
			h.passed(h.fromOverlay(h.tunnelled(node2, idR, datagram(f.r.ip, f.a.ip, 53, 1000, 8))))
			if all, open := h.entries(f); all != 1 || open != 0 {
				t.Errorf("%d flows, %d half-open, want 1 and 0", all, open)
			}
		})
	}
}

// The collector forgets answered connections that nobody confirmed as soon as
// unanswered ones, and none that are established.
func TestCollectUnconfirmed(t *testing.T) {
	h := newHarness(t)
	for _, f := range families() {
		h.establishFrom(f.a, f.r, 1000)
		h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, 1001, 80, "S"))))
		h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 80, 1001, "SA"))))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	done := make(chan error)
	go func() {
		done <- h.d.RunGC(ctx, loader.GCConfig{Interval: 50 * time.Millisecond, HalfOpen: 100 * time.Millisecond})
	}()
	for ctx.Err() == nil {
		gone := true
		for _, f := range families() {
			all, open := h.entries(f)
			if all-open != 1 {
				t.Errorf("%s%d established flows, want 1", f.prefix, all-open)
			}
			gone = gone && open == 0
		}
		if gone {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Error("unconfirmed flows are still there")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
