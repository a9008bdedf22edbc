// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// fragment is the part of a datagram's payload (what is behind the IP header)
// from off to end; it keeps the datagram's id.
func fragment(t testing.TB, ls []gopacket.SerializableLayer, id uint16, off, end int) []gopacket.SerializableLayer {
	t.Helper()
	whole := build(t, ls...)
	payload := whole[20:]
	i := *ls[0].(*layers.IPv4)
	i.Id, i.FragOffset = id, uint16(off/8)
	if end < len(payload) {
		i.Flags = layers.IPv4MoreFragments
	}
	return []gopacket.SerializableLayer{&i, gopacket.Payload(payload[off:min(end, len(payload))])}
}

// joined puts the payloads of fragments together behind the first one's header,
// so that checksums can be looked at.
func joined(t *testing.T, frags ...[]byte) []byte {
	t.Helper()
	out := bytes.Clone(frags[0])
	for _, f := range frags[1:] {
		if off := int(binary.BigEndian.Uint16(f[20:])&0x1FFF) * 8; off != len(out)-34 {
			t.Fatalf("a fragment at %d, want %d", off, len(out)-34)
		}
		out = append(out, f[34:]...)
	}
	binary.BigEndian.PutUint16(out[16:], uint16(len(out)-14))
	out[20], out[21] = 0, 0
	out[24], out[25] = 0, 0
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(out[i:]))
	}
	sum = sum&0xFFFF + sum>>16
	sum = sum&0xFFFF + sum>>16
	binary.BigEndian.PutUint16(out[24:], ^uint16(sum))
	return out
}

const whole = 1 << 16

