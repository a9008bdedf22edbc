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

func TestPodToLocalPod(t *testing.T) {
	h := newHarness(t)
	r := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S"))))
	eth, i, _ := decode(t, r.out)
	b := h.eps[podB.name]
	if !bytes.Equal(eth.DstMAC, b.PodMAC[:]) || !bytes.Equal(eth.SrcMAC, b.HostMAC[:]) {
		t.Errorf("MACs %s → %s", eth.SrcMAC, eth.DstMAC)
	}
	if i.SrcIP.String() != podA.ip || i.DstIP.String() != podB.ip {
		t.Errorf("addresses %s → %s", i.SrcIP, i.DstIP)
	}
	if all, open := h.flows(); len(all) != 1 || open != 1 {
		t.Errorf("%d flows, %d half-open after a SYN, want 1 and 1", len(all), open)
	}
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB.ip, podA.ip, 80, 1000, "SA"))))
}

func TestPodToRemotePod(t *testing.T) {
	h := newHarness(t)
	in := h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))
	r := h.passed(h.fromPod(podA, in))
	p := gopacket.NewPacket(r.out, layers.LayerTypeEthernet, gopacket.Default)
	outer := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if outer.SrcIP.String() != self || outer.DstIP.String() != node2 || outer.TOS != 0xB9 ||
		outer.Flags != layers.IPv4DontFragment || int(outer.Length) != len(in)-14+50 {
		t.Errorf("outer header %+v", outer)
	}
	if udp.DstPort != 8472 || udp.SrcPort < 0x8000 || udp.Checksum != 0 || int(udp.Length) != len(in)-14+30 {
		t.Errorf("outer UDP %+v", udp)
	}
	vxlan := r.out[14+20+8:]
	if binary.BigEndian.Uint32(vxlan) != 0x08000000 || binary.BigEndian.Uint32(vxlan[4:]) != uint32(podA.id)<<8 {
		t.Errorf("VXLAN header %x, want VNI %x", vxlan[:8], podA.id)
	}
	if !bytes.Equal(r.out[14+50:], in[14:]) {
		t.Error("the inner packet changed")
	}
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(r.out[i:]))
	}
	if sum&0xFFFF+sum>>16 != 0xFFFF {
		t.Errorf("outer IP checksum is wrong")
	}
}

func TestPodElsewhere(t *testing.T) {
	h := newHarness(t)
	if r := h.fromPod(podA, h.sent(podA, segment(podA.ip, "203.0.113.9", 1000, 80, "S"))); r.act != actOK {
		t.Errorf("to the world: verdict %d, want the stack", r.act)
	}
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, self, 1000, 80, "S"))))
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, "10.1.0.99", 1000, 80, "S"))), maps.DropUnknownDestination)
	lost := netip.MustParseAddr("192.0.2.77")
	h.tables.IPCache.Set(key("10.9.0.1/32"), datapath.IPEntry{Identity: idR, Tunnel: lost})
	h.sync()
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, "10.9.0.1", 1000, 80, "S"))), maps.DropNoTunnelEndpoint)
}

func TestPodSpoofing(t *testing.T) {
	h := newHarness(t)
	e := h.dropped(h.fromPod(podA, h.sent(podA, segment(podB.ip, podR.ip, 1000, 80, "S"))), maps.DropSpoofedSource)
	if e.Endpoint != h.eps[podA.name].ID || e.SourceID != idA || e.Source.Addr().String() != podB.ip ||
		e.Destination != netip.MustParseAddrPort(podR.ip+":80") || e.Program != "from_pod" || e.Line == 0 ||
		e.Protocol != 6 || e.TCPFlags != 2 {
		t.Errorf("event %+v", e)
	}
	packet := h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))
	packet[11] ^= 1
	if e := h.dropped(h.fromPod(podA, packet), maps.DropSpoofedSource); !isFlow(e, podA.ip+":1000", podR.ip+":80") || e.SourceID != idA {
		t.Errorf("a frame with a foreign hardware address: event %+v", e)
	}
	if flows, open := h.flows(); len(flows) != 0 || open != 0 {
		t.Errorf("%d and %d flows are left behind", len(flows), open)
	}
}

// isFlow reports whether an event has this tuple.
func isFlow(e datapath.Event, src, dst string) bool {
	return e.Source == netip.MustParseAddrPort(src) && e.Destination == netip.MustParseAddrPort(dst)
}

// What is on no wire is nobody's, whatever policy says of the outside, directly or
// behind a service; the stack, to which it might be its own loopback, does not see it.
func TestPodToNowhere(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	h.tables.IPCache.Set(key("0.0.0.0/0"), datapath.IPEntry{Identity: identity.LocalBase + 9})
	h.serve(vip, 80, udp, host{ip: "127.0.0.1"})
	h.sync()
	for _, dst := range []string{"127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3"} {
		for _, ls := range [][]gopacket.SerializableLayer{datagram(podA.ip, dst, 1000, 80, 4), segment(podA.ip, dst, 1000, 80, "S"), echoRequest(podA.ip, dst)} {
			if e := h.dropped(h.fromPod(podA, h.sent(podA, ls)), maps.DropUnknownDestination); e.DestID != identity.Unknown || e.Destination.Addr().String() != dst {
				t.Errorf("event %+v", e)
			}
		}
		h.dropped(h.fromHost(h.plain(segment(self, dst, 1000, 80, "S"))), maps.DropUnknownDestination)
	}
	h.dropped(h.fromPod(podA, h.sent(podA, datagram(podA.ip, vip, 1000, 80, 4))), maps.DropUnknownDestination)
	if flows, open := h.flows(); len(flows) != 0 || open != 0 {
		t.Errorf("%d and %d flows are left behind", len(flows), open)
	}
	h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, "126.0.0.1", 1000, 80, 4))), "126.0.0.1", 80)
	h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, "128.0.0.1", 1000, 80, 4))), "128.0.0.1", 80)
}

