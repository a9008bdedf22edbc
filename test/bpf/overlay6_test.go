// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

func TestTunnelToPod6(t *testing.T) { makes(t, tunnelToPod6) }

func tunnelToPod6(t *testing.T, h *harness) {
	t.Helper()
	inner := segment(podR6.ip, podA6.ip, 1000, 80, "S")
	r := h.passed(h.fromOverlay(h.tunnelled(node2, idR, inner)))
	eth, _, _ := decode6(t, r.out)
	a := h.eps[podA.name]
	if !bytes.Equal(eth.DstMAC, a.PodMAC[:]) || !bytes.Equal(r.out[14:], h.plain(inner)[14:]) {
		t.Errorf("delivered %x", r.out)
	}
	r = h.passed(h.fromOverlay(h.tunnelled(node2, identity.RemoteNode, segment(node26, self6, 5, 6, "S"))))
	expect(t, r.out, node26, 5, self6, 6)
	// The answer goes back, and is known again.
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA6.ip, podR6.ip, 80, 1000, "SA"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 1000, 80, "A"))))
	if all, open := h.flows6(); len(all) != 2 || open != 1 {
		t.Errorf("%d flows, %d half-open, want 2 and 1", len(all), open)
	}
}

func TestTunnelSenderChecks6(t *testing.T) { makes(t, tunnelSenderChecks6) }

func tunnelSenderChecks6(t *testing.T, h *harness) {
	t.Helper()
	for name, c := range map[string]struct {
		node   string
		id     identity.Number
		src    string
		dst    string
		reason datapath.DropReason
	}{
		"not a node":                     {"192.0.2.99", idR, podR6.ip, podA6.ip, maps.DropUnknownSender},
		"number of another cluster":      {node2, idX, podR6.ip, podA6.ip, maps.DropSpoofedIdentity},
		"host":                           {node2, identity.Host, podR6.ip, podA6.ip, maps.DropSpoofedIdentity},
		"world":                          {node2, identity.World, podR6.ip, podA6.ip, maps.DropSpoofedIdentity},
		"number 0":                       {node2, 0, podR6.ip, podA6.ip, maps.DropSpoofedIdentity},
		"remote-node from a pod":         {node2, identity.RemoteNode, podR6.ip, podA6.ip, maps.DropSpoofedSource},
		"remote-node from another node":  {node2, identity.RemoteNode, node36, podA6.ip, maps.DropSpoofedSource},
		"workload from a node's address": {node2, idR, node26, podA6.ip, maps.DropSpoofedSource},
		"address of another node":        {node2, idR, podX6.ip, podA6.ip, maps.DropSpoofedSource},
		"address of a pod here":          {node2, idR, podB6.ip, podA6.ip, maps.DropSpoofedSource},
		"address of nobody":              {node2, idR, outside6, podA6.ip, maps.DropSpoofedSource},
		"an address of a link":           {node2, idR, "fe80::5", podA6.ip, maps.DropSpoofedSource},
		"no address":                     {node2, idR, "::", podA6.ip, maps.DropSpoofedSource},
		"unknown number":                 {node2, idR + 50, podR6.ip, podA6.ip, maps.DropIdentityUnknown},
		"destination elsewhere":          {node2, idR, podR6.ip, podX6.ip, maps.DropUnknownDestination},
		"destination of a link":          {node2, idR, podR6.ip, "fe80::1", maps.DropUnknownDestination},
		"a group":                        {node2, idR, podR6.ip, "ff02::1", maps.DropMulticast},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			e := h.dropped(h.fromOverlay(h.tunnelled(c.node, c.id, segment(c.src, c.dst, 1000, 80, "S"))), c.reason)
			if e.Outer.String() != c.node || e.SourceID != c.id || c.src != "::" && e.Source.Addr().String() != c.src {
				t.Errorf("event %+v", e)
			}
			if want := map[string]identity.Number{podA6.ip: idA}[c.dst]; e.DestID != want {
				t.Errorf("the destination is told as %d, want %d", e.DestID, want)
			}
		})
	}
	h.t = t
	if e := h.dropped(h.fromOverlay(h.tunnelled("192.0.2.99", idR, segment(podR6.ip, self6, 1000, 80, "S"))), maps.DropUnknownSender); e.DestID != identity.Host {
		t.Errorf("this node is told as %d", e.DestID)
	}
	// Not known by address yet, but inside the sender's pod CIDR.
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment("fd00:10:2::77", podA6.ip, 1000, 80, "S"))))
	// A mapped address is not the IPv4 address that it stands for.
	in := h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 1001, 80, "S"))
	copy(in[64+8:], net.ParseIP(podR.ip).To16())
	h.dropped(h.fromOverlay(in), maps.DropMalformed)
	// An IPv6 packet that ends early.
	whole := h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 1002, 80, "S"))
	for _, n := range []int{64, 64 + 20, 64 + 39, 64 + 40, 64 + 59} {
		if n < 64+40 && h.device != nil {
			continue // the kernel tests no program with half of an IP header
		}
		h.dropped(h.fromOverlay(whole[:n]), maps.DropMalformed)
	}
}

