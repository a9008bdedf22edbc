// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// mutate6 is mutate, and what hurts IPv6: chains of headers, fragments, lengths.
func mutate6(r *rand.Rand, p []byte) []byte {
	p = mutate(r, p)
	at := 14
	if len(p) > 64 && p[12] == 8 && r.IntN(4) > 0 {
		at = 64
	}
	if len(p) < at+48 || r.IntN(2) == 0 {
		return p
	}
	next := []byte{0, 6, 17, 43, 44, 44, 58, 59, 60, 60, 132, 255}[r.IntN(12)]
	switch r.IntN(4) {
	case 0:
		p[at+6] = next
	case 1: // a header more
		ext := make([]byte, 8)
		for i := range ext {
			ext[i] = byte(r.Uint32())
		}
		ext[0], ext[1] = p[at+6], []byte{0, 0, 0, 1, 200}[r.IntN(5)]
		if next == 44 && r.IntN(2) == 0 {
			ext[2], ext[3] = 0, byte(r.IntN(2))
		}
		p[at+6] = next
		p = slices.Insert(p, at+40, ext...)
		binary.BigEndian.PutUint16(p[at+4:], binary.BigEndian.Uint16(p[at+4:])+8)
	case 2:
		binary.BigEndian.PutUint16(p[at+4:], uint16(r.IntN(100)))
	case 3:
		mapped := netip.MustParseAddr(podR.ip).As16()
		copy(p[at+8+16*r.IntN(2):], [][]byte{mapped[:], make([]byte, 16), {0xFF, 2}, {0xFE, 0x80}}[r.IntN(4)])
	}
	return p
}

// look6 is what the model sees in a packet behind an Ethernet header.
func look6(p []byte) (s seen, ok bool) {
	if len(p) < 54 || p[12] != 0x86 || p[13] != 0xDD || p[14]>>4 != 6 {
		return s, false
	}
	i := p[14:]
	s = seen{src: netip.AddrFrom16([16]byte(i[8:24])).String(), dst: netip.AddrFrom16([16]byte(i[24:40])).String()}
	next, at := i[6], 40
	for slices.Contains([]byte{0, 43, 44, 60}, next) && at+8 <= len(i) {
		n := (int(i[at+1]) + 1) * 8
		if next == 44 {
			n, s.later = 8, binary.BigEndian.Uint16(i[at+2:]) >= 8
		}
		if next == 43 {
			s.routed = true
		}
		next, at = i[at], at+n
		if s.later {
			break
		}
	}
	s.proto = next
	if !s.later && at+4 <= len(i) {
		s.sport, s.dport = binary.BigEndian.Uint16(i[at:]), binary.BigEndian.Uint16(i[at+2:])
		s.kind = i[at]
		if next == 58 && at+8 <= len(i) {
			s.quoted = i[at+8:]
		}
	}
	return s, true
}

// TestFuzzPrograms6 is TestFuzzPrograms for IPv6: TCP between podA and podR to port
// 80 passes, both ways, and what belongs to it, through the service, too; TCP of podA
// to port 80 outside is left to the stack.
func TestFuzzPrograms6(t *testing.T) { makes(t, fuzzPrograms6) }

