// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// behindIP is what is behind the IP header of a frame without options.
func behindIP(frame []byte) []byte {
	if binary.BigEndian.Uint16(frame[12:]) == 0x86DD {
		return frame[14+40:]
	}
	return frame[14+20:]
}

// unchanged expects a frame to be the packet as it was sent, from the IP header
// on, with SCTP's checksum right.
func unchanged(t *testing.T, frame []byte, ls []gopacket.SerializableLayer) {
	t.Helper()
	if want := build(t, ls...); !bytes.Equal(frame[14:], want) {
		t.Errorf("the packet became\n%x, was\n%x", frame[14:], want)
	}
	intact(t, behindIP(frame))
}

// intact checks the checksum of an SCTP packet.
func intact(t *testing.T, p []byte) {
	t.Helper()
	sum := binary.LittleEndian.Uint32(p[8:])
	p = bytes.Clone(p)
	copy(p[8:12], make([]byte, 4))
	if want := crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)); sum != want {
		t.Errorf("SCTP checksum %08x, want %08x", sum, want)
	}
}

// SCTP passes by its ports, both ways and not a bit changed, and its flows are
// followed like those of UDP.
func TestSCTP(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"pod", func(t *testing.T) { sctpOfPod(t, f) })
	}
}

func sctpOfPod(t *testing.T, f family) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{
		{Direction: datapath.Egress, Identity: idR, Protocol: sctp, Port: 80}:    {},
		{Direction: datapath.Ingress, Identity: idR, Protocol: sctp, Port: 3868}: {},
		{Direction: datapath.Ingress, Identity: idR, Protocol: tcp, Port: 81}:    {},
	}})
	to := func(sport, dport uint16) result {
		return h.fromPod(f.a, h.sent(f.a, chunk(f.a.ip, f.r.ip, sport, dport, 20)))
	}
	from := func(sport, dport uint16) result {
		return h.fromOverlay(h.tunnelled(node2, idR, chunk(f.r.ip, f.a.ip, sport, dport, 20)))
	}
	unchanged(t, unwrapped(h.passed(to(1000, 80)).out), chunk(f.a.ip, f.r.ip, 1000, 80, 20))
	if n, open := h.flowCount(); n != 1 || open != 1 {
		t.Errorf("%d flows, %d half-open after the first packet, want 1 and 1", n, open)
	}
	unchanged(t, h.passed(from(80, 1000)).out, chunk(f.r.ip, f.a.ip, 80, 1000, 20))
	if n, open := h.flowCount(); n != 1 || open != 0 {
		t.Errorf("%d flows, %d half-open after the answer, want 1 and 0", n, open)
	}
	unchanged(t, unwrapped(h.passed(to(1000, 80)).out), chunk(f.a.ip, f.r.ip, 1000, 80, 20))
	unchanged(t, h.passed(from(1001, 3868)).out, chunk(f.r.ip, f.a.ip, 1001, 3868, 20))
	h.dropped(to(1000, 81), maps.DropPolicyDenied)
	h.dropped(from(80, 1001), maps.DropPolicyDenied) // answers nothing
	h.dropped(from(1002, 81), maps.DropPolicyDenied) // that is TCP's
	h.dropped(h.fromPod(f.a, h.sent(f.a, datagram(f.a.ip, f.r.ip, 1000, 80, 20))), maps.DropPolicyDenied)
	// What ends before its ports do has none.
	whole := h.sent(f.a, chunk(f.a.ip, f.r.ip, 1003, 80, 20))
	short := bytes.Clone(whole[:len(whole)-len(behindIP(whole))+7])
	if isIPv6(f.a.ip) {
		binary.BigEndian.PutUint16(short[14+4:], 7)
	}
	h.dropped(h.fromPod(f.a, short), maps.DropMalformed)
	// Policy acts on what is established.
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true})
	h.dropped(to(1000, 80), maps.DropPolicyDenied)
	h.dropped(from(80, 1000), maps.DropPolicyDenied)
}

// flowCount is how many flows there are in both families, and how many half-open.
func (h *harness) flowCount() (all, open int) {
	h.t.Helper()
	f4, open4 := h.flows()
	f6, open6 := h.flows6()
	return len(f4) + len(f6), open4 + open6
}

