// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// idle makes the service's ports of both protocols, with no backend.
func (h *harness) idle() {
	h.t.Helper()
	for _, proto := range []uint8{tcp, udp} {
		h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: proto}, datapath.Frontend{Service: 1})
	}
	h.sync()
}

// A service without backends answers at once, as a closed port would.
func TestNoBackendIsTold(t *testing.T) {
	h := newHarness(t)
	h.idle()
	from := map[string]func([]gopacket.SerializableLayer) result{
		podA.ip: func(ls []gopacket.SerializableLayer) result { return h.fromPod(podA, h.sent(podA, ls)) },
		self:    func(ls []gopacket.SerializableLayer) result { return h.fromHost(h.plain(ls)) },
	}
	for src, send := range from {
		for name, c := range map[string]struct {
			flags    string
			seq, ack uint32 // of the reset, for a segment with 4 bytes
			want     string
		}{
			"syn":     {"S", 0, 7 + 4 + 1, "RA"},
			"ack":     {"A", 9, 0, "R"},
			"fin":     {"F", 0, 7 + 4 + 1, "RA"},
			"fin ack": {"FA", 9, 0, "R"},
		} {
			t.Run(name+" from "+src, func(t *testing.T) {
				h.t = t
				ls := segment(src, vip, 1000, 80, c.flags)
				tcp := ls[1].(*layers.TCP)
				tcp.Seq, tcp.Ack = 7, 9
				r := send(ls)
				h.answered(r, maps.DropNoBackend)
				expect(t, r.out, vip, 80, src, 1000)
				_, i, l4 := decode(t, r.out)
				got := l4.(*layers.TCP)
				if got.RST != (c.want != "") || got.ACK != (c.want == "RA") || got.SYN || got.FIN ||
					got.Seq != c.seq || got.Ack != c.ack || i.Length != 40 {
					t.Errorf("answer %+v", got)
				}
			})
		}
		t.Run("reset from "+src, func(t *testing.T) {
			h.t = t
			h.dropped(send(segment(src, vip, 1000, 80, "R")), maps.DropNoBackend)
		})
		for _, size := range []int{0, 4, 100, 1000} {
			t.Run("datagram from "+src, func(t *testing.T) {
				h.t = t
				r := send(datagram(src, vip, 1000, 80, size))
				h.answered(r, maps.DropNoBackend)
				_, i, _ := decode(t, r.out)
				icmp := r.out[34:]
				if i.SrcIP.String() != vip || i.DstIP.String() != src || icmp[0] != 3 || icmp[1] != 3 ||
					netip.AddrFrom4([4]byte(icmp[8+16:])).String() != vip || binary.BigEndian.Uint16(icmp[8+20+2:]) != 80 {
					t.Errorf("answer %v %x", i, icmp)
				}
			})
		}
	}
}

// The host's own processes reach services, here and on other nodes; what the
// host merely forwards does not.
func TestHostToService(t *testing.T) {
	h := newHarness(t)
	h.service(podB)
	r := h.passed(h.fromHost(h.plain(segment(self, vip, 1000, 80, "S"))))
	expect(t, r.out, self, 1000, podB.ip, 8080)
	r = h.passed(h.fromPod(podB, h.sent(podB, segment(podB.ip, self, 8080, 1000, "SA"))))
	expect(t, r.out, vip, 80, self, 1000)
	r = h.passed(h.fromHost(h.plain(segment(self, vip, 1000, 80, "A"))))
	expect(t, r.out, self, 1000, podB.ip, 8080)
	if all, open := h.flows(); len(all) != 2 || open != 0 {
		t.Errorf("%d flows, %d half-open, want 2 and 0", len(all), open)
	}
	h.service(podR)
	r = h.passed(h.fromHost(h.plain(segment(self, vip, 1001, 80, "S"))))
	expect(t, unwrapped(r.out), self, 1001, podR.ip, 8080)
	r = h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, self, 8080, 1001, "SA"))))
	expect(t, r.out, vip, 80, self, 1001)
	h.dropped(h.fromHost(h.plain(segment("203.0.113.9", vip, 1001, 80, "S"))), maps.DropNoTunnelEndpoint)
	// The flow of a backend that went is given another one.
	r = h.passed(h.fromHost(h.plain(segment(self, vip, 1000, 80, "A"))))
	expect(t, unwrapped(r.out), self, 1000, podR.ip, 8080)
}