// Fragments have their datagram's ports, on every path.
func TestFragments(t *testing.T) {
	h := newHarness(t)
	udpService := datapath.FrontendKey{Addr: addr(vip), Port: 53, Protocol: udp}
	h.tables.Frontends.Set(udpService, datapath.Frontend{Service: 2, Backends: []datapath.Backend{{Addr: addr(podB.ip), Port: 5353}}})
	h.rules(podB, datapath.RuleSet{ID: 7, Ingress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Direction: datapath.Ingress, Protocol: udp, Port: 5353}: {}, {Direction: datapath.Ingress, Protocol: 1, Port: 256 + 8}: {},
	}})
	for name, send := range map[string]struct {
		src  string
		send func([]gopacket.SerializableLayer) result
	}{
		"from a pod":    {podA.ip, func(ls []gopacket.SerializableLayer) result { return h.fromPod(podA, h.sent(podA, ls)) }},
		"from a tunnel": {podR.ip, func(ls []gopacket.SerializableLayer) result { return h.fromOverlay(h.tunnelled(node2, idR, ls)) }},
		"from outside":  {"203.0.113.9", func(ls []gopacket.SerializableLayer) result { return h.fromOverlay(h.plain(ls)) }},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			d := datagram(send.src, podB.ip, 1234, 5353, 3000)
			f1 := h.passed(send.send(fragment(t, d, 1, 0, 1400)))
			f2 := h.passed(send.send(fragment(t, d, 1, 1400, 2800)))
			f3 := h.passed(send.send(fragment(t, d, 1, 2800, whole)))
			expect(t, joined(t, f1.out, f2.out, f3.out), send.src, 1234, podB.ip, 5353)
			// Out of order behind the first one, and again.
			h.passed(send.send(fragment(t, d, 1, 2800, whole)))
			h.passed(send.send(fragment(t, d, 1, 1400, 2800)))
			h.dropped(send.send(fragment(t, d, 2, 1400, 2800)), maps.DropEarlyFragment)
			h.dropped(send.send(fragment(t, d, 1, 8, 1400)), maps.DropOverlap)
			h.dropped(send.send(fragment(t, d, 1, 1392, 2800)), maps.DropOverlap)
			// Ports that policy refuses are refused in every fragment.
			bad := datagram(send.src, podB.ip, 1234, 5354, 3000)
			h.dropped(send.send(fragment(t, bad, 3, 0, 1400)), maps.DropPolicyDenied)
			h.dropped(send.send(fragment(t, bad, 3, 1400, 2800)), maps.DropPolicyDenied)
			// So small that ports or flags could come in another one.
			seg := segment(send.src, podB.ip, 1000, 5353, "S")
			h.dropped(send.send(fragment(t, seg, 4, 0, 8)), maps.DropTinyFragment)
			h.dropped(send.send(fragment(t, seg, 4, 0, 16)), maps.DropTinyFragment)
			h.dropped(send.send(fragment(t, seg, 4, 8, whole)), maps.DropEarlyFragment)
			// What cannot be put together.
			odd := fragment(t, d, 5, 0, 1400)
			odd[1] = gopacket.Payload(append([]byte{}, odd[1].(gopacket.Payload)[:1399]...))
			h.dropped(send.send(odd), maps.DropMalformed)
			huge := fragment(t, d, 1, 1400, 2800)
			huge[0].(*layers.IPv4).FragOffset = 0x1FFF
			h.dropped(send.send(huge), maps.DropMalformed)
			// Echo requests have no ports, but their id.
			ping := append(echoRequest(send.src, podB.ip), gopacket.Payload(make([]byte, 2000)))
			if send.src != "203.0.113.9" {
				h.passed(send.send(fragment(t, ping, 6, 0, 1400)))
				h.passed(send.send(fragment(t, ping, 6, 1400, whole)))
			}
		})
	}
	t.Run("to a service", func(t *testing.T) {
		h.t = t
		d := datagram(podA.ip, vip, 1001, 53, 3000)
		f1 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 11, 0, 1400))))
		f2 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 11, 1400, 2800))))
		f3 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 11, 2800, whole))))
		expect(t, joined(t, f1.out, f2.out, f3.out), podA.ip, 1001, podB.ip, 5353)
		d = datagram(podB.ip, podA.ip, 5353, 1001, 3000)
		f1 = h.passed(h.fromPod(podB, h.sent(podB, fragment(t, d, 12, 0, 1400))))
		f2 = h.passed(h.fromPod(podB, h.sent(podB, fragment(t, d, 12, 1400, whole))))
		expect(t, joined(t, f1.out, f2.out), vip, 53, podA.ip, 1001)
	})
	t.Run("to a remote pod", func(t *testing.T) {
		h.t = t
		d := datagram(podA.ip, podR.ip, 1002, 53, 3000)
		f1 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 13, 0, 1400))))
		f2 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 13, 1400, 2800))))
		f3 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 13, 2800, whole))))
		expect(t, joined(t, unwrapped(f1.out), unwrapped(f2.out), unwrapped(f3.out)), podA.ip, 1002, podR.ip, 53)
		// One flow, and one outer port: a path keeps their order.
		if !bytes.Equal(f1.out[34:36], f2.out[34:36]) {
			t.Errorf("outer ports %x and %x", f1.out[34:36], f2.out[34:36])
		}
	})
	t.Run("no backend", func(t *testing.T) {
		h.t = t
		h.tables.Frontends.Set(udpService, datapath.Frontend{Service: 2})
		h.sync()
		d := datagram(podA.ip, vip, 1003, 53, 3000)
		h.answered(h.fromPod(podA, h.sent(podA, fragment(t, d, 14, 0, 1400))), maps.DropNoBackend)
		h.dropped(h.fromPod(podA, h.sent(podA, fragment(t, d, 14, 1400, whole))), maps.DropNoBackend)
	})
}

// Nobody speaks of others' fragments: what a spoofed first fragment said is not
// believed of theirs.
func TestFragmentsOfOthers(t *testing.T) {
	h := newHarness(t)
	d := datagram(podA.ip, podB.ip, 1000, 5353, 3000)
	h.dropped(h.fromPod(podB, h.sent(podB, fragment(t, d, 1, 0, 1400))), maps.DropSpoofedSource)
	h.dropped(h.fromPod(podA, h.sent(podA, fragment(t, d, 1, 1400, 2800))), maps.DropEarlyFragment)
	d = datagram(podR.ip, podB.ip, 1000, 5353, 3000)
	h.dropped(h.fromOverlay(h.tunnelled(node3, idX, fragment(t, d, 1, 0, 1400))), maps.DropSpoofedSource)
	h.dropped(h.fromOverlay(h.tunnelled(node2, idR, fragment(t, d, 1, 1400, 2800))), maps.DropEarlyFragment)
}