func TestPodMalformed(t *testing.T) {
	h := newHarness(t)
	for name, c := range map[string]struct {
		reason datapath.DropReason
		change func(p []byte) []byte
	}{
		"protocol":  {maps.DropUnsupportedProtocol, func(p []byte) []byte { p[12], p[13] = 0x81, 0; return p }},
		"options":   {maps.DropIPOptions, func(p []byte) []byte { p[14] = 0x46; return p }},
		"version":   {maps.DropMalformed, func(p []byte) []byte { p[14] = 0x25; return p }},
		"later":     {maps.DropEarlyFragment, func(p []byte) []byte { p[21] = 9; return p }},
		"multicast": {maps.DropMulticast, func(p []byte) []byte { p[30] = 224; return p }},
		"icmpv6":    {maps.DropUnsupportedProtocol, func(p []byte) []byte { p[23] = 58; return p }},
		"short tcp": {maps.DropMalformed, func(p []byte) []byte { return p[:14+20+10] }},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.dropped(h.fromPod(podA, c.change(h.sent(podA, segment(podA.ip, podR.ip, 1, 2, "S")))), c.reason)
		})
	}
}

func TestTooBig(t *testing.T) {
	h := newHarness(t)
	fits := h.sent(podA, datagram(podA.ip, podR.ip, 7, 9, 1450-28))
	h.passed(h.fromPod(podA, fits))
	r := h.fromPod(podA, h.sent(podA, datagram(podA.ip, podR.ip, 7, 9, 1450-28+1)))
	h.passed(r)
	if n := h.moved(metric{maps.DropPacketTooBig, datapath.Egress, "from_pod"}); n != 1 {
		t.Errorf("counter moved by %d", n)
	}
	_, i, _ := decode(t, r.out)
	icmp := r.out[34:]
	if i.DstIP.String() != podA.ip || i.Protocol != layers.IPProtocolICMPv4 || icmp[0] != 3 || icmp[1] != 4 ||
		binary.BigEndian.Uint16(icmp[6:]) != 1450 {
		t.Errorf("answer %v %x", i, icmp[:8])
	}
	if !bytes.Equal(icmp[8+12:8+20], append(net.ParseIP(podA.ip).To4(), net.ParseIP(podR.ip).To4()...)) {
		t.Errorf("quoted packet %x", icmp[8:])
	}
}

// A path that is known to take less than any should is asked about all the same.
func TestTooBigForNarrowPath(t *testing.T) {
	h := newHarness(t)
	a := netip.MustParseAddr(node2)
	h.tables.Nodes.Set(a, datapath.Node{Tunnel: a, ClusterID: 1, MTU: 400})
	h.sync()
	h.passed(h.fromPod(podA, h.sent(podA, datagram(podA.ip, podR.ip, 7, 9, 350-28))))
	if n := h.moved(metric{maps.DropPacketTooBig, datapath.Egress, "from_pod"}); n != 0 {
		t.Errorf("counter moved by %d", n)
	}
	r := h.passed(h.fromPod(podA, h.sent(podA, datagram(podA.ip, podR.ip, 7, 9, 350-28+1))))
	if n := h.moved(metric{maps.DropPacketTooBig, datapath.Egress, "from_pod"}); n != 1 {
		t.Errorf("counter moved by %d", n)
	}
	if got := binary.BigEndian.Uint16(r.out[34+6:]); got != 350 {
		t.Errorf("told an MTU of %d, want 350", got)
	}
}

func TestARP(t *testing.T) {
	h := newHarness(t)
	a := h.eps[podA.name]
	ask := func(target string) []byte {
		return build(t, &layers.Ethernet{
			SrcMAC: a.PodMAC[:], DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP,
		}, &layers.ARP{
			AddrType: 1, Protocol: 0x0800, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: a.PodMAC[:], SourceProtAddress: net.ParseIP(podA.ip).To4(),
			DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP(target).To4(),
		})
	}
	r := h.passed(h.fromPod(podA, ask("169.254.1.1")))
	p := gopacket.NewPacket(r.out, layers.LayerTypeEthernet, gopacket.Default)
	arp, _ := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if arp == nil || arp.Operation != 2 || !bytes.Equal(arp.SourceHwAddress, a.HostMAC[:]) ||
		net.IP(arp.SourceProtAddress).String() != "169.254.1.1" || !bytes.Equal(arp.DstHwAddress, a.PodMAC[:]) {
		t.Errorf("answer %+v", arp)
	}
	h.moved(metric{maps.Forwarded, datapath.Egress, "from_pod"})
	h.swallowed(h.fromPod(podA, ask(podA.ip)), "from_pod", datapath.Egress) // a probe for its own address
	foreign := ask("169.254.1.1")
	foreign[11] ^= 1
	h.dropped(h.fromPod(podA, foreign), maps.DropSpoofedSource)
}