// An unanswered flow of SCTP goes soon, an answered one when it is silent for as
// long as UDP may be; its own packets keep it.
func TestSCTPTimeouts(t *testing.T) {
	h := newHarness(t)
	out := func(port uint16) {
		h.passed(h.fromPod(podA, h.sent(podA, chunk(podA.ip, podR.ip, port, 80, 20))))
	}
	out(1000)
	out(1001)
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, chunk(podR.ip, podA.ip, 80, 1001, 20))))
	all, _ := h.flows()
	var now uint32
	for _, e := range all {
		now = max(now, e.LastSeen)
	}
	m := h.d.Maps()
	limits := maps.Timeouts{TCP: 100000, HalfOpen: 100, Closing: 100, Other: 10000}
	collect := func(at uint32) (gone int) {
		t.Helper()
		_, open, err1 := maps.CollectConntrack[maps.Tuple4](m.Ct4Open, limits.OfHalfOpen(), at)
		_, done, err2 := maps.CollectConntrack[maps.Tuple4](m.Ct4, limits, at)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return open + done
	}
	for _, step := range []struct {
		at   uint32
		gone int
	}{{50, 0}, {200, 1}, {9000, 0}, {20000, 1}} {
		if gone := collect(now + step.at); gone != step.gone {
			t.Errorf("%d jiffies later %d flows went, want %d", step.at, gone, step.gone)
		}
	}
}

// Fragments of SCTP have its ports, and are put together to what was sent.
func TestSCTPFragments(t *testing.T) {
	h := newHarness(t)
	h.rules(podB, datapath.RuleSet{ID: 7, Ingress: true, Entries: entries{{Protocol: sctp, Port: 80}: {}}})
	for _, f := range families() {
		for name, way := range map[string]struct {
			src   string
			enter func(h *harness, ls []gopacket.SerializableLayer) result
		}{"from a pod": {f.a.ip, pod(f.a)}, "from a tunnel": {f.r.ip, tunnel(node2, idR)}, "from outside": {f.outside, wire}} {
			t.Run(f.prefix+name, func(t *testing.T) {
				h.t = t
				send := func(ls []gopacket.SerializableLayer, id uint16, off, end int) result {
					return way.enter(h, partOf(t, ls, id, off, end))
				}
				ls := chunk(way.src, f.b.ip, 1000, 80, 3000)
				var got []byte
				for _, cut := range [][2]int{{0, 1400}, {1400, 2800}, {2800, whole}} {
					got = append(got, afterFragmentHeader(h.passed(send(ls, 1, cut[0], cut[1])).out)...)
				}
				if want := behindIP(h.plain(ls)); !bytes.Equal(got, want) {
					t.Errorf("%d bytes became %d others", len(want), len(got))
				}
				intact(t, got)
				denied := chunk(way.src, f.b.ip, 1000, 81, 3000)
				h.dropped(send(denied, 2, 0, 1400), maps.DropPolicyDenied)
				h.dropped(send(denied, 2, 1400, whole), maps.DropPolicyDenied)
				h.dropped(send(ls, 3, 1400, whole), maps.DropEarlyFragment)
				h.dropped(send(ls, 1, 8, 1400), maps.DropOverlap)
			})
		}
	}
}

// partOf is fragment of either family.
func partOf(t testing.TB, ls []gopacket.SerializableLayer, id uint16, off, end int) []gopacket.SerializableLayer {
	t.Helper()
	if _, ok := ls[0].(*layers.IPv6); ok {
		return fragment6(t, ls, byte(id), off, end)
	}
	return fragment(t, ls, id, off, end)
}

// afterFragmentHeader is the part of a datagram that a fragment's frame has.
func afterFragmentHeader(frame []byte) []byte {
	if binary.BigEndian.Uint16(frame[12:]) == 0x86DD {
		return frame[14+40+8:]
	}
	return frame[14+20:]
}