func fuzzPrograms6(t *testing.T, h *harness) {
	t.Helper()
	h.outbound()
	h.fuzzWorld(families()[1])
	port, _ := h.maskedSYN(waysOut()["IPv6 "], 1002)
	gone := func(src, dst string, about []gopacket.SerializableLayer) []gopacket.SerializableLayer {
		return message6(src, dst, 1, 0, append(make([]byte, 4), build(t, about...)[:48]...))
	}
	hop, dst := extension{0, make([]byte, 6)}, extension{60, make([]byte, 6)}
	atomic := extension{44, []byte{0, 0, 0, 0, 0, 7}}
	h.fuzz(t, families()[1], map[string][][]byte{
		"from_pod": {
			h.sent(podA, segment(podA6.ip, podR6.ip, 1000, 80, "S")), h.sent(podA, segment(podA6.ip, podR6.ip, 80, 1000, "SA")),
			h.sent(podA, behind(t, segment(podA6.ip, podR6.ip, 1000, 80, "S"), hop, dst, atomic)),
			h.sent(podA, fragment6(t, segment(podA6.ip, podR6.ip, 1000, 80, "A"), 1, 0, 24)), h.sent(podA, fragment6(t, segment(podA6.ip, podR6.ip, 1000, 80, "A"), 1, 24, whole)),
			h.sent(podA, datagram(podA6.ip, podR6.ip, 1000, 80, 20)), h.sent(podA, echoRequest(podA6.ip, podB6.ip)),
			h.sent(podA, segment(podA6.ip, podB6.ip, 1000, 80, "S")), h.sent(podA, segment(podA6.ip, vip6, 1000, 80, "S")),
			h.sent(podA, segment(podA6.ip, outside6, 1000, 80, "S")), h.sent(podA, solicit(podA6.ip, "ff02::1:ff00:1", "fe80::1", nil)),
			h.sent(podA, gone(podA6.ip, podR6.ip, segment(podR6.ip, podA6.ip, 1000, 80, "A"))),
			h.sent(podA, segment(podA6.ip, vip6, 1000, servedPort, "S")), h.sent(podA, segment(podA6.ip, vip6, 1001, servedPort, "A")),
			h.sent(podA, behind(t, segment(podA6.ip, vip6, 1000, servedPort, "S"), hop, dst, atomic)),
			h.sent(podA, datagram(podA6.ip, vip6, 1000, servedPort, 20)), h.sent(podA, segment(podA6.ip, vip6, 1000, deniedPort, "S")),
			h.sent(podA, chunk(podA6.ip, podR6.ip, 1000, 80, 20)), h.sent(podA, chunk(podA6.ip, vip6, 1000, servedPort, 20)),
			h.sent(podA, gone(podA6.ip, vip6, segment(vip6, podA6.ip, servedPort, 1001, "A"))),
			h.sent(podA, segment(podA6.ip, outside6, 1002, 80, "A")), h.sent(podA, behind(t, segment(podA6.ip, outside6, 1002, 80, "A"), dst)),
			h.sent(podA, gone(podA6.ip, outside6, segment(outside6, podA6.ip, 80, 1002, "A"))),
		},
		"from_overlay": {
			h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 1000, 80, "S")), h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 80, 1000, "A")),
			h.tunnelled(node2, idR, behind(t, segment(podR6.ip, podA6.ip, 1000, 80, "S"), hop, dst, atomic)),
			h.tunnelled(node2, idR, datagram(podR6.ip, podA6.ip, 1000, 80, 20)), h.tunnelled(node3, idX, segment(podX6.ip, podA6.ip, 1000, 80, "S")),
			h.tunnelled(node2, idR, gone(podR6.ip, podA6.ip, segment(podA6.ip, podR6.ip, 1000, 80, "A"))),
			h.plain(segment(outside6, podA6.ip, 1000, 80, "S")), h.plain(segment(outside6, self6, 1000, 20000, "S")),
			h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 80, 1001, "A")), h.tunnelled(node2, idR, chunk(podR6.ip, podA6.ip, 1000, 80, 20)),
			h.tunnelled(node2, idR, gone(podR6.ip, podA6.ip, segment(podA6.ip, podR6.ip, 1001, 80, "A"))),
			h.plain(segment(outside6, selfOut6, 80, port, "A")), h.plain(segment(outside6, selfOut6, 80, port, "FA")),
			h.plain(behind(t, segment(outside6, selfOut6, 80, port, "A"), dst)), h.plain(datagram(outside6, selfOut6, 80, port, 20)),
			h.plain(gone("2001:db8:77::1", selfOut6, segment(selfOut6, outside6, port, 80, "A"))),
		},
		"from_host": {
			h.plain(segment(self6, podA6.ip, 1000, 80, "S")), h.plain(segment(outside6, podA6.ip, 1000, 80, "S")),
			h.plain(behind(t, segment(self6, podA6.ip, 1000, 80, "S"), hop, dst)), h.plain(solicit(self6, "ff02::1:ff00:5", podA6.ip, nil)),
			h.plain(segment(self6, vip6, 1000, 80, "S")), h.plain(datagram(self6, podR6.ip, 1000, 80, 20)),
			h.plain(segment(self6, vip6, 1000, servedPort, "S")), h.plain(segment(outside6, vip6, 1000, servedPort, "S")),
		},
	}, mutate6, wrong6)
}

