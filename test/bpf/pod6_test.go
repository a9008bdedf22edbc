// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// from6 is what podA makes of layers.
func (h *harness) from6(ls []gopacket.SerializableLayer) result {
	h.t.Helper()
	return h.fromPod(podA, h.sent(podA, ls))
}

func TestPodToLocalPod6(t *testing.T) {
	h := newHarness(t)
	r := h.passed(h.from6(segment(podA6.ip, podB6.ip, 1000, 80, "S")))
	eth, _, _ := decode6(t, r.out)
	b := h.eps[podB.name]
	if !bytes.Equal(eth.DstMAC, b.PodMAC[:]) || !bytes.Equal(eth.SrcMAC, b.HostMAC[:]) {
		t.Errorf("MACs %s → %s", eth.SrcMAC, eth.DstMAC)
	}
	expect(t, r.out, podA6.ip, 1000, podB6.ip, 80)
	if all, open := h.flows6(); len(all) != 1 || open != 1 {
		t.Errorf("%d flows, %d half-open after a SYN, want 1 and 1", len(all), open)
	}
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB6.ip, podA6.ip, 80, 1000, "SA"))))
	if all, _ := h.flows(); len(all) != 0 {
		t.Errorf("IPv4 has %d flows", len(all))
	}
}

func TestPodToRemotePod6(t *testing.T) {
	h := newHarness(t)
	in := h.sent(podA, segment(podA6.ip, podR6.ip, 1000, 80, "S"))
	r := h.passed(h.fromPod(podA, in))
	p := gopacket.NewPacket(r.out, layers.LayerTypeEthernet, gopacket.Default)
	outer := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if outer.SrcIP.String() != self || outer.DstIP.String() != node2 || outer.TOS != 0xB9 ||
		outer.Flags != layers.IPv4DontFragment || int(outer.Length) != len(in)-14+50 {
		t.Errorf("outer header %+v", outer)
	}
	if udp.DstPort != 8472 || udp.SrcPort < 0x8000 || int(udp.Length) != len(in)-14+30 {
		t.Errorf("outer UDP %+v", udp)
	}
	vxlan := r.out[14+20+8:]
	if binary.BigEndian.Uint32(vxlan[4:]) != uint32(podA.id)<<8 || binary.BigEndian.Uint16(vxlan[20:]) != 0x86DD {
		t.Errorf("VXLAN and inner Ethernet header %x, want VNI %x", vxlan[:22], podA.id)
	}
	if !bytes.Equal(r.out[14+50:], in[14:]) {
		t.Error("the inner packet changed")
	}
}

func TestPodElsewhere6(t *testing.T) {
	h := newHarness(t)
	to := func(dst string) result { return h.from6(segment(podA6.ip, dst, 1000, 80, "S")) }
	in := h.sent(podA, segment(podA6.ip, outside6, 1001, 80, "S"))
	if r := h.fromPod(podA, in); r.act != actOK || !bytes.Equal(r.out, in) {
		t.Errorf("to the world: verdict %d, want the stack and the packet as it was", r.act)
	}
	r := h.passed(to(self6))
	expect(t, r.out, podA6.ip, 1000, self6, 80)
	h.dropped(to("fd00:10:1::99"), maps.DropUnknownDestination)
	// This node's own ends of links have such addresses: they are not "the world".
	h.dropped(to("fe80::1"), maps.DropUnknownDestination)
	h.tables.IPCache.Set(key("fd00:9::1/128"), datapath.IPEntry{Identity: idR, Tunnel: netip.MustParseAddr("192.0.2.77")})
	h.sync()
	h.dropped(to("fd00:9::1"), maps.DropNoTunnelEndpoint)
}