// A SYN that goes through the tunnel offers what fits it.
func TestSegmentSizeIsClamped(t *testing.T) {
	h := newHarness(t)
	const fits = 1500 - 50 - 40
	syn := func(src, dst, flags string, opts ...layers.TCPOption) []gopacket.SerializableLayer {
		ls := segment(src, dst, 1000, 80, flags)
		ls[1].(*layers.TCP).Options = opts
		return ls
	}
	mss := func(n uint16) layers.TCPOption {
		return layers.TCPOption{OptionType: 2, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, n)}
	}
	nop := layers.TCPOption{OptionType: 1, OptionLength: 1}
	sack := layers.TCPOption{OptionType: 4, OptionLength: 2}
	end := layers.TCPOption{OptionType: 0, OptionLength: 1}
	for name, c := range map[string]struct {
		flags string
		opts  []layers.TCPOption
		at    int
		want  uint16
	}{
		"larger":           {"S", []layers.TCPOption{mss(1460)}, 0, fits},
		"answer":           {"SA", []layers.TCPOption{mss(1460)}, 0, fits},
		"fits":             {"S", []layers.TCPOption{mss(fits)}, 0, fits},
		"smaller":          {"S", []layers.TCPOption{mss(500)}, 0, 500},
		"behind another":   {"S", []layers.TCPOption{sack, mss(1460)}, 2, fits},
		"at an odd byte":   {"S", []layers.TCPOption{nop, mss(1460)}, 1, fits},
		"behind the end":   {"S", []layers.TCPOption{end, mss(1460)}, 1, 1460},
		"no SYN":           {"A", []layers.TCPOption{mss(1460)}, 0, 1460},
		"last of many":     {"S", []layers.TCPOption{nop, nop, nop, sack, nop, mss(9000)}, 6, fits},
		"of the tunnel's ": {"S", []layers.TCPOption{mss(8910)}, 0, fits},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			r := h.passed(h.fromPod(podA, h.sent(podA, syn(podA.ip, podR.ip, c.flags, c.opts...))))
			inner := unwrapped(r.out)
			decode(t, inner)
			if got := binary.BigEndian.Uint16(inner[14+20+20+c.at+2:]); got != c.want {
				t.Errorf("segment size %d, want %d", got, c.want)
			}
			h.forgetFlows()
		})
	}
	t.Run("through a service", func(t *testing.T) {
		h.t = t
		h.service(podR)
		inner := unwrapped(h.passed(h.fromPod(podA, h.sent(podA, syn(podA.ip, vip, "S", mss(1460))))).out)
		expect(t, inner, podA.ip, 1000, podR.ip, 8080)
		if got := binary.BigEndian.Uint16(inner[14+20+20+2:]); got != fits {
			t.Errorf("segment size %d", got)
		}
	})
	t.Run("to a local pod", func(t *testing.T) {
		h.t = t
		r := h.passed(h.fromPod(podA, h.sent(podA, syn(podA.ip, podB.ip, "S", mss(1460)))))
		if got := binary.BigEndian.Uint16(r.out[14+20+20+2:]); got != 1460 {
			t.Errorf("segment size %d: the path is not the tunnel's", got)
		}
	})
	t.Run("of a narrower node", func(t *testing.T) {
		h.t = t
		a := addr(node2)
		h.tables.Nodes.Set(a, datapath.Node{Tunnel: a, ClusterID: 1, MTU: 1300})
		h.sync()
		inner := unwrapped(h.passed(h.fromPod(podA, h.sent(podA, syn(podA.ip, podR.ip, "S", mss(1460))))).out)
		if got := binary.BigEndian.Uint16(inner[14+20+20+2:]); got != 1300-50-40 {
			t.Errorf("segment size %d", got)
		}
	})
	t.Run("options that lie", func(t *testing.T) {
		h.t = t
		for _, raw := range [][]byte{{2, 3, 5}, {2, 0, 0, 0}, {9, 1, 2, 4}, {9, 255, 0, 0}, bytes.Repeat([]byte{1}, 40)} {
			ls := syn(podA.ip, podR.ip, "S", layers.TCPOption{OptionType: 1, OptionLength: 1})
			p := h.sent(podA, ls)
			head := append([]byte{}, p[:54]...)
			for len(raw)%4 != 0 {
				raw = append(raw, 0)
			}
			head[46] = byte(20+len(raw)) / 4 << 4
			binary.BigEndian.PutUint16(head[16:], uint16(40+len(raw)))
			if r := h.fromPod(podA, append(head, raw...)); r.act != actRedirect {
				t.Errorf("options %x: verdict %d", raw, r.act)
			} else if got := unwrapped(r.out); !bytes.Equal(got[54:54+len(raw)], raw) {
				t.Errorf("options %x became %x", raw, got[54:])
			}
		}
	})
}
