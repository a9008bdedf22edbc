// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// failure6 is an ICMPv6 error.
func failure6(t *testing.T, src, dst string, kind uint8, about []gopacket.SerializableLayer) []gopacket.SerializableLayer {
	t.Helper()
	quoted := build(t, about...)
	return message6(src, dst, kind, 0, append([]byte{0, 0, 5, 0}, quoted[:min(len(quoted), 48)]...))
}

// tells6 checks an ICMPv6 error and whom it quotes.
func tells6(t *testing.T, b []byte, src, dst, quotedSrc string, sport uint16, quotedDst string, dport uint16) {
	t.Helper()
	if _, i, _ := decode6(t, b); i.SrcIP.String() != src || i.DstIP.String() != dst {
		t.Errorf("%s tells %s, want %s tells %s", i.SrcIP, i.DstIP, src, dst)
	}
	quotes6(t, b, quotedSrc, sport, quotedDst, dport)
}

func TestMasquerade6(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	w := waysOut()["IPv6 "]
	t.Run("tcp", func(t *testing.T) {
		h.t = t
		port, _ := h.maskedSYN(w, 1234)
		if again, _ := h.maskedSYN(w, 1234); again != port {
			t.Errorf("port %d became %d", port, again)
		}
		if other, _ := h.maskedSYN(w, 1235); other == port {
			t.Errorf("two flows have port %d", port)
		}
		if !h.confirmed(t, w, 1234, port) {
			t.Error("the answer, or its confirmation, was lost")
		}
		// Nothing but addresses, ports, checksum and hop limit is another.
		in := h.sent(podA, segment(podA6.ip, outside6, 1234, 80, "A"))
		r := h.passed(h.fromPod(podA, in))
		want := h.sent(podA, segment(selfOut6, outside6, port, 80, "A"))
		want[14+7]--
		if !bytes.Equal(r.out[14:], want[14:]) {
			t.Errorf("sent\n%x, want\n%x", r.out[14:], want[14:])
		}
		r = h.passed(h.fromOverlay(h.plain(segment(outside6, selfOut6, 80, port, "A"))))
		if want := h.plain(segment(outside6, podA6.ip, 80, 1234, "A")); !bytes.Equal(r.out[14:], want[14:]) {
			t.Errorf("answered\n%x, want\n%x", r.out[14:], want[14:])
		}
		// Only the far end of the flow is answered for.
		for _, ls := range [][]gopacket.SerializableLayer{
			segment(outside6, selfOut6, 81, port, "A"), segment("2001:db8:9::a", selfOut6, 80, port, "A"),
			segment(outside6, selfOut6, 80, port^1, "A"), datagram(outside6, selfOut6, 80, port, 4),
			message6(outside6, selfOut6, layers.ICMPv6TypeNeighborSolicitation, 0, make([]byte, 20)),
		} {
			in := h.plain(ls)
			if r := h.fromOverlay(in); r.act != actOK || !bytes.Equal(r.out, in) {
				t.Errorf("the host's own packet: verdict %d", r.act)
			}
		}
		for kind := uint8(1); kind <= 4; kind++ {
			r = h.passed(h.fromOverlay(h.plain(failure6(t, "2001:db8:77::1", selfOut6, kind, segment(selfOut6, outside6, port, 80, "A")))))
			tells6(t, r.out, "2001:db8:77::1", podA6.ip, podA6.ip, 1234, outside6, 80)
		}
		for _, about := range [][]gopacket.SerializableLayer{segment(selfOut6, outside6, port^1, 80, "A"), segment(node26, outside6, port, 80, "A")} {
			if r := h.fromOverlay(h.plain(failure6(t, "2001:db8:77::1", selfOut6, 2, about))); r.act != actOK {
				t.Errorf("an error about the host's own flow: verdict %d", r.act)
			}
		}
	})
	t.Run("udp", func(t *testing.T) {
		h.t = t
		port := h.masked(h.from6(datagram(podA6.ip, outside6, 1234, 5300, 10)), outside6, 5300)
		r := h.passed(h.fromOverlay(h.plain(datagram(outside6, selfOut6, 5300, port, 10))))
		expect(t, r.out, outside6, 5300, podA6.ip, 1234)
	})
	t.Run("behind extension headers", func(t *testing.T) {
		h.t = t
		r := h.passed(h.from6(behind(t, datagram(podA6.ip, outside6, 1240, 5300, 10), extension{60, make([]byte, 6)})))
		_, i, l4 := decode6(t, r.out)
		if s, d := ports(l4); i.SrcIP.String() != selfOut6 || s == 1240 || d != 5300 {
			t.Errorf("sent %s:%d → %d", i.SrcIP, s, d)
		}
	})
	t.Run("udp fragments", func(t *testing.T) {
		h.t = t
		d := datagram(podA6.ip, outside6, 1236, 5300, 3000)
		f1 := h.passed(h.from6(fragment6(t, d, 1, 0, 1400)))
		f2 := h.passed(h.from6(fragment6(t, d, 1, 1400, 2800)))
		f3 := h.passed(h.from6(fragment6(t, d, 1, 2800, whole)))
		_, i, l4 := decode6(t, joined6(t, f1.out, f2.out, f3.out))
		port, _ := ports(l4)
		if i.SrcIP.String() != selfOut6 {
			t.Errorf("sent from %s", i.SrcIP)
		}
		d = datagram(outside6, selfOut6, 5300, port, 3000)
		f1 = h.passed(h.fromOverlay(h.plain(fragment6(t, d, 2, 0, 1400))))
		f2 = h.passed(h.fromOverlay(h.plain(fragment6(t, d, 2, 1400, whole))))
		expect(t, joined6(t, f1.out, f2.out), outside6, 5300, podA6.ip, 1236)
		if r := h.fromOverlay(h.plain(fragment6(t, d, 3, 1400, whole))); r.act != actOK {
			t.Errorf("a fragment of nobody's: verdict %d", r.act)
		}
	})
	t.Run("echo", func(t *testing.T) {
		h.t = t
		id := h.masked(h.from6(echoOf(podA6.ip, outside6, 77)), outside6, 0)
		answer := message6(outside6, selfOut6, layers.ICMPv6TypeEchoReply, 0, []byte{byte(id >> 8), byte(id), 0, 1})
		r := h.passed(h.fromOverlay(h.plain(answer)))
		want := h.plain(message6(outside6, podA6.ip, layers.ICMPv6TypeEchoReply, 0, []byte{0, 77, 0, 1}))
		if !bytes.Equal(r.out[14:], want[14:]) {
			t.Errorf("answered\n%x, want\n%x", r.out[14:], want[14:])
		}
		r = h.passed(h.fromOverlay(h.plain(failure6(t, "2001:db8:77::1", selfOut6, 3, echoOf(selfOut6, outside6, id)))))
		if _, i, _ := decode6(t, r.out); i.DstIP.String() != podA6.ip || r.out[14+40+8+40+5] != 77 {
			t.Errorf("an error about an echo: to %s, %x", i.DstIP, r.out)
		}
		if r := h.fromOverlay(h.plain(echoOf(outside6, selfOut6, 77))); r.act != actOK {
			t.Errorf("a ping of the host: verdict %d", r.act)
		}
	})
	t.Run("errors of the pod", func(t *testing.T) {
		h.t = t
		port := h.masked(h.from6(datagram(podA6.ip, outside6, 1250, 5300, 10)), outside6, 5300)
		h.passed(h.fromOverlay(h.plain(datagram(outside6, selfOut6, 5300, port, 10))))
		r := h.passed(h.from6(failure6(t, podA6.ip, outside6, 1, datagram(outside6, podA6.ip, 5300, 1250, 10))))
		tells6(t, r.out, selfOut6, outside6, outside6, 5300, selfOut6, port)
	})
	t.Run("backend outside", func(t *testing.T) {
		h.t = t
		k := datapath.FrontendKey{Addr: addr(vip6), Port: 53, Protocol: udp}
		h.tables.Frontends.Set(k, datapath.Frontend{Service: 3, Backends: []datapath.Backend{{Addr: addr(outside6), Port: 5353}}})
		h.sync()
		port := h.masked(h.from6(datagram(podA6.ip, vip6, 1234, 53, 10)), outside6, 5353)
		r := h.passed(h.fromOverlay(h.plain(datagram(outside6, selfOut6, 5353, port, 10))))
		expect(t, r.out, vip6, 53, podA6.ip, 1234)
		if got := h.masked(h.from6(datagram(podA6.ip, vip6, 1234, 53, 10)), outside6, 5353); got != port {
			t.Errorf("port %d became %d", port, got)
		}
		r = h.passed(h.fromOverlay(h.plain(failure6(t, outside6, selfOut6, 1, datagram(selfOut6, outside6, port, 5353, 10)))))
		tells6(t, r.out, vip6, podA6.ip, podA6.ip, 1234, vip6, 53)
		r = h.passed(h.from6(failure6(t, podA6.ip, vip6, 1, datagram(vip6, podA6.ip, 53, 1234, 10))))
		tells6(t, r.out, selfOut6, outside6, outside6, 5353, selfOut6, port)
	})
	t.Run("answers to the outside keep the address", func(t *testing.T) {
		h.t = t
		h.passed(h.fromOverlay(h.plain(segment(outside6, podA6.ip, 4000, 80, "S"))))
		r := h.from6(segment(podA6.ip, outside6, 80, 4000, "SA"))
		if r.act != actOK {
			t.Errorf("verdict %d, want the stack", r.act)
		}
		expect(t, r.out, podA6.ip, 80, outside6, 4000)
	})
	t.Run("left to the stack", func(t *testing.T) {
		h.t = t
		over := segment(podA6.ip, outside6, 1234, 80, "A")
		over[0].(*layers.IPv6).HopLimit = 1
		for name, ls := range map[string][]gopacket.SerializableLayer{
			"time is over": over, "another device": segment(podA6.ip, inside6, 1234, 80, "S"),
		} {
			in := h.sent(podA, ls)
			if r := h.fromPod(podA, in); r.act != actOK || !bytes.Equal(r.out, in) {
				t.Errorf("%s: verdict %d, want the stack", name, r.act)
			}
		}
	})
	t.Run("refused", func(t *testing.T) {
		h.t = t
		gre := []gopacket.SerializableLayer{ip6(podA6.ip, outside6, layers.IPProtocolGRE), gopacket.Payload(make([]byte, 20))}
		h.dropped(h.from6(gre), maps.DropUnsupportedProtocol)
		h.rules(podA, datapath.RuleSet{ID: 9, Egress: true})
		h.dropped(h.from6(segment(podA6.ip, outside6, 9999, 80, "S")), maps.DropPolicyDenied)
	})
}

