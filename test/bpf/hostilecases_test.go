// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	dpmaps "github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// hostiles are the hostile packets of a family, each with what comes of it.
func hostiles(t testing.TB, f family) []hostile {
	return slices.Concat(badChecksums(t, f), optionsOf4(), routes6(t), groups(f), badHeaders(), badFragments(t, f), spoofed(f), badTunnels())
}

// one makes a single packet.
func one(ls func(src, dst string, n uint16) []gopacket.SerializableLayer) func(string, string, uint16) [][]gopacket.SerializableLayer {
	return func(src, dst string, n uint16) [][]gopacket.SerializableLayer {
		return [][]gopacket.SerializableLayer{ls(src, dst, n)}
	}
}

// Checksums are for who receives: a bad one is neither mended nor looked at here,
// and the packet is judged and remembered by what it says.
func badChecksums(t testing.TB, f family) []hostile {
	hdr := 20
	if isIPv6(f.a.ip) {
		hdr = 40
	}
	flip := func(off int) func([]byte, int) []byte {
		return func(p []byte, at int) []byte { p[at+off] ^= 0x55; return p }
	}
	return []hostile{
		{name: "bad checksum of IP", only: 4, mangle: flip(10), want: always(passes)},
		{name: "no checksum of IP", only: 4, mangle: put(10, 0, 0), want: always(passes)},
		{name: "bad checksum of TCP", mangle: flip(hdr + 16), want: always(passes)},
		{name: "bad checksum of UDP", mangle: flip(hdr + 6), want: always(passes), make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return datagram(src, dst, n, 80, 8)
		})},
		{name: "no checksum of UDP", mangle: put(hdr+6, 0, 0), want: always(passes), make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return datagram(src, dst, n, 80, 8)
		})},
		{name: "bad checksum of SCTP", mangle: flip(hdr + 8), want: always(passes), make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return chunk(src, dst, n, 80, 8)
		})},
		{name: "bad checksum of an echo", mangle: flip(hdr + 2), want: always(passes), make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return echoOf(src, dst, n)
		})},
		{name: "bad checksum of an ICMP error about nothing", mangle: flip(hdr + 2), want: always(dpmaps.DropUnrelatedICMP),
			make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
				return failure(t, src, dst, segment(dst, src, n, 80, "A"))
			})},
	}
}

// failure is "unreachable" of either family.
func failure(t testing.TB, src, dst string, about []gopacket.SerializableLayer) []gopacket.SerializableLayer {
	t.Helper()
	quoted := build(t, about...)
	if isIPv6(src) {
		return message6(src, dst, 1, 4, append(make([]byte, 4), quoted[:48]...))
	}
	return []gopacket.SerializableLayer{
		ip(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(quoted[:28]),
	}
}

// Options of IPv4 pass nowhere: behind them the ports are elsewhere, and a source
// route has the packet go past who judged it.
func optionsOf4() (out []hostile) {
	route := func(kind uint8) layers.IPv4Option {
		hop := netip.MustParseAddr(podA.ip).As4()
		return layers.IPv4Option{OptionType: kind, OptionLength: 7, OptionData: append([]byte{4}, hop[:]...)}
	}
	for name, o := range map[string][]layers.IPv4Option{
		"loose source route":           {route(131)},
		"strict source route":          {route(137)},
		"source route behind nothings": {{OptionType: 1, OptionLength: 1}, route(131)},
		"record route":                 {route(7)},
		"timestamp":                    {{OptionType: 68, OptionLength: 8, OptionData: []byte{5, 0, 0, 0, 0, 0}}},
		"router alert":                 {{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}},
		"security":                     {{OptionType: 130, OptionLength: 11, OptionData: make([]byte, 9)}},
		"nothings":                     {{OptionType: 1, OptionLength: 1}, {OptionType: 1, OptionLength: 1}, {OptionType: 1, OptionLength: 1}, {OptionType: 1, OptionLength: 1}},
		"option without an end":        {{OptionType: 131, OptionLength: 40, OptionData: make([]byte, 38)}},
		"unknown option":               {{OptionType: 222, OptionLength: 4, OptionData: []byte{1, 2}}},
	} {
		out = append(out, hostile{name: name, only: 4, want: always(dpmaps.DropIPOptions),
			make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
				ls := segment(src, dst, n, 80, "S")
				ls[0].(*layers.IPv4).Options = o
				return ls
			})})
	}
	// To the host itself they are its stack's matter, and no masqueraded answer.
	return append(out, hostile{name: "source route to the node", only: 4, want: outcomes{"wire": toStack},
		make: one(func(src, _ string, n uint16) []gopacket.SerializableLayer {
			ls := segment(src, self, n, 80, "S")
			ls[0].(*layers.IPv4).Options = []layers.IPv4Option{route(131)}
			return ls
		})})
}