func TestPodSpoofing6(t *testing.T) {
	h := newHarness(t)
	for _, src := range []string{podB6.ip, podR6.ip, self6, outside6, "fe80::2", "::"} {
		e := h.dropped(h.from6(segment(src, podR6.ip, 1000, 80, "S")), maps.DropSpoofedSource)
		if e.Endpoint != h.eps[podA.name].ID || e.SourceID != idA || e.Source.Addr() != addr(src).Unmap() && src != "::" ||
			e.Destination != netip.MustParseAddrPort("["+podR6.ip+"]:80") || e.Program != "from_pod" || e.Line == 0 ||
			e.Protocol != 6 || e.TCPFlags != 2 {
			t.Errorf("event %+v", e)
		}
	}
	packet := h.sent(podA, segment(podA6.ip, podR6.ip, 1000, 80, "S"))
	packet[11] ^= 1
	if e := h.dropped(h.fromPod(podA, packet), maps.DropSpoofedSource); !isFlow(e, "["+podA6.ip+"]:1000", "["+podR6.ip+"]:80") || e.SourceID != idA {
		t.Errorf("a frame with a foreign hardware address: event %+v", e)
	}

	// A pod without IPv6 has no source at all.
	ep := h.eps[podA.name]
	ep.Addrs = ep.Addrs[:1]
	h.tables.Endpoints.Set(ep.ID, ep)
	h.sync()
	for _, src := range []string{podA6.ip, "::"} {
		h.dropped(h.from6(segment(src, podB6.ip, 1000, 80, "S")), maps.DropSpoofedSource)
	}

	// All of a pod's addresses are its own.
	ep.Addrs = []netip.Addr{addr(podA.ip), addr("fd00:10:1::50"), addr("fd00:10:1::51")}
	h.tables.Endpoints.Set(ep.ID, ep)
	h.sync()
	h.passed(h.from6(segment("fd00:10:1::50", podB6.ip, 1000, 80, "S")))
	h.passed(h.from6(segment("fd00:10:1::51", podB6.ip, 1000, 80, "S")))
}

// Packets that nobody sends in earnest.
func TestPodMalformed6(t *testing.T) {
	h := newHarness(t)
	mapped := netip.MustParseAddr(podB.ip).As16()
	at := func(off int, b ...byte) func([]byte) []byte {
		return func(p []byte) []byte { copy(p[14+off:], b); return p }
	}
	loop := net.IPv6loopback
	for name, c := range map[string]struct {
		reason datapath.DropReason
		change func(p []byte) []byte
	}{
		"version":                 {maps.DropMalformed, at(0, 0x40)},
		"hop limit 0":             {maps.DropMalformed, at(7, 0)},
		"jumbogram":               {maps.DropMalformed, at(4, 0, 0)},
		"shorter than its header": {maps.DropMalformed, at(4, 0, 19)},
		"cut tcp":                 {maps.DropMalformed, func(p []byte) []byte { return p[:14+40+10] }},
		"from a mapped address":   {maps.DropMalformed, at(8, mapped[:]...)},
		"to a mapped address":     {maps.DropMalformed, at(24, mapped[:]...)},
		"from loopback":           {maps.DropMalformed, at(8, loop...)},
		"to loopback":             {maps.DropMalformed, at(24, loop...)},
		"to nobody":               {maps.DropMalformed, at(24, make([]byte, 16)...)},
		"from a group":            {maps.DropMalformed, at(8, 0xFF, 2)},
		"to a group":              {maps.DropMulticast, at(24, 0xFF, 2)},
		"ICMP of IPv4":            {maps.DropUnsupportedProtocol, at(6, 1)},
		"nothing behind":          {maps.DropUnsupportedProtocol, at(6, 59)},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.dropped(h.fromPod(podA, c.change(h.sent(podA, segment(podA6.ip, podR6.ip, 1, 2, "S")))), c.reason)
		})
	}
	t.Run("a kind of ICMPv6 that no flow has", func(t *testing.T) {
		h.t = t
		for _, kind := range []uint8{0, 5, 127, 138, 139, 200} {
			h.dropped(h.from6(message6(podA6.ip, podR6.ip, kind, 0, make([]byte, 8))), maps.DropUnsupportedProtocol)
		}
	})
}