func TestTunnelSenderOfEstablishedFlow6(t *testing.T) { makes(t, tunnelSenderOfEstablishedFlow6) }

func tunnelSenderOfEstablishedFlow6(t *testing.T, h *harness) {
	t.Helper()
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 1000, 80, "S"))))
	h.passed(h.from6(segment(podA6.ip, podR6.ip, 80, 1000, "SA")))
	ack := segment(podR6.ip, podA6.ip, 1000, 80, "A")
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, ack)))
	h.dropped(h.fromOverlay(h.tunnelled("192.0.2.99", idR, ack)), maps.DropUnknownSender)
	h.dropped(h.fromOverlay(h.tunnelled(node3, idR, ack)), maps.DropSpoofedIdentity)
	h.dropped(h.fromOverlay(h.tunnelled(node2, identity.Host, ack)), maps.DropSpoofedIdentity)
	h.dropped(h.fromOverlay(h.plain(ack)), maps.DropSpoofedSource)
}

func TestUntunnelledIsWorld6(t *testing.T) { makes(t, untunnelledIsWorld6) }

func untunnelledIsWorld6(t *testing.T, h *harness) {
	t.Helper()
	in := h.plain(segment(outside6, self6, 1000, 22, "S"))
	if r := h.fromOverlay(in); r.act != actOK || !bytes.Equal(r.out, in) {
		t.Errorf("packet to the host: verdict %d", r.act)
	}
	if r := h.fromOverlay(h.plain(solicit("fe80::7", "ff02::1:ff00:1", "fe80::1", nil))); r.act != actOK {
		t.Errorf("the host's own neighbour discovery: verdict %d", r.act)
	}
	h.passed(h.fromOverlay(h.plain(segment(outside6, podA6.ip, 1000, 80, "S"))))
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Identity: idR}: {}}})
	e := h.dropped(h.fromOverlay(h.plain(segment(podR6.ip, podA6.ip, 2000, 80, "S"))), maps.DropPolicyDenied)
	if e.SourceID != identity.World || e.Direction != datapath.Ingress || e.RuleSet != 5 {
		t.Errorf("event %+v", e)
	}
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 2000, 80, "S"))))
	if r := h.from6(segment(podA6.ip, outside6, 3000, 80, "S")); r.act != actOK {
		t.Fatalf("to the world: verdict %d", r.act)
	}
	h.passed(h.fromOverlay(h.plain(segment(outside6, podA6.ip, 80, 3000, "SA"))))
	for _, src := range []string{podB6.ip, self6, "fe80::7", "::"} {
		h.dropped(h.fromOverlay(h.plain(segment(src, podA6.ip, 80, 3000, "SA"))), maps.DropSpoofedSource)
	}
}