// wrong6 is wrong for IPv6.
func wrong6(prog string, in []byte, act int, out []byte) string {
	if prog == "from_tunnel" { // nothing there is for the stack
		if act == actOK {
			return "left to the stack"
		}
		in, prog = append(make([]byte, tunnelHeader), in...), "from_overlay"
	}
	if len(in) > 14 && in[12] == 8 && prog != "from_overlay" {
		return "" // turned into IPv4, or ARP
	}
	i, ok := look6(in)
	switch act {
	case actShot:
		return ""
	case actOK:
		switch {
		case !bytes.Equal(in, out):
			return "changed, and left to the stack"
		case prog == "from_overlay" && (!ok || i.dst != podA6.ip && i.dst != podB6.ip):
			return "" // the host's own
		case prog == "from_pod" && ok && i.src == podA6.ip && !ofMesh6(i.dst) && (asked(i, 80) || i.proto == 58):
			return "" // goes past the underlay, or its time is over
		}
		return "left to the stack"
	case actRedirect:
	default:
		return "no such verdict"
	}
	if prog != "from_overlay" && len(out) > 64 && out[12] == 8 {
		if to := ip4(out[30:34]); to != node2 && prog == "from_pod" {
			return "tunnelled to " + to
		}
		out = append(slices.Clone(out[50:64]), out[64:]...)
	}
	o, ok := look6(out)
	switch {
	case !ok && prog == "from_overlay" && len(in) > 64 && (in[62] != 0x86 || in[63] != 0xDD):
		return "" // the tunnel carried something else: the IPv4 fuzzing's matter
	case !ok:
		return "sent on something that is not IPv6"
	case o.routed:
		return "sent a source route on"
	case strings.Contains(o.src, "::ffff:") || strings.Contains(o.dst, "::ffff:"):
		return "sent a mapped address on"
	case prog == "from_host" && (i.src == self6 || o.proto == 58 && o.kind == 136):
		return "" // the host has no policy
	case prog != "from_overlay" && o.dst == i.src && o.src != i.src:
		return "" // told to the sender
	case prog == "from_overlay" && o.dst == self6:
		return "" // the host has no policy
	case prog == "from_pod" && o.src == selfOut6:
		return wrongMasked6(i, o, out)
	}
	if o.proto == 58 && o.quoted != nil && o.kind >= 1 && o.kind <= 4 {
		q, ok := look6(append(bytes.Clone(out[:14]), o.quoted...))
		if !ok || q.src != o.dst || !asked(q, 80, servedPort) {
			return "an ICMPv6 error about no flow"
		}
		return ""
	}
	if o.src == podA6.ip && o.dst == podA6.ip {
		return "" // a pod may talk to itself
	}
	switch {
	case o.src == podA6.ip && o.dst == podR6.ip:
	case prog == "from_overlay" && o.dst == podA6.ip && o.src == vip6:
		if !o.later && o.sport != servedPort {
			return "answered by a service that was not asked"
		}
		return ifNot(o.later || asked(o, servedPort))
	case o.dst == podA6.ip && !ofMesh6(o.src):
		if !o.later && o.sport != 80 {
			return "let in from outside"
		}
	case !strings.HasPrefix(o.src, "fd00:10:2:0:") && !strings.HasPrefix(o.src, "fd00:10:2::") || o.dst != podA6.ip || prog == "from_pod":
		return "passed from " + o.src + " to " + o.dst
	}
	return ifNot(o.later || asked(o, 80))
}

// wrongMasked6 is wrongMasked for IPv6.
func wrongMasked6(i, o seen, out []byte) string {
	ports := loader.MasqueradePorts()
	if i.src != podA6.ip || ofMesh6(o.dst) || o.dst != i.dst && i.dst != vip6 {
		return "masqueraded from " + i.src + " to " + o.dst
	}
	if o.proto == 58 && o.quoted != nil && o.kind >= 1 && o.kind <= 4 {
		if q, ok := look6(append(bytes.Clone(out[:14]), o.quoted...)); !ok || q.src != o.dst || q.dst != selfOut6 || !asked(q, 80) {
			return "a masqueraded ICMPv6 error about no flow"
		}
		return ""
	}
	if o.proto != tcp || !o.later && (o.dport != 80 || o.sport < ports.First || o.sport >= ports.First+ports.Count) {
		return "masqueraded beside the port"
	}
	return ""
}

// ofMesh6 is ofMesh for IPv6.
func ofMesh6(a string) bool {
	for _, prefix := range []string{"fd00:10:1::/64", "fd00:10:2::/64"} {
		if netip.MustParsePrefix(prefix).Contains(addr(a)) {
			return true
		}
	}
	return slices.Contains([]string{podX6.ip, self6, selfOut6, node26, node36}, a)
}