// Routing headers of every type pass nowhere (RFC 5095), wherever they are, and even
// when nothing is left of the route.
func routes6(t testing.TB) (out []hostile) {
	hop := netip.MustParseAddr(podA6.ip).As16()
	with := func(kind, left byte) extension {
		return extension{43, slices.Concat([]byte{kind, left, 0, 0, 0, 0}, hop[:])}
	}
	dst, atomic := extension{60, make([]byte, 6)}, extension{44, []byte{0, 0, 0, 0, 0, 9}}
	for name, exts := range map[string][]extension{
		"routing header 0":               {with(0, 1)},
		"routing header 0, used up":      {with(0, 0)},
		"routing header 2":               {with(2, 1)},
		"routing header 4":               {with(4, 1)},
		"routing header 253":             {with(253, 1)},
		"routing header behind options":  {dst, with(0, 1)},
		"routing header of a fragment":   {atomic, with(0, 1)},
		"routing header shorter than it": {{43, []byte{0, 1, 0, 0, 0, 0}}},
	} {
		out = append(out, hostile{name: name, only: 6, want: always(dpmaps.DropSourceRoute),
			make: func(src, to string, n uint16) [][]gopacket.SerializableLayer {
				return [][]gopacket.SerializableLayer{behind(t, segment(src, to, n, 80, "S"), exts...)}
			}})
	}
	return out
}

// Nobody sends to, or from, more than one; a frame's group address is another matter,
// for a packet is judged by its own.
func groups(f family) (out []hostile) {
	to := func(dst string) func(string, string, uint16) [][]gopacket.SerializableLayer {
		return one(func(src, _ string, n uint16) []gopacket.SerializableLayer { return datagram(src, dst, n, 80, 8) })
	}
	from := func(src string) func(string, string, uint16) [][]gopacket.SerializableLayer {
		return one(func(_, dst string, n uint16) []gopacket.SerializableLayer { return datagram(src, dst, n, 80, 8) })
	}
	destinations, sources := []string{"255.255.255.255", "224.0.0.1", "239.255.255.250"}, []string{"255.255.255.255", "224.0.0.1", "127.0.0.1", "0.0.0.0"}
	spoof := dpmaps.DropSpoofedSource
	wants := outcomes{"": spoof}
	if isIPv6(f.a.ip) {
		destinations, sources = []string{"ff02::1", "ff0e::1", "ff05::2"}, []string{"ff02::1", "::1"}
		wants = always(dpmaps.DropMalformed)
	}
	for _, dst := range destinations {
		out = append(out, hostile{name: "to " + dst, make: to(dst), want: outcomes{"": dpmaps.DropMulticast, "wire": toStack}})
	}
	for _, src := range sources {
		out = append(out, hostile{name: "from " + src, make: from(src), want: wants})
	}
	frame := func(off int, mac ...byte) func([]byte, int) []byte {
		return func(p []byte, at int) []byte { copy(p[at-14+off:], mac); return p }
	}
	return append(out,
		hostile{name: "frame to all", mangle: frame(0, 255, 255, 255, 255, 255, 255), want: always(passes)},
		hostile{name: "frame to a group", mangle: frame(0, 1, 0, 0x5E, 0, 0, 1), want: always(passes)},
		hostile{name: "frame from a group", mangle: frame(6, 1, 0, 0x5E, 0, 0, 1), want: outcomes{"pod": spoof, "tunnel": passes, "wire": passes, "host": passes}},
		hostile{name: "frame from nobody", mangle: frame(6, 0, 0, 0, 0, 0, 0), want: outcomes{"pod": spoof, "tunnel": passes, "wire": passes, "host": passes}},
	)
}

