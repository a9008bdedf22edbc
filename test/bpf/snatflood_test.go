// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// wayOut is who is where on the way to the outside, by a family.
type wayOut struct {
	a, b      host // pods here
	node, far string
	header    int // bytes of the IP header
}

func waysOut() map[string]wayOut {
	return map[string]wayOut{"": {podA, podB, self, outside, 20}, "IPv6 ": {podA6, podB6, selfOut6, outside6, 40}}
}

// snatFlood is a pod's SYNs to the outside, each of another port; nobody answers.
type snatFlood struct {
	h      *harness
	prog   *ebpf.Program
	syn    []byte
	in     skb
	spread bool // each to another address
	header int  // bytes of the IP header
	sent   int
}

// snatFlood is of podB.
func (h *harness) snatFlood(w wayOut, spread bool) *snatFlood {
	return &snatFlood{
		h: h, prog: h.d.Programs().FromPod, syn: h.sent(w.b, segment(w.b.ip, w.far, 1, 80, "S")),
		in: skb{IfIndex: h.ifindex(w.b.name)}, spread: spread, header: w.header,
	}
}

// send sends n of them and returns how many were refused.
func (f *snatFlood) send(n int) (refused int) {
	f.h.t.Helper()
	last, sport := 14+f.header-1, 14+f.header
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

// maskedSYN has podA open a flow to the outside and returns the port that it got.
func (h *harness) maskedSYN(w wayOut, port uint16) (uint16, bool) {
	h.t.Helper()
	r := h.fromPod(w.a, h.sent(w.a, segment(w.a.ip, w.far, port, 80, "S")))
	if r.act != actRedirect {
		return 0, false
	}
	return h.masked(r, w.far, 80), true
}

// confirmed has the outside answer at the node's port, and podA confirm it. It
// reports whether both came as they must.
func (h *harness) confirmed(t *testing.T, w wayOut, port, masked uint16) bool {
	h.t.Helper()
	r := h.fromOverlay(h.plain(segment(w.far, w.node, 80, masked, "SA")))
	if r.act != actRedirect {
		return false
	}
	expect(t, r.out, w.far, 80, w.a.ip, port)
	r = h.fromPod(w.a, h.sent(w.a, segment(w.a.ip, w.far, port, 80, "A")))
	return r.act == actRedirect && h.masked(r, w.far, 80) == masked
}

// A pod that only sends SYNs, 120 % of the node's ports and of the room for flows
// to the outside, takes no port of a flow that lives, and leaves other pods theirs.
func TestMasqueradeFlood(t *testing.T) {
	for _, c := range []struct {
		name   string
		spread bool
		open   uint32
	}{
		{"to one port", false, 8192}, // more room than ports: ports run out first
		{"to many addresses", true, 1024},
	} {
		for family, w := range waysOut() {
			t.Run(family+c.name, func(t *testing.T) { masqueradeFlood(t, w, c.spread, c.open) })
		}
	}
}

func masqueradeFlood(t *testing.T, w wayOut, spread bool, halfOpen uint32) {
	ports := loader.PortRange{First: 16384, Count: 4096}
	sizes := loader.SmallMaps()
	sizes.SNAT, sizes.SNATOpen = 2048, halfOpen
	sizes.SNAT6, sizes.SNATOpen6 = sizes.SNAT, sizes.SNATOpen
	h := newHarnessWith(t, loader.Config{
		MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, Masquerade: ports, NodeAddr6: addr(self6), Masquerade6: addr(selfOut6),
	})
	h.outbound()
	const live, fresh, between = 100, 1000, 10
	has := map[uint16]uint16{}
	for port := uint16(1000); port < 1000+live; port++ {
		masked, ok := h.maskedSYN(w, port)
		if !ok || !h.confirmed(t, w, port, masked) {
			t.Fatalf("flow %d is not opened", port)
		}
		has[port] = masked
	}
	udp := h.masked(h.fromPod(w.a, h.sent(w.a, datagram(w.a.ip, w.far, 999, 53, 4))), w.far, 53)
	h.passed(h.fromOverlay(h.plain(datagram(w.far, w.node, 53, udp, 4))))

	f := h.snatFlood(w, spread)
	refused := f.send((int(ports.Count) + int(sizes.SNAT) + int(sizes.SNATOpen)) * 12 / 10)
	failed := 0
	for port := uint16(2000); port < 2000+fresh; port++ {
		masked, ok := h.maskedSYN(w, port)
		refused += f.send(between) // while the answer is under way
		if !ok || !h.confirmed(t, w, port, masked) {
			failed++
			continue
		}
		has[port] = masked
	}
	t.Logf("%d SYNs of the flood, %d refused; of %d new flows of another pod %d failed", f.sent, refused, fresh, failed)
	if failed > fresh/100 {
		t.Errorf("%d of %d new flows failed", failed, fresh)
	}
	for port, masked := range has { // neither does any of them lose its port
		r := h.passed(h.fromPod(w.a, h.sent(w.a, segment(w.a.ip, w.far, port, 80, "A"))))
		if got := h.masked(r, w.far, 80); got != masked {
			t.Errorf("flow %d: port %d became %d", port, masked, got)
		}
		r = h.passed(h.fromOverlay(h.plain(segment(w.far, w.node, 80, masked, "A"))))
		expect(t, r.out, w.far, 80, w.a.ip, port)
	}
	r := h.passed(h.fromOverlay(h.plain(datagram(w.far, w.node, 53, udp, 4))))
	expect(t, r.out, w.far, 53, w.a.ip, 999)
	if kept := h.masqueradePorts(w); kept != len(has)+1 {
		t.Errorf("%d ports of established flows, want %d", kept, len(has)+1)
	}
}

// masqueradePorts is how many ports established flows have.
func (h *harness) masqueradePorts(w wayOut) int {
	h.t.Helper()
	v4, err1 := maps.Dump[maps.SNATKey, maps.SNATEntry](h.d.Maps().Snat4)
	v6, err2 := maps.Dump[maps.SNAT6Key, maps.SNAT6Entry](h.d.Maps().Snat6)
	if err := errors.Join(err1, err2); err != nil {
		h.t.Fatal(err)
	}
	if isIPv6(w.far) {
		return len(v6)
	}
	return len(v4)
}

// A flow that two CPUs handle while it is established keeps its port, and has one only.
func TestRaceOfMasquerade(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	const flows, packets = 300, 8
	for family, w := range waysOut() {
		t.Run(family+"answers", func(t *testing.T) {
			h.t = t
			port := 14 + w.header // in a packet: the source's
			pod, wire := skb{IfIndex: h.ifindex(w.a.name)}, skb{IfIndex: h.ifindex("eth0")}
			for i := range uint16(flows) {
				out := h.sent(w.a, datagram(w.a.ip, w.far, 2000+i, 53, 4))
				masked := h.masked(h.fromPod(w.a, out), w.far, 53)
				in := h.plain(datagram(w.far, w.node, 53, masked, 4))
				done := make(chan error, 2)
				many := func(cpu int, prog *ebpf.Program, packet []byte, ctx skb, want uint16) {
					done <- h.onCPU(cpu, func() error {
						for range packets {
							got := make([]byte, 256)
							act, err := prog.Run(&ebpf.RunOptions{Data: packet, DataOut: got, Context: ctx})
							if err != nil || act != actRedirect {
								return fmt.Errorf("verdict %d, %v", act, err)
							}
							if at := port + 2*cpu; uint16(got[at])<<8|uint16(got[at+1]) != want {
								return fmt.Errorf("CPU %d: port %x, want %x", cpu, got[at:at+2], want)
							}
						}
						return nil
					})
				}
				go many(0, h.d.Programs().FromPod, out, pod, masked)
				go many(1, h.d.Programs().FromOverlay, in, wire, 2000+i)
				if err := errors.Join(<-done, <-done); err != nil {
					t.Fatalf("flow %d: %v", i, err)
				}
			}
			if n := h.masqueradePorts(w); n != flows {
				t.Errorf("%d flows have %d ports", flows, n)
			}
		})
	}
}
