// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// snatFlood is a pod's SYNs to the outside, each of another port; nobody answers.
type snatFlood struct {
	h      *harness
	prog   *ebpf.Program
	syn    []byte
	in     skb
	spread bool // each to another address
	sent   int
}

func (h *harness) snatFlood(from host, spread bool) *snatFlood {
	return &snatFlood{
		h: h, prog: h.d.Programs().FromPod, syn: h.sent(from, segment(from.ip, outside, 1, 80, "S")),
		in: skb{IfIndex: h.ifindex(from.name)}, spread: spread,
	}
}

// send sends n of them and returns how many were refused.
func (f *snatFlood) send(n int) (refused int) {
	f.h.t.Helper()
	const last, sport = 14 + 19, 14 + 20
	err := f.h.onCPU(0, func() error {
		for range n {
			f.sent++
			if f.spread {
				f.syn[last-1], f.syn[last] = byte(f.sent>>8), byte(f.sent)
			}
			f.syn[sport], f.syn[sport+1] = byte(f.sent>>8), byte(f.sent)
			act, err := f.prog.Run(&ebpf.RunOptions{Data: f.syn, DataOut: make([]byte, 256), Context: f.in})
			switch {
			case err != nil:
				return err
			case act == actShot:
				refused++
			case act != actRedirect:
				return fmt.Errorf("SYN %d of the flood: verdict %d", f.sent, act)
			}
		}
		return nil
	})
	if err != nil {
		f.h.t.Fatal(err)
	}
	return refused
}

// maskedSYN opens a flow to the outside and returns the port that it got.
func (h *harness) maskedSYN(from host, port uint16) (uint16, bool) {
	h.t.Helper()
	r := h.fromPod(from, h.sent(from, segment(from.ip, outside, port, 80, "S")))
	if r.act != actRedirect {
		return 0, false
	}
	return h.masked(r, outside, 80), true
}

// confirmed has the outside answer at the node's port, and the pod confirm it. It
// reports whether both came as they must.
func (h *harness) confirmed(t *testing.T, to host, port, masked uint16) bool {
	h.t.Helper()
	r := h.fromOverlay(h.plain(segment(outside, self, 80, masked, "SA")))
	if r.act != actRedirect {
		return false
	}
	expect(t, r.out, outside, 80, to.ip, port)
	r = h.fromPod(to, h.sent(to, segment(to.ip, outside, port, 80, "A")))
	return r.act == actRedirect && h.masked(r, outside, 80) == masked
}

// A pod that only sends SYNs, 120 % of the node's ports and of the room for flows
// to the outside, takes no port of a flow that lives, and leaves other pods theirs.
func TestMasqueradeFlood(t *testing.T) {
	ports := loader.PortRange{First: 16384, Count: 4096}
	for _, c := range []struct {
		name   string
		spread bool
		open   uint32
	}{
		{"to one port", false, 8192}, // more room than ports: ports run out first
		{"to many addresses", true, 1024},
		{"to one port, little room", false, 1024},
	} {
		t.Run(c.name, func(t *testing.T) {
			sizes := loader.SmallMaps()
			sizes.SNAT, sizes.SNATOpen = 2048, c.open
			h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, Masquerade: ports})
			h.outbound()
			const live, fresh, between = 100, 1000, 20
			has := map[uint16]uint16{}
			open := func(port uint16) bool {
				masked, ok := h.maskedSYN(podA, port)
				has[port] = masked
				return ok && h.confirmed(t, podA, port, masked)
			}
			for port := uint16(1000); port < 1000+live; port++ {
				if !open(port) {
					t.Fatalf("flow %d is not opened", port)
				}
			}
			udp := h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, outside, 999, 53, 4))), outside, 53)
			h.passed(h.fromOverlay(h.plain(datagram(outside, self, 53, udp, 4))))

			f := h.snatFlood(podB, c.spread)
			refused := f.send((int(ports.Count) + int(sizes.SNAT) + int(sizes.SNATOpen)) * 12 / 10)
			failed := 0
			for port := uint16(2000); port < 2000+fresh; port++ {
				masked, ok := h.maskedSYN(podA, port)
				refused += f.send(between) // while the answer is under way
				if !ok || !h.confirmed(t, podA, port, masked) {
					failed++
					delete(has, port)
					continue
				}
				has[port] = masked
			}
			t.Logf("%d SYNs of the flood, %d refused; of %d new flows of another pod %d failed", f.sent, refused, fresh, failed)
			if failed > fresh/100 {
				t.Errorf("%d of %d new flows failed", failed, fresh)
			}
			for port, masked := range has { // neither does any of them lose its port
				r := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, port, 80, "A"))))
				if got := h.masked(r, outside, 80); got != masked {
					t.Errorf("flow %d: port %d became %d", port, masked, got)
				}
				r = h.passed(h.fromOverlay(h.plain(segment(outside, self, 80, masked, "A"))))
				expect(t, r.out, outside, 80, podA.ip, port)
			}
			r := h.passed(h.fromOverlay(h.plain(datagram(outside, self, 53, udp, 4))))
			expect(t, r.out, outside, 53, podA.ip, 999)
			kept, err := maps.Dump[maps.SNATKey, maps.SNATEntry](h.d.Maps().Snat4)
			if err != nil || len(kept) != len(has)+1 {
				t.Errorf("%d ports of established flows, want %d (%v)", len(kept), len(has)+1, err)
			}
		})
	}
}
