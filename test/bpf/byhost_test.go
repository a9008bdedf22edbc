// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
)

// quotes6 checks whose packet an ICMPv6 error is about.
func quotes6(t *testing.T, b []byte, src string, sport uint16, dst string, dport uint16) {
	t.Helper()
	q := b[14+40+8:]
	from, to := netip.AddrFrom16([16]byte(q[8:24])), netip.AddrFrom16([16]byte(q[24:40]))
	s, d := binary.BigEndian.Uint16(q[40:]), binary.BigEndian.Uint16(q[42:])
	if from != addr(src) || to != addr(dst) || s != sport || d != dport {
		t.Errorf("about %s:%d → %s:%d, want %s:%d → %s:%d", from, s, to, d, src, sport, dst, dport)
	}
}

// A service whose backend is behind another device of the node, or the node itself:
// its answers come by the host veth, and so do errors about what was sent to it. The
// client hears of the service only.
func TestBackendBehindTheHost(t *testing.T) {
	h := newHarness(t)
	for i, f := range families() {
		for j, backend := range []string{f.outside, f.self} {
			sport := uint16(1000 + 100*i + 10*j)
			k := datapath.FrontendKey{Addr: addr(f.vip), Port: 443, Protocol: tcp}
			h.tables.Frontends.Set(k, datapath.Frontend{Service: 3, Backends: []datapath.Backend{{Addr: addr(backend), Port: 8443}}})
			h.sync()
			r := h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, sport, 443, "S")))
			expect(t, r.out, f.a.ip, sport, backend, 8443)
			r = h.passed(h.fromHost(h.plain(segment(backend, f.a.ip, 8443, sport, "SA"))))
			expect(t, r.out, f.vip, 443, f.a.ip, sport)
			r = h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, sport, 443, "A")))
			expect(t, r.out, f.a.ip, sport, backend, 8443)
			r = h.passed(h.fromHost(h.plain(segment(backend, f.a.ip, 8443, sport, "A"))))
			expect(t, r.out, f.vip, 443, f.a.ip, sport)

			about := segment(f.a.ip, backend, sport, 8443, "A")
			for _, router := range []string{f.self, backend} {
				from := router
				if router == backend {
					from = f.vip
				}
				if f.icmp == 1 {
					r = h.passed(h.fromHost(h.plain(unreachable(t, router, f.a.ip, 4, about))))
					tells(t, r.out, from, f.a.ip, f.a.ip, sport, f.vip, 443)
					continue
				}
				r = h.passed(h.fromHost(h.plain(message6(router, f.a.ip, 2, 0, append(make([]byte, 4), build(t, about...)...)))))
				quotes6(t, r.out, f.a.ip, sport, f.vip, 443)
			}
		}
	}
}

// What a pod says of an answer to a masqueraded flow is said by the node, and of
// what the node got.
func TestErrorsOfMasqueradedFlows(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	port := h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, outside, 1234, 5300, 10))), outside, 5300)
	h.passed(h.fromOverlay(h.plain(datagram(outside, self, 5300, port, 10))))
	r := h.passed(h.fromPod(podA, h.sent(podA, unreachable(t, podA.ip, outside, 3, datagram(outside, podA.ip, 5300, 1234, 10)))))
	tells(t, r.out, self, outside, outside, 5300, self, port)
	if _, i, _ := decode(t, r.out); i.TTL != 63 {
		t.Errorf("TTL %d", i.TTL)
	}

	k := datapath.FrontendKey{Addr: addr(vip), Port: 53, Protocol: udp}
	h.tables.Frontends.Set(k, datapath.Frontend{Service: 3, Backends: []datapath.Backend{{Addr: addr(outside), Port: 5353}}})
	h.sync()
	port = h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, vip, 1235, 53, 10))), outside, 5353)
	h.passed(h.fromOverlay(h.plain(datagram(outside, self, 5353, port, 10))))
	r = h.passed(h.fromPod(podA, h.sent(podA, unreachable(t, podA.ip, vip, 3, datagram(vip, podA.ip, 53, 1235, 10)))))
	tells(t, r.out, self, outside, outside, 5353, self, port)
}
