// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/identity"
)

func build(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ls...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func ether(src, dst [6]byte) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src[:], DstMAC: dst[:], EthernetType: layers.EthernetTypeIPv4}
}

func ip(src, dst string, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, IHL: 5, TTL: 64, Protocol: proto, TOS: 0xB9,
		SrcIP: net.ParseIP(src).To4(), DstIP: net.ParseIP(dst).To4(),
	}
}

func ip6(src, dst string, proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, HopLimit: 64, NextHeader: proto, TrafficClass: 0xB9,
		SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst),
	}
}

func isIPv6(a string) bool { return strings.Contains(a, ":") }

// network is the IP header between two addresses of one family.
func network(src, dst string, proto layers.IPProtocol) interface {
	gopacket.NetworkLayer
	gopacket.SerializableLayer
} {
	if isIPv6(src) {
		return ip6(src, dst, proto)
	}
	return ip(src, dst, proto)
}

// segment is a TCP packet's layers from IP on; flags as in "S", "SA", "A", "F",
// "R".
func segment(src, dst string, sport, dport uint16, flags string) []gopacket.SerializableLayer {
	i := network(src, dst, layers.IPProtocolTCP)
	tcp := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Window: 1000}
	for _, f := range flags {
		switch f {
		case 'S':
			tcp.SYN = true
		case 'A':
			tcp.ACK = true
		case 'F':
			tcp.FIN = true
		case 'R':
			tcp.RST = true
		}
	}
	_ = tcp.SetNetworkLayerForChecksum(i)
	return []gopacket.SerializableLayer{i, tcp, gopacket.Payload("data")}
}

func datagram(src, dst string, sport, dport uint16, payload int) []gopacket.SerializableLayer {
	i := network(src, dst, layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	_ = udp.SetNetworkLayerForChecksum(i)
	return []gopacket.SerializableLayer{i, udp, gopacket.Payload(make([]byte, payload))}
}

// chunk is an SCTP packet with some payload.
func chunk(src, dst string, sport, dport uint16, payload int) []gopacket.SerializableLayer {
	return []gopacket.SerializableLayer{
		network(src, dst, layers.IPProtocolSCTP),
		&layers.SCTP{SrcPort: layers.SCTPPort(sport), DstPort: layers.SCTPPort(dport), VerificationTag: 7},
		gopacket.Payload(make([]byte, payload)),
	}
}

func echoRequest(src, dst string) []gopacket.SerializableLayer { return echoOf(src, dst, 77) }

// echoOf is an echo request with an identifier.
func echoOf(src, dst string, id uint16) []gopacket.SerializableLayer {
	if isIPv6(src) {
		return message6(src, dst, layers.ICMPv6TypeEchoRequest, 0, []byte{byte(id >> 8), byte(id), 0, 1})
	}
	return []gopacket.SerializableLayer{
		ip(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: id, Seq: 1},
	}
}

// message6 is an ICMPv6 message.
func message6(src, dst string, kind, code uint8, body []byte) []gopacket.SerializableLayer {
	i := ip6(src, dst, layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)}
	_ = icmp.SetNetworkLayerForChecksum(i)
	return []gopacket.SerializableLayer{i, icmp, gopacket.Payload(body)}
}

// framed puts an Ethernet header before a packet.
func framed(t testing.TB, src, dst [6]byte, ls []gopacket.SerializableLayer) []byte {
	t.Helper()
	return build(t, append([]gopacket.SerializableLayer{etherOf(src, dst, ls)}, ls...)...)
}

func etherOf(src, dst [6]byte, ls []gopacket.SerializableLayer) *layers.Ethernet {
	eth := ether(src, dst)
	if _, ok := ls[0].(*layers.IPv6); ok {
		eth.EthernetType = layers.EthernetTypeIPv6
	}
	return eth
}

// sent is a packet as a pod of this node sends it.
func (h *harness) sent(p host, ls []gopacket.SerializableLayer) []byte {
	h.t.Helper()
	ep := h.eps[p.name]
	return framed(h.t, ep.PodMAC, ep.HostMAC, ls)
}

// plain is a packet on a wire.
func (h *harness) plain(ls []gopacket.SerializableLayer) []byte {
	h.t.Helper()
	return framed(h.t, [6]byte{2, 9}, [6]byte{2, 8}, ls)
}

// tunnelled is a packet wrapped by a node.
func (h *harness) tunnelled(node string, id identity.Number, ls []gopacket.SerializableLayer) []byte {
	h.t.Helper()
	outer := ip(node, self, layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: 40000, DstPort: 8472}
	_ = udp.SetNetworkLayerForChecksum(outer)
	return build(h.t, append([]gopacket.SerializableLayer{
		ether([6]byte{2, 9}, [6]byte{2, 8}), outer, udp, &layers.VXLAN{ValidIDFlag: true, VNI: uint32(id)},
		etherOf([6]byte{2, 7}, [6]byte{2, 6}, ls),
	}, ls...)...)
}

// decode6 is decode for IPv6; without a transport layer its answer's last is nil.
func decode6(t testing.TB, b []byte) (eth *layers.Ethernet, i *layers.IPv6, l4 gopacket.TransportLayer) {
	t.Helper()
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	eth, _ = p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	i, _ = p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	if eth == nil || i == nil {
		t.Fatalf("not an IPv6 packet: %v", p)
	}
	type summed interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}
	for _, l := range p.Layers() {
		if s, ok := l.(summed); ok {
			_ = s.SetNetworkLayerForChecksum(i)
		}
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) != 0 {
		t.Errorf("checksums: %v %v in %v", err, bad, p)
	}
	if int(i.Length)+14+40 != len(b) {
		t.Errorf("payload length %d in a packet of %d bytes", i.Length, len(b))
	}
	return eth, i, p.TransportLayer()
}

// decode reads the layers of what came out, and checks every checksum.
func decode(t testing.TB, b []byte) (eth *layers.Ethernet, i *layers.IPv4, l4 gopacket.TransportLayer) {
	t.Helper()
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	eth, _ = p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	i, _ = p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if eth == nil || i == nil {
		t.Fatalf("not an IPv4 packet: %v", p)
	}
	switch l := p.TransportLayer().(type) {
	case *layers.TCP:
		_ = l.SetNetworkLayerForChecksum(i)
	case *layers.UDP:
		_ = l.SetNetworkLayerForChecksum(i)
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) != 0 {
		t.Errorf("checksums: %v %v in %v", err, bad, p)
	}
	return eth, i, p.TransportLayer()
}

func ports(l4 gopacket.TransportLayer) (src, dst uint16) {
	switch v := l4.(type) {
	case *layers.TCP:
		return uint16(v.SrcPort), uint16(v.DstPort)
	case *layers.UDP:
		return uint16(v.SrcPort), uint16(v.DstPort)
	case *layers.SCTP:
		return uint16(v.SrcPort), uint16(v.DstPort)
	}
	return 0, 0
}

// payload is so many bytes.
func payload(n int) gopacket.Payload { return make([]byte, n) }