func TestTooBig6(t *testing.T) {
	h := newHarness(t)
	h.passed(h.from6(datagram(podA6.ip, podR6.ip, 7, 9, 1450-48)))
	r := h.passed(h.from6(datagram(podA6.ip, podR6.ip, 7, 9, 1450-48+1)))
	if n := h.moved(metric{maps.DropPacketTooBig, datapath.Egress, "from_pod"}); n != 1 {
		t.Errorf("counter moved by %d", n)
	}
	_, i, _ := decode6(t, r.out)
	icmp := r.out[54:]
	if i.SrcIP.String() != self6 || i.DstIP.String() != podA6.ip || icmp[0] != 2 || icmp[1] != 0 ||
		binary.BigEndian.Uint32(icmp[4:]) != 1450 {
		t.Errorf("answer %v %x", i, icmp[:8])
	}
	if q := icmp[8:]; net.IP(q[8:24]).String() != podA6.ip || net.IP(q[24:40]).String() != podR6.ip || q[43] != 9 {
		t.Errorf("quoted packet %x", q)
	}
	// What a service's client sent was to the service.
	h.serve(vip6, 80, udp, podR6)
	h.sync()
	h.events()
	r = h.passed(h.from6(datagram(podA6.ip, vip6, 7, 80, 1450)))
	decode6(t, r.out)
	if q := r.out[54+8:]; net.IP(q[24:40]).String() != vip6 || q[43] != 80 {
		t.Errorf("quoted packet %x", q)
	}
	// A narrower node.
	a := addr(node2)
	h.tables.Nodes.Set(a, datapath.Node{Tunnel: a, ClusterID: 1, MTU: 1400})
	h.sync()
	r = h.passed(h.from6(datagram(podA6.ip, podR6.ip, 7, 9, 1400)))
	if mtu := binary.BigEndian.Uint32(r.out[54+4:]); mtu != 1350 {
		t.Errorf("told %d", mtu)
	}
	// The host is told as well, by the one that it asked: it is itself who would
	// tell.
	r = h.passed(h.fromHost(h.plain(datagram(self6, podR6.ip, 7, 9, 1400))))
	if _, i, _ := decode6(t, r.out); i.SrcIP.String() != podR6.ip || i.DstIP.String() != self6 {
		t.Errorf("answer %v", i)
	}
}

// An error that is too big itself is not answered.
func TestTooBigErrors(t *testing.T) {
	h := newHarness(t)
	const big = 1500
	for _, f := range families() {
		about := datagram(f.r.ip, f.a.ip, 7, 9, 8)
		h.passed(h.fromOverlay(h.tunnelled(node2, idR, about)))
		errorOf := func(size int) []gopacket.SerializableLayer {
			if isIPv6(f.a.ip) {
				return message6(f.a.ip, f.r.ip, 1, 4, append(make([]byte, 4), append(build(t, about...), make([]byte, size)...)...))
			}
			ls := unreachable(t, f.a.ip, f.r.ip, 3, about)
			ls[2] = append(ls[2].(gopacket.Payload), make([]byte, size)...)
			return ls
		}
		h.passed(h.fromPod(podA, h.sent(podA, errorOf(0))))
		h.dropped(h.fromPod(podA, h.sent(podA, errorOf(big))), maps.DropPacketTooBig)
	}
}

// See TestTooBigForNarrowPath.
func TestTooBigForNarrowPath6(t *testing.T) {
	h := newHarness(t)
	a := addr(node2)
	h.tables.Nodes.Set(a, datapath.Node{Tunnel: a, ClusterID: 1, MTU: 400})
	h.sync()
	const room = 400 - 50 - 48
	h.passed(h.from6(datagram(podA6.ip, podR6.ip, 7, 9, room)))
	if n := h.moved(metric{maps.DropPacketTooBig, datapath.Egress, "from_pod"}); n != 0 {
		t.Errorf("counter moved by %d", n)
	}
	r := h.passed(h.from6(datagram(podA6.ip, podR6.ip, 7, 9, room+1)))
	if n := h.moved(metric{maps.DropPacketTooBig, datapath.Egress, "from_pod"}); n != 1 {
		t.Errorf("counter moved by %d", n)
	}
	if mtu := binary.BigEndian.Uint32(r.out[54+4:]); mtu != 350 {
		t.Errorf("told %d", mtu)
	}
}

func TestSegmentSizeIsClamped6(t *testing.T) {
	h := newHarness(t)
	syn := func(src, dst, flags string, mss uint16) []gopacket.SerializableLayer {
		ls := segment(src, dst, 1000, 80, flags)
		ls[1].(*layers.TCP).Options = []layers.TCPOption{{OptionType: 2, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, mss)}}
		return ls
	}
	const fits = 1500 - 50 - 60
	for name, c := range map[string]struct {
		to    string
		flags string
		mss   uint16
		want  uint16
	}{
		"larger": {podR6.ip, "S", 1440, fits}, "answer": {podR6.ip, "SA", 1440, fits}, "smaller": {podR6.ip, "S", 500, 500},
		"no SYN": {podR6.ip, "A", 1440, 1440}, "local": {podB6.ip, "S", 1440, 1440},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			out := h.passed(h.from6(syn(podA6.ip, c.to, c.flags, c.mss))).out
			if c.to != podB6.ip {
				out = unwrapped(out)
			}
			decode6(t, out)
			if got := binary.BigEndian.Uint16(out[14+40+20+2:]); got != c.want {
				t.Errorf("segment size %d, want %d", got, c.want)
			}
			h.forgetFlows()
		})
	}
	t.Run("behind an extension header", func(t *testing.T) {
		h.t = t
		out := unwrapped(h.passed(h.from6(behind(t, syn(podA6.ip, podR6.ip, "S", 1440), extension{60, make([]byte, 6)}))).out)
		if got := binary.BigEndian.Uint16(out[14+48+20+2:]); got != fits {
			t.Errorf("segment size %d, want %d", got, fits)
		}
	})
}