func TestHostPaths6(t *testing.T) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true})
	h.passed(h.fromHost(h.plain(segment(self6, podA6.ip, 1000, 80, "S"))))
	h.passed(h.from6(segment(podA6.ip, self6, 80, 1000, "SA")))
	h.dropped(h.from6(segment(podA6.ip, self6, 1001, 80, "S")), maps.DropPolicyDenied)
	r := h.passed(h.fromHost(h.plain(segment(self6, podR6.ip, 1000, 80, "S"))))
	if vni := r.out[14+20+8+4:][:3]; !bytes.Equal(vni, []byte{0, 0, 6}) {
		t.Errorf("VNI %x, want remote-node", vni)
	}
	e := h.dropped(h.fromHost(h.plain(segment(outside6, podA6.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
	if e.SourceID != identity.World {
		t.Errorf("event %+v", e)
	}
	h.dropped(h.fromHost(h.plain(segment(outside6, podR6.ip, 1000, 80, "S"))), maps.DropSpoofedSource)
	h.dropped(h.fromHost(h.plain(segment(self6, "fe80::5", 1000, 80, "S"))), maps.DropUnknownDestination)
}

// A node without an address in the mesh: nobody is taken for its host.
func TestNoNodeAddress6(t *testing.T) {
	h := newHarnessWith(t, loader.Config{ClusterBits: identity.DefaultClusterBits, MapSizes: loader.SmallMaps()})
	h.tables.IPCache.Delete(key(self6 + "/128"))
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true})
	h.dropped(h.fromHost(h.plain(segment("::", podA6.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
}

// ICMPv6 errors pass with their flow and no other way, and speak of what their
// receiver has sent.
func TestErrorsOfFlows6(t *testing.T) {
	h := newHarness(t)
	h.serve(vip6, 80, tcp, podB6)
	h.sync()
	failed := func(src, dst string, kind uint8, about []gopacket.SerializableLayer) []gopacket.SerializableLayer {
		quoted := build(t, about...)
		return message6(src, dst, kind, 0, append(make([]byte, 4), quoted[:min(len(quoted), 48)]...))
	}
	tells := func(t *testing.T, b []byte, src, dst, quotedSrc string, sport uint16, quotedDst string, dport uint16) {
		t.Helper()
		_, i, _ := decode6(t, b)
		q := b[14+40+8:]
		p := func(i int) uint16 { return uint16(q[i])<<8 | uint16(q[i+1]) }
		if i.SrcIP.String() != src || i.DstIP.String() != dst || net.IP(q[8:24]).String() != quotedSrc ||
			net.IP(q[24:40]).String() != quotedDst || p(40) != sport || p(42) != dport {
			t.Errorf("%s tells %s of %v:%d → %v:%d, want %s tells %s of %s:%d → %s:%d", i.SrcIP, i.DstIP,
				net.IP(q[8:24]), p(40), net.IP(q[24:40]), p(42), src, dst, quotedSrc, sport, quotedDst, dport)
		}
	}
	h.passed(h.from6(segment(podA6.ip, vip6, 1000, 80, "S")))
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB6.ip, podA6.ip, 8080, 1000, "SA"))))
	fromB := func(ls []gopacket.SerializableLayer) result { return h.fromPod(podB, h.sent(podB, ls)) }
	for kind := uint8(1); kind <= 4; kind++ {
		r := h.passed(fromB(failed(podB6.ip, podA6.ip, kind, segment(podA6.ip, podB6.ip, 1000, 8080, "A"))))
		tells(t, r.out, vip6, podA6.ip, podA6.ip, 1000, vip6, 80)
		r = h.passed(h.from6(failed(podA6.ip, vip6, kind, segment(vip6, podA6.ip, 80, 1000, "A"))))
		tells(t, r.out, podA6.ip, podB6.ip, podB6.ip, 8080, podA6.ip, 1000)
	}
	t.Run("about a packet with extension headers", func(t *testing.T) {
		h.t = t
		about := build(t, behind(t, segment(podA6.ip, podB6.ip, 1000, 8080, "A"), extension{60, make([]byte, 6)})...)
		r := h.passed(fromB(message6(podB6.ip, podA6.ip, 3, 0, append(make([]byte, 4), about...))))
		if q := r.out[14+40+8:]; net.IP(q[24:40]).String() != vip6 || q[48+3] != 80 {
			t.Errorf("quoted %x", q)
		}
		decode6(t, r.out)
	})
	for name, ls := range map[string][]gopacket.SerializableLayer{
		"about no flow":       failed(podB6.ip, podA6.ip, 1, segment(podA6.ip, podB6.ip, 1001, 8080, "A")),
		"to somebody else":    failed(podB6.ip, podR6.ip, 1, segment(podA6.ip, podB6.ip, 1000, 8080, "A")),
		"too short to say":    message6(podB6.ip, podA6.ip, 1, 0, append(make([]byte, 4), build(t, segment(podA6.ip, podB6.ip, 1000, 8080, "A")...)[:44]...)),
		"quotes IPv4":         message6(podB6.ip, podA6.ip, 1, 0, append(make([]byte, 4), build(t, segment(podA.ip, podB.ip, 1000, 8080, "A")...)...)),
		"quotes a route":      message6(podB6.ip, podA6.ip, 1, 0, append(make([]byte, 4), build(t, behind(t, segment(podA6.ip, podB6.ip, 1000, 8080, "A"), extension{43, make([]byte, 6)})...)...)),
		"quotes a later part": message6(podB6.ip, podA6.ip, 1, 0, append(make([]byte, 4), build(t, behind(t, segment(podA6.ip, podB6.ip, 1000, 8080, "A"), extension{44, []byte{0, 8, 0, 0, 0, 1}})...)...)),
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.dropped(fromB(ls), maps.DropUnrelatedICMP)
		})
	}
	t.Run("not in spite of policy", func(t *testing.T) {
		h.t = t
		h.rules(podB, datapath.RuleSet{ID: 7, Ingress: true, Egress: true})
		h.dropped(fromB(failed(podB6.ip, podA6.ip, 2, segment(podA6.ip, podB6.ip, 1000, 8080, "A"))), maps.DropPolicyDenied)
		h.rules(podB, datapath.RuleSet{ID: 7})
		h.passed(fromB(failed(podB6.ip, podA6.ip, 2, segment(podA6.ip, podB6.ip, 1000, 8080, "A"))))
	})
	t.Run("from the tunnel", func(t *testing.T) {
		h.t = t
		h.serve(vip6, 81, tcp, podR6)
		h.sync()
		h.passed(h.from6(segment(podA6.ip, vip6, 1000, 81, "S")))
		tooBig := failed(podR6.ip, podA6.ip, 2, segment(podA6.ip, podR6.ip, 1000, 8080, "A"))
		r := h.passed(h.fromOverlay(h.tunnelled(node2, idR, tooBig)))
		tells(t, r.out, vip6, podA6.ip, podA6.ip, 1000, vip6, 81)
		h.dropped(h.fromOverlay(h.tunnelled(node3, idX, tooBig)), maps.DropSpoofedSource)
		h.dropped(h.fromOverlay(h.tunnelled("192.0.2.99", idR, tooBig)), maps.DropUnknownSender)
		h.dropped(h.fromOverlay(h.plain(tooBig)), maps.DropUnrelatedICMP)
		// A router on the way to the outside.
		if r := h.from6(segment(podA6.ip, outside6, 1000, 80, "S")); r.act != actOK {
			t.Fatalf("verdict %d", r.act)
		}
		h.passed(h.fromOverlay(h.plain(failed("2001:db8:77::1", podA6.ip, 2, segment(podA6.ip, outside6, 1000, 80, "A")))))
		h.dropped(h.fromOverlay(h.tunnelled(node2, idR, failed(podR6.ip, podA6.ip, 2, segment(podA6.ip, outside6, 1000, 80, "A")))), maps.DropUnrelatedICMP)
	})
}