// Headers that say what is not so.
func badHeaders() []hostile {
	malformed, unsupported := dpmaps.DropMalformed, dpmaps.DropUnsupportedProtocol
	proto := func(off int, p byte, r outcomes, only uint8, name string) hostile {
		return hostile{name: name, only: only, mangle: mend4(only, put(off, p)), want: r}
	}
	return []hostile{
		{name: "version 6 in a frame of IPv4", only: 4, mangle: put(0, 0x65), want: always(malformed)},
		{name: "version 0", only: 4, mangle: put(0, 0x05), want: always(malformed)},
		{name: "header of 16 bytes", only: 4, mangle: put(0, 0x44), want: always(malformed)},
		{name: "header of 60 bytes that are not there", only: 4, mangle: put(0, 0x4F), want: always(dpmaps.DropIPOptions)},
		{name: "version 4 in a frame of IPv6", only: 6, mangle: put(0, 0x40), want: always(malformed)},
		{name: "hop limit 0", only: 6, mangle: put(7, 0), want: always(malformed)},
		{name: "length 0", only: 6, mangle: put(4, 0, 0), want: always(malformed)},
		{name: "length below TCP's", only: 6, mangle: put(4, 0, 19), want: always(malformed)},
		// The receiver's stack cuts or drops these: what it reads is what was judged.
		{name: "length beyond the frame", only: 6, mangle: put(4, 0xFF, 0), want: always(passes)},
		{name: "length beyond the frame", only: 4, mangle: mend(put(2, 0xFF, 0)), want: always(passes)},
		{name: "length below the header's", only: 4, mangle: mend(put(2, 0, 4)), want: always(passes)},
		{name: "time to live 0", only: 4, mangle: mend(put(8, 0)), want: always(passes)},
		proto(9, 58, always(unsupported), 4, "ICMPv6 in IPv4"),
		proto(9, 255, always(unsupported), 4, "reserved protocol"),
		proto(6, 1, always(unsupported), 6, "ICMP in IPv6"),
		proto(6, 255, always(unsupported), 6, "reserved protocol"),
		proto(6, 59, always(unsupported), 6, "nothing behind"),
		proto(9, 4, always(dpmaps.DropPolicyDenied), 4, "IPv4 in IPv4"),
		proto(9, 47, always(dpmaps.DropPolicyDenied), 4, "GRE"),
		proto(6, 41, always(dpmaps.DropPolicyDenied), 6, "IPv6 in IPv6"),
		proto(6, 51, always(dpmaps.DropPolicyDenied), 6, "authentication header before TCP"),
		{name: "all of TCP's flags", make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return segment(src, dst, n, 80, "SAFR")
		}), want: always(passes)},
		{name: "none of TCP's flags", make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return segment(src, dst, n, 80, "")
		}), want: always(passes)},
		{name: "VLAN tag", mangle: func(p []byte, at int) []byte { copy(p[at-2:], []byte{0x81, 0}); return p },
			want: outcomes{"pod": unsupported, "tunnel": unsupported, "wire": toStack, "host": unsupported}},
	}
}

func mend4(family uint8, change func([]byte, int) []byte) func([]byte, int) []byte {
	if family == 6 {
		return change
	}
	return mend(change)
}

// Fragments that overlap, are too small to be judged, or make no datagram.
func badFragments(t testing.TB, f family) []hostile {
	part := func(ls []gopacket.SerializableLayer, id uint16, off, end int) []gopacket.SerializableLayer {
		return partOf(t, ls, id, off, end)
	}
	parts := func(cuts ...[2]int) func(string, string, uint16) [][]gopacket.SerializableLayer {
		return func(src, dst string, n uint16) (out [][]gopacket.SerializableLayer) {
			for _, c := range cuts {
				out = append(out, part(datagram(src, dst, n, 80, 600), n, c[0], c[1]))
			}
			return out
		}
	}
	tcpPart := func(off, end int) func(string, string, uint16) [][]gopacket.SerializableLayer {
		return one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return part(segment(src, dst, n, 80, "S"), n, off, end)
		})
	}
	word, far := 6, []byte{0x1F, 0xFF} // where the offset is, and one that is too far
	if isIPv6(f.a.ip) {
		word, far = 42, []byte{0xFF, 0xF8}
	}
	odd := func(p []byte, at int) []byte { // one byte less, and another to come
		p = p[:len(p)-1]
		if word == 6 {
			binary.BigEndian.PutUint16(p[at+2:], binary.BigEndian.Uint16(p[at+2:])-1)
			return p
		}
		binary.BigEndian.PutUint16(p[at+4:], binary.BigEndian.Uint16(p[at+4:])-1)
		return p
	}
	return []hostile{
		{name: "fragment over the first", make: parts([2]int{0, 296}, [2]int{200, 400}), want: always(dpmaps.DropOverlap)},
		{name: "fragment into the ports", make: parts([2]int{0, 296}, [2]int{8, 400}), want: always(dpmaps.DropOverlap)},
		{name: "fragment that ends where the first does", make: parts([2]int{0, 296}, [2]int{288, 296}), want: always(dpmaps.DropOverlap)},
		{name: "fragment without a first", make: parts([2]int{296, 400}), want: always(dpmaps.DropEarlyFragment)},
		{name: "tiny first fragment of 8", make: tcpPart(0, 8), want: always(dpmaps.DropTinyFragment)},
		{name: "tiny first fragment of 16", make: tcpPart(0, 16), want: always(dpmaps.DropTinyFragment)},
		{name: "flags in a second fragment", make: tcpPart(8, whole), want: always(dpmaps.DropEarlyFragment)},
		{name: "fragment of odd length", make: parts([2]int{0, 296}), mangle: odd, want: always(dpmaps.DropMalformed)},
		{name: "fragment beyond 64 KiB", make: parts([2]int{0, 296}, [2]int{296, 400}), mangle: put(word, far...), want: always(dpmaps.DropMalformed)},
		{name: "fragments in order", make: parts([2]int{0, 296}, [2]int{296, whole}), want: always(passes)},
		{name: "error in fragments", make: one(func(src, dst string, n uint16) []gopacket.SerializableLayer {
			return part(failure(t, src, dst, datagram(dst, src, 80, n, 64)), n, 0, 24)
		}), want: always(dpmaps.DropMalformed)},
	}
}