// extension is an IPv6 extension header: its number, and what is behind its first
// two bytes.
type extension struct {
	kind byte
	body []byte
}

// behind puts extension headers into a packet.
func behind(t testing.TB, ls []gopacket.SerializableLayer, exts ...extension) []gopacket.SerializableLayer {
	t.Helper()
	whole := build(t, ls...)
	i := *ls[0].(*layers.IPv6)
	next := byte(i.NextHeader)
	var chain []byte
	for n := len(exts) - 1; n >= 0; n-- {
		e := append([]byte{next, byte((len(exts[n].body)+2)/8 - 1)}, exts[n].body...)
		if exts[n].kind == 44 {
			e[1] = 0
		}
		chain, next = append(e, chain...), exts[n].kind
	}
	i.NextHeader = layers.IPProtocol(next)
	raw := build(t, &i, gopacket.Payload(append(chain, whole[40:]...)))
	return []gopacket.SerializableLayer{&i, gopacket.Payload(raw[40:])}
}

func TestExtensionHeaders(t *testing.T) {
	h := newHarness(t)
	h.serve(vip6, 80, tcp, podR6)
	set := datapath.RuleSet{ID: 5, Egress: true, Entries: entries{{Direction: datapath.Egress, Protocol: tcp, Port: 80}: {}, {Direction: datapath.Egress, Protocol: tcp, Port: 8080}: {}}}
	h.rules(podA, set)
	hop, dst := extension{0, make([]byte, 6)}, extension{60, make([]byte, 14)}
	route := extension{43, []byte{0, 0, 0, 0, 0, 0}}
	atomic := extension{44, []byte{0, 0, 0, 0, 0, 7}}
	for name, c := range map[string]struct {
		exts   []extension
		port   uint16
		reason datapath.DropReason // 0: passes
	}{
		"options of hops":           {[]extension{hop}, 80, 0},
		"options of both":           {[]extension{hop, dst}, 80, 0},
		"the port counts":           {[]extension{hop, dst}, 81, maps.DropPolicyDenied},
		"six":                       {[]extension{dst, dst, dst, dst, dst, dst}, 80, 0},
		"seven":                     {[]extension{dst, dst, dst, dst, dst, dst, dst}, 80, maps.DropExtensionHeaders},
		"an atomic fragment":        {[]extension{atomic}, 80, 0},
		"an atomic fragment's port": {[]extension{atomic, dst}, 81, maps.DropPolicyDenied},
		"two fragment headers":      {[]extension{atomic, atomic}, 80, maps.DropMalformed},
		"a route":                   {[]extension{route}, 80, maps.DropSourceRoute},
		"a route behind options":    {[]extension{hop, dst, route}, 80, maps.DropSourceRoute},
		"a route that was gone":     {[]extension{{43, []byte{4, 0, 0, 0, 0, 0}}}, 80, maps.DropSourceRoute},
		"options of hops not first": {[]extension{dst, hop}, 80, maps.DropMalformed},
		"a chain beyond the packet": {[]extension{{60, []byte{0, 0, 0, 0, 0, 0}}}, 80, maps.DropMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			p := h.sent(podA, behind(t, segment(podA6.ip, podR6.ip, 1000, c.port, "S"), c.exts...))
			if name == "a chain beyond the packet" {
				p[14+41] = 200
			}
			r := h.fromPod(podA, p)
			if c.reason != 0 {
				h.dropped(r, c.reason)
			} else if got := unwrapped(h.passed(r).out); !bytes.Equal(got[14:], p[14:]) {
				t.Errorf("became %x", got)
			}
			h.forgetFlows()
		})
	}
	t.Run("through a service", func(t *testing.T) {
		h.t = t
		p := behind(t, segment(podA6.ip, vip6, 1000, 80, "S"), hop, dst, atomic)
		out := unwrapped(h.passed(h.from6(p)).out)
		l4 := 14 + 40 + 8 + 16 + 8
		plain := append(bytes.Clone(out[:14+40]), out[l4:]...)
		binary.BigEndian.PutUint16(plain[14+4:], uint16(len(plain)-54))
		plain[14+6] = tcp
		expect(t, plain, podA6.ip, 1000, podR6.ip, 8080)
	})
	t.Run("an idle service", func(t *testing.T) {
		h.t = t
		h.serve(vip6, 80, tcp)
		h.sync()
		r := h.from6(behind(t, segment(podA6.ip, vip6, 1001, 80, "S"), hop, dst))
		h.answered(r, maps.DropNoBackend)
		expect(t, r.out, vip6, 80, podA6.ip, 1001)
	})
}