// A service by SCTP is refused by name: no packet goes on with ports that its
// checksum does not cover, neither from a pod nor from the host. An address that
// serves the port by TCP only is like any other.
func TestSCTPService(t *testing.T) {
	h := newHarness(t)
	for _, f := range families() {
		h.serve(f.vip, 80, sctp, f.b)
		h.serve(f.vip, 81, tcp, f.b)
		h.serve(f.vip, 8080, sctp) // without backends
		h.sync()
		h.forgetFlows()
		for name, send := range map[string]func(dport uint16, payload int) result{
			"pod": func(dport uint16, n int) result {
				return h.fromPod(f.a, h.sent(f.a, chunk(f.a.ip, f.vip, 1000, dport, n)))
			},
			"host": func(dport uint16, n int) result { return h.fromHost(h.plain(chunk(f.self, f.vip, 1000, dport, n))) },
		} {
			t.Run(f.prefix+name, func(t *testing.T) {
				h.t = t
				h.dropped(send(80, 20), maps.DropUnsupportedProtocol)
				h.dropped(send(80, 20), maps.DropUnsupportedProtocol)
				h.dropped(send(8080, 20), maps.DropUnsupportedProtocol)
				if n, _ := h.flowCount(); n != 0 {
					t.Errorf("%d flows are remembered", n)
				}
				if name == "pod" {
					r := send(81, 20)
					if r.act != actOK {
						t.Fatalf("verdict %d for a port that serves by TCP, want the stack", r.act)
					}
					unchanged(t, r.out, chunk(f.a.ip, f.vip, 1000, 81, 20))
				}
			})
			h.forgetFlows()
		}
		t.Run(f.prefix+"fragments", func(t *testing.T) {
			h.t = t
			ls := chunk(f.a.ip, f.vip, 1001, 80, 3000)
			h.dropped(h.fromPod(f.a, h.sent(f.a, partOf(t, ls, 1, 0, 1400))), maps.DropUnsupportedProtocol)
			h.dropped(h.fromPod(f.a, h.sent(f.a, partOf(t, ls, 1, 1400, whole))), maps.DropUnsupportedProtocol)
		})
		t.Run(f.prefix+"a backend's own", func(t *testing.T) {
			h.t = t
			h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, 1002, 81, "S"))))
			r := h.passed(h.fromPod(f.b, h.sent(f.b, chunk(f.b.ip, f.a.ip, 8080, 1002, 20))))
			unchanged(t, r.out, chunk(f.b.ip, f.a.ip, 8080, 1002, 20))
		})
	}
}

// What cannot have the node's address does not leave with the pod's, nor broken.
func TestSCTPMasquerade(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	ls := chunk(podA.ip, outside, 1000, 80, 3000)
	h.dropped(h.fromPod(podA, h.sent(podA, chunk(podA.ip, outside, 1000, 80, 20))), maps.DropUnsupportedProtocol)
	h.dropped(h.fromPod(podA, h.sent(podA, fragment(t, ls, 1, 0, 1400))), maps.DropUnsupportedProtocol)
	h.dropped(h.fromPod(podA, h.sent(podA, fragment(t, ls, 1, 1400, 2800))), maps.DropUnsupportedProtocol)
	if n, _ := h.flowCount(); n != 0 {
		t.Errorf("%d flows are remembered", n)
	}
	// What goes past the underlay keeps the pod's address, and so does an answer.
	r := h.fromPod(podA, h.sent(podA, chunk(podA.ip, inside, 1001, 80, 20)))
	if r.act != actOK {
		t.Fatalf("verdict %d, want the stack", r.act)
	}
	unchanged(t, r.out, chunk(podA.ip, inside, 1001, 80, 20))
	unchanged(t, h.passed(h.fromOverlay(h.plain(chunk(outside, podA.ip, 4000, 80, 20)))).out, chunk(outside, podA.ip, 4000, 80, 20))
	r = h.fromPod(podA, h.sent(podA, chunk(podA.ip, outside, 80, 4000, 20)))
	if r.act != actOK {
		t.Fatalf("verdict %d for an answer, want the stack", r.act)
	}
	unchanged(t, r.out, chunk(podA.ip, outside, 80, 4000, 20))

	h = newHarnessWith(t, loader.Config{MapSizes: loader.SmallMaps()})
	h.outbound()
	r = h.fromPod(podA, h.sent(podA, chunk(podA.ip, outside, 1000, 80, 20)))
	if r.act != actOK {
		t.Fatalf("verdict %d without masquerade, want the stack", r.act)
	}
	unchanged(t, r.out, chunk(podA.ip, outside, 1000, 80, 20))
}

// ICMP errors pass with a flow of SCTP, and only with one; a packet that is too big
// is answered.
func TestSCTPErrors(t *testing.T) {
	h := newHarness(t)
	for _, f := range families() {
		t.Run(f.prefix+"flow", func(t *testing.T) {
			h.t = t
			h.passed(h.fromPod(f.a, h.sent(f.a, chunk(f.a.ip, f.r.ip, 1000, 80, 20))))
			about := func(sport uint16) []gopacket.SerializableLayer {
				return failures(t, f.r.ip, f.a.ip, chunk(f.a.ip, f.r.ip, sport, 80, 20))["unreachable"]
			}
			h.passed(h.fromOverlay(h.tunnelled(node2, idR, about(1000))))
			h.dropped(h.fromOverlay(h.tunnelled(node2, idR, about(1001))), maps.DropUnrelatedICMP)
			h.answered(h.fromPod(f.a, h.sent(f.a, chunk(f.a.ip, f.r.ip, 1000, 80, 1450))), maps.DropPacketTooBig)
		})
	}
}
