// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

func (h *harness) service(backends ...host) {
	h.t.Helper()
	f := datapath.Frontend{Service: 1}
	for _, b := range backends {
		f.Backends = append(f.Backends, datapath.Backend{Addr: netip.MustParseAddr(b.ip), Port: 8080})
	}
	h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: tcp}, f)
	h.sync()
}

// expect checks addresses and ports of a packet.
func expect(t *testing.T, b []byte, src string, sport uint16, dst string, dport uint16) {
	t.Helper()
	var from, to net.IP
	var l4 gopacket.TransportLayer
	if isIPv6(src) {
		_, i, l := decode6(t, b)
		from, to, l4 = i.SrcIP, i.DstIP, l
	} else {
		_, i, l := decode(t, b)
		from, to, l4 = i.SrcIP, i.DstIP, l
	}
	s, d := ports(l4)
	if from.String() != src || to.String() != dst || s != sport || d != dport {
		t.Errorf("got %s:%d → %s:%d, want %s:%d → %s:%d", from, s, to, d, src, sport, dst, dport)
	}
}

// unwrapped is the inner packet of a tunnelled one, behind some Ethernet header.
func unwrapped(b []byte) []byte { return append(append([]byte{}, b[50:64]...), b[64:]...) }

func TestServiceOnThisNode(t *testing.T) {
	h := newHarness(t)
	h.service(podB)
	r := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "S"))))
	expect(t, r.out, podA.ip, 1000, podB.ip, 8080)
	r = h.passed(h.fromPod(podB, h.sent(podB, segment(podB.ip, podA.ip, 8080, 1000, "SA"))))
	expect(t, r.out, vip, 80, podA.ip, 1000)
	r = h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "A"))))
	expect(t, r.out, podA.ip, 1000, podB.ip, 8080)
	if all, open := h.flows(); len(all) != 2 || open != 0 {
		t.Errorf("%d flows, %d half-open, want 2 and 0", len(all), open)
	}
}

func TestServiceOnAnotherNode(t *testing.T) {
	h := newHarness(t)
	h.service(podR)
	r := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "S"))))
	expect(t, unwrapped(r.out), podA.ip, 1000, podR.ip, 8080)
	r = h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 8080, 1000, "SA"))))
	expect(t, r.out, vip, 80, podA.ip, 1000)
	// The error of a router behind the backend's node speaks of the service.
	quoted := build(t, segment(podA.ip, podR.ip, 1000, 8080, "A")...)[:28]
	icmp := []gopacket.SerializableLayer{
		ip(podR.ip, podA.ip, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1400}, gopacket.Payload(quoted),
	}
	r = h.passed(h.fromOverlay(h.tunnelled(node2, idR, icmp)))
	_, i, _ := decode(t, r.out)
	inner := r.out[14+20+8:]
	if i.SrcIP.String() != vip || netip.AddrFrom4([4]byte(inner[16:20])).String() != vip || inner[23] != 80 {
		t.Errorf("ICMP error %x", r.out)
	}
	// Policy is that of the backend.
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true})
	e := h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "A"))), maps.DropPolicyDenied)
	if e.DestID != idR {
		t.Errorf("event %+v", e)
	}
}

func TestServiceSpreadsAndStays(t *testing.T) {
	h := newHarness(t)
	h.service(podB, podR)
	hit := map[int]int{}
	for port := range uint16(40) {
		first := len(h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000+port, 80, "S")))).out)
		again := len(h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000+port, 80, "S")))).out)
		if first != again {
			t.Fatal("a flow changed its backend")
		}
		hit[first]++
	}
	if len(hit) != 2 {
		t.Errorf("40 flows reached %d backends, want 2", len(hit))
	}
	// A backend that goes loses its flows at once.
	h.service(podB)
	for port := range uint16(40) {
		r := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000+port, 80, "S"))))
		expect(t, r.out, podA.ip, 1000+port, podB.ip, 8080)
	}
	h.service()
	h.answered(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 5000, 80, "S"))), maps.DropNoBackend)
}

func TestServiceHairpin(t *testing.T) {
	h := newHarness(t)
	h.service(podA)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true})
	r := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "S"))))
	expect(t, r.out, "169.254.42.1", 1000, podA.ip, 8080)
	r = h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, "169.254.42.1", 8080, 1000, "SA"))))
	expect(t, r.out, vip, 80, podA.ip, 1000)
	r = h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "A"))))
	expect(t, r.out, "169.254.42.1", 1000, podA.ip, 8080)
}

// A SYN that was sent before its address became a service is not lost to it.
func TestAddressBecomesService(t *testing.T) {
	h := newHarness(t)
	syn := h.sent(podA, segment(podA.ip, vip, 1000, 80, "S"))
	if r := h.fromPod(podA, syn); r.act != actOK {
		t.Fatalf("verdict %d", r.act)
	}
	h.service(podB)
	expect(t, h.passed(h.fromPod(podA, syn)).out, podA.ip, 1000, podB.ip, 8080)
}