// A connection from before the node masqueraded IPv6 keeps its address.
func TestMasqueradeSparesOpenFlows6(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	w := waysOut()["IPv6 "]
	port, _ := h.maskedSYN(w, 1234)
	if !h.confirmed(t, w, 1234, port) {
		t.Fatal("no connection")
	}
	all, err := maps.Dump[maps.Tuple6, maps.CTEntry](h.d.Maps().Ct6)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d flows, %v", len(all), err)
	}
	for k, e := range all { // as such a connection is
		e.SNATPort, e.SNATOpen = 0, 0
		if err := h.d.Maps().Ct6.Put(k, e); err != nil {
			t.Fatal(err)
		}
	}
	in := h.sent(podA, segment(podA6.ip, outside6, 1234, 80, "A"))
	if r := h.fromPod(podA, in); r.act != actOK || !bytes.Equal(r.out, in) {
		t.Errorf("verdict %d, want the stack and the packet as it was", r.act)
	}
	r := h.passed(h.fromOverlay(h.plain(segment(outside6, podA6.ip, 80, 1234, "A"))))
	expect(t, r.out, outside6, 80, podA6.ip, 1234)
}

// A node without an IPv6 address on its underlay masquerades IPv4 only.
func TestPodsKeepAddresses6(t *testing.T) {
	h := newHarnessWith(t, loader.Config{MapSizes: loader.SmallMaps(), Masquerade: loader.MasqueradePorts(), NodeAddr6: addr(self6)})
	h.outbound()
	in := h.sent(podA, segment(podA6.ip, outside6, 1234, 80, "S"))
	if r := h.fromPod(podA, in); r.act != actOK || !bytes.Equal(r.out, in) {
		t.Errorf("verdict %d, want the stack and the packet as it was", r.act)
	}
	h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 1234, 80, "S"))), outside, 80)
}