// Policy knows the peers of IPv6 by their prefixes too; those of IPv6 say nothing
// about IPv4.
func TestCIDRIdentities6(t *testing.T) {
	h := newHarness(t)
	h.tables.IPCache.Set(key("2001:db8::/32"), datapath.IPEntry{Identity: cidr1})
	h.tables.IPCache.Set(key("2001:db8:1::/48"), datapath.IPEntry{Identity: cidr2})
	h.tables.IPCache.Set(key("2001:db8:0:7::1/128"), datapath.IPEntry{Identity: cidr2})
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{
		{Identity: cidr1}: {}, {Direction: datapath.Egress, Identity: cidr1}: {},
	}})
	try := func(src, dst string, id identity.Number, pass bool, port uint16) {
		t.Helper()
		in := h.fromOverlay(h.plain(segment(src, dst, port, 80, "S")))
		if pass {
			h.passed(in)
		} else if e := h.dropped(in, maps.DropPolicyDenied); e.SourceID != id {
			t.Errorf("from %s: identity %d, want %d", src, e.SourceID, id)
		}
		out := h.from6(segment(dst, src, port+100, 80, "S"))
		if !pass {
			if e := h.dropped(out, maps.DropPolicyDenied); e.DestID != id {
				t.Errorf("to %s: identity %d, want %d", src, e.DestID, id)
			}
		} else if out.act != actOK {
			t.Errorf("to %s: verdict %d", src, out.act)
		}
	}
	try("2001:db8:9::1", podA6.ip, cidr1, true, 1000)
	try("2001:db8:1::1", podA6.ip, cidr2, false, 1001)
	try("2001:db8:0:7::1", podA6.ip, cidr2, false, 1002)
	try("2001:db9::1", podA6.ip, identity.World, false, 1003)

	h.tables.IPCache.Set(key("::/0"), datapath.IPEntry{Identity: cidr1})
	h.sync()
	try("2001:db9::1", podA6.ip, cidr1, true, 1004)
	try("203.0.113.9", podA.ip, identity.World, false, 1005)
	h.tables.IPCache.Delete(key("::/0"))
	h.tables.IPCache.Set(key("0.0.0.0/0"), datapath.IPEntry{Identity: cidr1})
	h.sync()
	try("203.0.113.9", podA.ip, cidr1, true, 1006)
	try("2001:db9::1", podA6.ip, identity.World, false, 1007)
}

func TestBlocksConcernPods6(t *testing.T) {
	h := newHarness(t)
	h.tables.IPCache.Set(blockKey("fd00:10:2::/64"), datapath.IPEntry{Identity: block1})
	h.tables.IPCache.Set(blockKey(podB6.ip+"/128"), datapath.IPEntry{Identity: block1})
	h.tables.IPCache.Set(blockKey("0.0.0.0/0"), datapath.IPEntry{Identity: block2})
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{
		{Identity: block1}: {}, {Direction: datapath.Egress, Identity: block1}: {},
	}})
	syn := h.sent(podA, segment(podA6.ip, podB6.ip, 1000, 80, "S"))
	h.passed(h.from6(segment(podA6.ip, podR6.ip, 1000, 80, "S")))
	h.passed(h.fromPod(podA, syn))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 1001, 80, "S"))))
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB6.ip, podA6.ip, 1001, 80, "S"))))
	h.dropped(h.fromOverlay(h.tunnelled(node3, idX, segment(podX6.ip, podA6.ip, 1001, 80, "S"))), maps.DropPolicyDenied)
	h.dropped(h.from6(segment(podA.ip, podB.ip, 1000, 80, "S")), maps.DropPolicyDenied)
	h.tables.IPCache.Delete(blockKey(podB6.ip + "/128"))
	h.sync()
	h.dropped(h.fromPod(podA, syn), maps.DropPolicyDenied)
}