// Sources that are not the sender's.
func spoofed(f family) []hostile {
	from := func(src string) func(string, string, uint16) [][]gopacket.SerializableLayer {
		return one(func(_, dst string, n uint16) []gopacket.SerializableLayer { return segment(src, dst, n, 80, "S") })
	}
	spoof := dpmaps.DropSpoofedSource
	return []hostile{
		{name: "source of a local pod", make: from(f.a.ip), want: outcomes{"tunnel": spoof, "wire": spoof, "host": spoof}},
		{name: "source of the receiver", make: from(f.b.ip), want: always(spoof)},
		{name: "source of this node", make: from(f.self), want: outcomes{"pod": spoof, "tunnel": spoof, "wire": spoof}},
		{name: "source of another node's pod", make: from(f.x.ip), want: outcomes{"pod": spoof, "tunnel": spoof, "wire": passes, "host": passes}},
		{name: "source of another node", make: from(f.node3), want: outcomes{"pod": spoof, "tunnel": spoof, "wire": passes, "host": passes}},
		{name: "source outside", make: from(f.outside), want: outcomes{"pod": spoof, "tunnel": spoof}},
	}
}

// Tunnel packets of who may not send them, or not like this.
func badTunnels() []hostile {
	outer := func(off int, b ...byte) func([]byte, int) []byte {
		return func(p []byte, at int) []byte { copy(p[at-50+off:], b); return p }
	}
	vni := func(n identity.Number) func([]byte, int) []byte {
		return outer(32, byte(n>>16), byte(n>>8), byte(n))
	}
	tunnel := func(r datapath.DropReason) outcomes { return outcomes{"tunnel": r} }
	return []hostile{
		{name: "sender that is no node", mangle: outer(12, 192, 0, 2, 99), want: tunnel(dpmaps.DropUnknownSender)},
		{name: "sender that is a pod", mangle: outer(12, 10, 2, 0, 5), want: tunnel(dpmaps.DropUnknownSender)},
		{name: "sender that is this node", mangle: outer(12, 192, 0, 2, 1), want: tunnel(dpmaps.DropUnknownSender)},
		{name: "identity of another cluster", mangle: vni(idX), want: tunnel(dpmaps.DropSpoofedIdentity)},
		{name: "identity of the host", mangle: vni(identity.Host), want: tunnel(dpmaps.DropSpoofedIdentity)},
		{name: "identity of the world", mangle: vni(identity.World), want: tunnel(dpmaps.DropSpoofedIdentity)},
		{name: "no identity", mangle: vni(0), want: tunnel(dpmaps.DropSpoofedIdentity)},
		{name: "identity of a node with a pod's source", mangle: vni(identity.RemoteNode), want: tunnel(dpmaps.DropSpoofedSource)},
		{name: "identity that nobody has", mangle: vni(1<<16 + 999), want: tunnel(dpmaps.DropIdentityUnknown)},
		{name: "node of another cluster", mangle: outer(12, 192, 0, 2, 3), want: tunnel(dpmaps.DropSpoofedIdentity)},
		{name: "no VNI", mangle: outer(28, 0), want: tunnel(dpmaps.DropMalformed)},
		{name: "more than a VNI", mangle: outer(28, 0x0C), want: tunnel(dpmaps.DropMalformed)},
		{name: "ARP inside", mangle: outer(48, 8, 6), want: tunnel(dpmaps.DropUnsupportedProtocol)},
		{name: "bad outer checksum of IP", mangle: outer(10, 0, 0), want: tunnel(passes)},
		{name: "outer fragment", mangle: outer(6, 0x20, 0), want: tunnel(toStack)},
		{name: "outer options", mangle: outer(0, 0x46), want: tunnel(toStack)},
		{name: "another port", mangle: outer(22, 0x12, 0x34), want: tunnel(toStack)},
		{name: "another node's tunnel", mangle: outer(16, 192, 0, 2, 7), want: tunnel(toStack)},
	}
}
