// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// told is what an ICMP error says: who tells whom of which packet, and what fits.
type told struct {
	src, dst string
	of, to   netip.AddrPort
	mtu      uint32
}

// readError reads the ICMP error in a frame, whose checksums have to be right.
func readError(t testing.TB, frame []byte) (e told) {
	t.Helper()
	ends := func(q []byte, size, l4 int) (netip.AddrPort, netip.AddrPort) {
		a, _ := netip.AddrFromSlice(q[l4-2*size : l4-size])
		b, _ := netip.AddrFromSlice(q[l4-size : l4])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(q[l4:])), netip.AddrPortFrom(b, binary.BigEndian.Uint16(q[l4+2:]))
	}
	icmp := behindIP(frame)
	if binary.BigEndian.Uint16(frame[12:]) == 0x86DD {
		_, i, _ := decode6(t, frame)
		if icmp[0] != 2 || icmp[1] != 0 {
			t.Errorf("ICMPv6 type %d, code %d, want packet too big", icmp[0], icmp[1])
		}
		e.of, e.to = ends(icmp[8:], 16, 40)
		e.src, e.dst, e.mtu = i.SrcIP.String(), i.DstIP.String(), binary.BigEndian.Uint32(icmp[4:])
		return e
	}
	_, i, _ := decode(t, frame)
	if icmp[0] != 3 || icmp[1] != 4 {
		t.Errorf("ICMP type %d, code %d, want fragmentation needed", icmp[0], icmp[1])
	}
	e.of, e.to = ends(icmp[8:], 4, 20)
	e.src, e.dst, e.mtu = i.SrcIP.String(), i.DstIP.String(), uint32(binary.BigEndian.Uint16(icmp[6:]))
	return e
}

// Who sends to a service hears of too big packets as of ones to the service, whoever
// tells: this node, whose tunnel has no room; somebody behind the tunnel; or a backend
// on this node. Who serves hears of its own answers.
func TestTooBigThroughService(t *testing.T) {
	h := newHarness(t)
	for _, f := range families() {
		h.serve(f.vip, 80, udp, f.r)
		h.serve(f.vip, 81, udp, f.b)
		h.sync()
		room, fits := 1450-28, uint32(1450)
		if isIPv6(f.a.ip) {
			room = 1450 - 48
		}
		const told4 = 1400 // by failures with IPv4; 1280 with IPv6
		end := func(ip string, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr(ip), port) }
		by := uint32(told4)
		if isIPv6(f.a.ip) {
			by = 1280
		}
		client, service := end(f.a.ip, 1000), end(f.vip, 80)
		big := func(src, dst string, about []gopacket.SerializableLayer) []gopacket.SerializableLayer {
			return failures(t, src, dst, about)["too big"]
		}
		same := func(t *testing.T, r result, want told) {
			t.Helper()
			if got := readError(t, h.passed(r).out); got != want {
				t.Errorf("told %+v, want %+v", got, want)
			}
			h.events()
		}
		t.Run(f.prefix+"this node's tunnel", func(t *testing.T) {
			h.t = t
			h.passed(h.fromPod(f.a, h.sent(f.a, datagram(f.a.ip, f.vip, 1000, 80, room))))
			h.settle()
			r := h.fromPod(f.a, h.sent(f.a, datagram(f.a.ip, f.vip, 1000, 80, room+1)))
			if n := h.moved(metric{maps.DropPacketTooBig, datapath.Egress, "from_pod"}); n != 1 {
				t.Errorf("counter moved by %d", n)
			}
			same(t, r, told{f.self, f.a.ip, client, service, fits})
		})
		t.Run(f.prefix+"behind the tunnel", func(t *testing.T) {
			h.t = t
			about := datagram(f.a.ip, f.r.ip, 1000, 8080, 8)
			same(t, h.fromOverlay(h.tunnelled(node2, idR, big(f.r.ip, f.a.ip, about))), told{f.vip, f.a.ip, client, service, by})
			h.dropped(h.fromOverlay(h.tunnelled(node2, idR, big(f.r.ip, f.a.ip, datagram(f.a.ip, f.r.ip, 1001, 8080, 8)))), maps.DropUnrelatedICMP)
		})
		t.Run(f.prefix+"local backend", func(t *testing.T) {
			h.t = t
			h.passed(h.fromPod(f.a, h.sent(f.a, datagram(f.a.ip, f.vip, 1000, 81, 8))))
			r := h.fromPod(f.b, h.sent(f.b, big(f.b.ip, f.a.ip, datagram(f.a.ip, f.b.ip, 1000, 8080, 8))))
			same(t, r, told{f.vip, f.a.ip, client, end(f.vip, 81), by})
		})
		t.Run(f.prefix+"client about the answer", func(t *testing.T) {
			h.t = t
			h.passed(h.fromPod(f.b, h.sent(f.b, datagram(f.b.ip, f.a.ip, 8080, 1000, 8))))
			r := h.fromPod(f.a, h.sent(f.a, big(f.a.ip, f.vip, datagram(f.vip, f.a.ip, 81, 1000, 8))))
			same(t, r, told{f.a.ip, f.b.ip, end(f.b.ip, 8080), client, by})
		})
		t.Run(f.prefix+"the host's own", func(t *testing.T) {
			h.t = t
			r := h.fromHost(h.plain(datagram(f.self, f.vip, 1000, 80, room+1)))
			// It is itself who would tell, so that the service does.
			same(t, r, told{f.vip, f.self, end(f.self, 1000), service, fits})
		})
	}
}
