// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// unreachable is an ICMP error that src sends to dst about a packet.
func unreachable(t *testing.T, src, dst string, code uint8, about []gopacket.SerializableLayer) []gopacket.SerializableLayer {
	t.Helper()
	return []gopacket.SerializableLayer{
		ip(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, code), Seq: 1400}, gopacket.Payload(build(t, about...)[:28]),
	}
}

// tells checks an ICMP error and whom it quotes.
func tells(t *testing.T, b []byte, src, dst, quotedSrc string, sport uint16, quotedDst string, dport uint16) {
	t.Helper()
	_, i, _ := decode(t, b)
	q := b[14+20+8:]
	p := func(i int) uint16 { return uint16(q[i])<<8 | uint16(q[i+1]) }
	if i.SrcIP.String() != src || i.DstIP.String() != dst ||
		netip.AddrFrom4([4]byte(q[12:16])).String() != quotedSrc || netip.AddrFrom4([4]byte(q[16:20])).String() != quotedDst ||
		p(20) != sport || p(22) != dport {
		t.Errorf("%s tells %s of %v:%d → %v:%d, want %s tells %s of %s:%d → %s:%d", i.SrcIP, i.DstIP,
			netip.AddrFrom4([4]byte(q[12:16])), p(20), netip.AddrFrom4([4]byte(q[16:20])), p(22), src, dst, quotedSrc, sport, quotedDst, dport)
	}
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(p(i))
	}
	if sum&0xFFFF+sum>>16 != 0xFFFF {
		t.Error("the quoted header's checksum is wrong")
	}
}

// ICMP errors pass with their flow and no other way, and speak of what their
// receiver has sent.
func TestErrorsOfFlows(t *testing.T) {
	h := newHarness(t)
	h.service(podB)
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "S"))))
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB.ip, podA.ip, 8080, 1000, "SA"))))
	t.Run("backend about a request", func(t *testing.T) {
		h.t = t
		r := h.passed(h.fromPod(podB, h.sent(podB, unreachable(t, podB.ip, podA.ip, 3, segment(podA.ip, podB.ip, 1000, 8080, "A")))))
		tells(t, r.out, vip, podA.ip, podA.ip, 1000, vip, 80)
	})
	t.Run("client about an answer", func(t *testing.T) {
		h.t = t
		r := h.passed(h.fromPod(podA, h.sent(podA, unreachable(t, podA.ip, vip, 3, segment(vip, podA.ip, 80, 1000, "A")))))
		tells(t, r.out, podA.ip, podB.ip, podB.ip, 8080, podA.ip, 1000)
	})
	t.Run("about no flow", func(t *testing.T) {
		h.t = t
		h.dropped(h.fromPod(podB, h.sent(podB, unreachable(t, podB.ip, podA.ip, 3, segment(podA.ip, podB.ip, 1001, 8080, "A")))), maps.DropUnrelatedICMP)
	})
	t.Run("to somebody else", func(t *testing.T) {
		h.t = t
		h.dropped(h.fromPod(podB, h.sent(podB, unreachable(t, podB.ip, podR.ip, 3, segment(podA.ip, podB.ip, 1000, 8080, "A")))), maps.DropUnrelatedICMP)
	})
	t.Run("too short to say", func(t *testing.T) {
		h.t = t
		ls := unreachable(t, podB.ip, podA.ip, 3, segment(podA.ip, podB.ip, 1000, 8080, "A"))
		ls[2] = ls[2].(gopacket.Payload)[:20]
		h.dropped(h.fromPod(podB, h.sent(podB, ls)), maps.DropUnrelatedICMP)
	})
	t.Run("not in spite of policy", func(t *testing.T) {
		h.t = t
		h.rules(podB, datapath.RuleSet{ID: 7, Ingress: true, Egress: true})
		about := unreachable(t, podB.ip, podA.ip, 4, segment(podA.ip, podB.ip, 1000, 8080, "A"))
		h.dropped(h.fromPod(podB, h.sent(podB, about)), maps.DropPolicyDenied)
		h.rules(podB, datapath.RuleSet{ID: 7})
		h.passed(h.fromPod(podB, h.sent(podB, about)))
	})
}