// fragment6 is the part of a datagram's payload from off to end.
func fragment6(t testing.TB, ls []gopacket.SerializableLayer, id byte, off, end int) []gopacket.SerializableLayer {
	t.Helper()
	payload := build(t, ls...)[40:]
	i := *ls[0].(*layers.IPv6)
	word := off
	if end < len(payload) {
		word |= 1
	}
	head := []byte{byte(i.NextHeader), 0, byte(word >> 8), byte(word), 0, 0, 0, id}
	i.NextHeader = layers.IPProtocolIPv6Fragment
	return []gopacket.SerializableLayer{&i, gopacket.Payload(append(head, payload[off:min(end, len(payload))]...))}
}

// joined6 puts fragments together again.
func joined6(t *testing.T, frags ...[]byte) []byte {
	t.Helper()
	out := bytes.Clone(frags[0][:54])
	out[14+6] = frags[0][54]
	for _, f := range frags {
		if off := (int(f[56])<<8 | int(f[57])) &^ 7; off != len(out)-54 {
			t.Fatalf("a fragment at %d, want %d", off, len(out)-54)
		}
		out = append(out, f[62:]...)
	}
	out[18], out[19] = byte((len(out)-54)>>8), byte(len(out)-54)
	return out
}

func TestFragments6(t *testing.T) {
	h := newHarness(t)
	udpService := datapath.FrontendKey{Addr: addr(vip6), Port: 53, Protocol: udp}
	h.tables.Frontends.Set(udpService, datapath.Frontend{Service: 2, Backends: []datapath.Backend{{Addr: addr(podB6.ip), Port: 5353}}})
	h.rules(podB, datapath.RuleSet{ID: 7, Ingress: true, Entries: entries{
		{Direction: datapath.Ingress, Protocol: udp, Port: 5353}: {}, {Direction: datapath.Ingress, Protocol: 58, Port: 256 + 128}: {},
	}})
	for name, send := range map[string]struct {
		src  string
		send func([]gopacket.SerializableLayer) result
	}{
		"from a pod":    {podA6.ip, h.from6},
		"from a tunnel": {podR6.ip, func(ls []gopacket.SerializableLayer) result { return h.fromOverlay(h.tunnelled(node2, idR, ls)) }},
		"from outside":  {outside6, func(ls []gopacket.SerializableLayer) result { return h.fromOverlay(h.plain(ls)) }},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			d := datagram(send.src, podB6.ip, 1234, 5353, 3000)
			f1 := h.passed(send.send(fragment6(t, d, 1, 0, 1400)))
			f2 := h.passed(send.send(fragment6(t, d, 1, 1400, 2800)))
			f3 := h.passed(send.send(fragment6(t, d, 1, 2800, whole)))
			expect(t, joined6(t, f1.out, f2.out, f3.out), send.src, 1234, podB6.ip, 5353)
			h.passed(send.send(fragment6(t, d, 1, 2800, whole)))
			// A later one need not tell what the datagram carries.
			lies := fragment6(t, d, 1, 1400, 2800)
			lies[1].(gopacket.Payload)[0] = tcp
			h.passed(send.send(lies))
			h.dropped(send.send(fragment6(t, d, 2, 1400, 2800)), maps.DropEarlyFragment)
			h.dropped(send.send(fragment6(t, d, 1, 8, 1400)), maps.DropOverlap)
			h.dropped(send.send(fragment6(t, d, 1, 1392, 2800)), maps.DropOverlap)
			bad := datagram(send.src, podB6.ip, 1234, 5354, 3000)
			h.dropped(send.send(fragment6(t, bad, 3, 0, 1400)), maps.DropPolicyDenied)
			h.dropped(send.send(fragment6(t, bad, 3, 1400, 2800)), maps.DropPolicyDenied)
			seg := segment(send.src, podB6.ip, 1000, 5353, "S")
			h.dropped(send.send(fragment6(t, seg, 4, 0, 8)), maps.DropTinyFragment)
			h.dropped(send.send(fragment6(t, seg, 4, 0, 16)), maps.DropTinyFragment)
			h.dropped(send.send(fragment6(t, seg, 4, 8, whole)), maps.DropEarlyFragment)
			odd := fragment6(t, d, 5, 0, 1400)
			odd[1] = odd[1].(gopacket.Payload)[:1399]
			h.dropped(send.send(odd), maps.DropMalformed)
			huge := fragment6(t, d, 1, 1400, 2800)
			huge[1].(gopacket.Payload)[2], huge[1].(gopacket.Payload)[3] = 0xFF, 0xF9
			h.dropped(send.send(huge), maps.DropMalformed)
			ping := message6(send.src, podB6.ip, 128, 0, make([]byte, 2000))
			if send.src != outside6 {
				h.passed(send.send(fragment6(t, ping, 6, 0, 1400)))
				h.passed(send.send(fragment6(t, ping, 6, 1400, whole)))
			}
			failure := message6(send.src, podB6.ip, 1, 0, make([]byte, 2000))
			h.dropped(send.send(fragment6(t, failure, 7, 0, 1400)), maps.DropMalformed)
		})
	}
	t.Run("to a service", func(t *testing.T) {
		h.t = t
		d := datagram(podA6.ip, vip6, 1001, 53, 3000)
		f1 := h.passed(h.from6(fragment6(t, d, 11, 0, 1400)))
		f2 := h.passed(h.from6(fragment6(t, d, 11, 1400, 2800)))
		f3 := h.passed(h.from6(fragment6(t, d, 11, 2800, whole)))
		expect(t, joined6(t, f1.out, f2.out, f3.out), podA6.ip, 1001, podB6.ip, 5353)
		d = datagram(podB6.ip, podA6.ip, 5353, 1001, 3000)
		f1 = h.passed(h.fromPod(podB, h.sent(podB, fragment6(t, d, 12, 0, 1400))))
		f2 = h.passed(h.fromPod(podB, h.sent(podB, fragment6(t, d, 12, 1400, whole))))
		expect(t, joined6(t, f1.out, f2.out), vip6, 53, podA6.ip, 1001)
	})
	t.Run("to a remote pod", func(t *testing.T) {
		h.t = t
		d := datagram(podA6.ip, podR6.ip, 1002, 53, 2000)
		f1 := h.passed(h.from6(fragment6(t, d, 13, 0, 1392)))
		f2 := h.passed(h.from6(fragment6(t, d, 13, 1392, whole)))
		expect(t, joined6(t, unwrapped(f1.out), unwrapped(f2.out)), podA6.ip, 1002, podR6.ip, 53)
	})
	t.Run("of others", func(t *testing.T) {
		h.t = t
		d := datagram(podA6.ip, podB6.ip, 1000, 5353, 3000)
		h.dropped(h.fromPod(podB, h.sent(podB, fragment6(t, d, 21, 0, 1400))), maps.DropSpoofedSource)
		h.dropped(h.from6(fragment6(t, d, 21, 1400, 2800)), maps.DropEarlyFragment)
	})
}
