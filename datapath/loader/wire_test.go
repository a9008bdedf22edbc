// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/identity"
)

// Nodes that nobody is at: what is sent to them is only looked at.
const (
	quietNode = "192.0.2.77"
	quietVTEP = "192.0.2.78"
)

// quiet are addresses behind them.
func quiet() (behind, behind6, external, external6 netip.Addr) {
	return netip.MustParseAddr("10.9.0.5"), netip.MustParseAddr("fd00:10:9::5"), netip.MustParseAddr("10.10.0.5"), netip.MustParseAddr("fd00:10:10::5")
}

// TestBothMakesSendTheSame has the programs and the kernel's device make the tunnel's
// headers of the same packets, and compares what is on the wire.
func TestBothMakesSendTheSame(t *testing.T) {
	w := newWorld(t)
	w.addQuiet(t)
	packets := w.samplePackets(t)
	sent := map[string][][]byte{"ebpf": w.onWire(t, packets)}
	tables := w.agents[0].tables
	w.agents[0].stop(t)
	w.nodes[0].tunnel = netdev.TunnelDevice
	w.agents[0] = startAgent(t, w.nodes[0], tables, w.eps[0].Device)
	w.agents[0].wait(t)
	sent["netdev"] = w.onWire(t, packets)
	inNS(t, w.nodes[0].ns, func() error {
		d, err := loader.OpenOther(w.agents[0].d.Config(), slog.New(slog.DiscardHandler), func(s *ebpf.CollectionSpec) {
			if err := s.Variables["tunnel_key_size"].Set(uint32(28)); err != nil {
				t.Error(err)
			}
		}, loader.AllSteps)
		if err != nil {
			return err
		}
		return d.Close()
	})
	sent["netdev before Linux 5.19"] = w.onWire(t, packets)
	for maker, all := range sent {
		for i, p := range packets {
			if got := all[i]; headerSum(got[14:34]) != 0 {
				t.Errorf("%s, %s: the outer header's checksum is wrong: %x", p.name, maker, got[14:34])
			} else if p.gso == 0 && len(got) != len(p.frame)+overhead {
				t.Errorf("%s, %s: %d bytes became %d", p.name, maker, len(p.frame), len(got))
			}
			clear(all[i][18:20]) // its id
			clear(all[i][24:26]) // and with it its checksum
		}
	}
	for maker, all := range sent {
		for i, p := range packets {
			if want := sent["ebpf"][i]; !bytes.Equal(all[i], want) {
				t.Errorf("%s:\nebpf %x\n%s %x", p.name, want[:min(len(want), 128)], maker, all[i][:min(len(all[i]), 128)])
			}
		}
	}
	t.Logf("%d packets compared", len(packets))
}

func headerSum(h []byte) uint16 {
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xFFFF + sum>>16
	}
	return ^uint16(sum)
}

func (w *world) addQuiet(t *testing.T) {
	t.Helper()
	node, vtep := netip.MustParseAddr(quietNode), netip.MustParseAddr(quietVTEP)
	tb := w.agents[0].tables
	tb.Nodes.Set(node, datapath.Node{Tunnel: node, ClusterID: 1})
	tb.Nodes.Set(vtep, datapath.Node{Tunnel: vtep, ClusterID: datapath.ExternalCluster, VNI: 4096, MAC: [6]byte{2, 0, 0, 0, 5, 7}})
	a, a6, x, x6 := quiet()
	for _, ip := range []netip.Addr{a, a6} {
		tb.IPCache.Set(single(ip), datapath.IPEntry{Identity: ident(1), Tunnel: node})
	}
	for _, ip := range []netip.Addr{x, x6} {
		tb.IPCache.Set(single(ip), datapath.IPEntry{Identity: identity.World, Tunnel: vtep, Flags: datapath.IPCIDR})
	}
	w.agents[0].wait(t)
	inNS(t, w.nodes[0].ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		var errs []error
		for _, ip := range []string{quietNode, quietVTEP} {
			errs = append(errs, netlink.NeighAdd(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, IP: net.ParseIP(ip), State: unix.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9},
			}))
		}
		return errors.Join(errs...)
	})
}

// sample is a packet of the first pod.
type sample struct {
	name  string
	frame []byte
	gso   uint16 // bytes of a segment; 0: it is none that is cut later
}

func (w *world) samplePackets(t *testing.T) (out []sample) {
	t.Helper()
	a, a6, x, x6 := quiet()
	for _, to := range []netip.Addr{a, a6, x, x6} {
		from, icmp := ips(0), layers.IPProtocolICMPv4
		eth := &layers.Ethernet{SrcMAC: w.eps[0].PodMAC[:], DstMAC: w.eps[0].HostMAC[:], EthernetType: layers.EthernetTypeIPv4}
		var echo gopacket.SerializableLayer = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 77, Seq: 1}
		if to.Is6() {
			from, icmp, eth.EthernetType = ip6s(0), layers.IPProtocolICMPv6, layers.EthernetTypeIPv6
			echo = &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
		}
		add := func(name string, proto layers.IPProtocol, tos uint8, ls ...gopacket.SerializableLayer) {
			f := frame(t, append([]gopacket.SerializableLayer{eth, ipHeader(from, to, proto, tos)}, ls...)...)
			out = append(out, sample{name: fmt.Sprintf("%s to %s, tos %#x", name, to, tos), frame: f})
		}
		for _, tos := range []uint8{0, 0xB8, 1, 2, 3, 0xBB} { // with each ECN
			add("UDP", layers.IPProtocolUDP, tos, &layers.UDP{SrcPort: 5000, DstPort: 53}, gopacket.Payload("question"))
		}
		for port := range layers.UDPPort(8) { // each its own outer source port
			add("UDP", layers.IPProtocolUDP, 0, &layers.UDP{SrcPort: 6000 + port, DstPort: 53}, gopacket.Payload("question"))
		}
		add("SYN", layers.IPProtocolTCP, 0, &layers.TCP{SrcPort: 5001, DstPort: 80, SYN: true, Window: 100, Options: []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{0x05, 0xB4}}, // is lowered
		}})
		add("ACK", layers.IPProtocolTCP, 2, &layers.TCP{SrcPort: 5001, DstPort: 80, ACK: true, Window: 100}, gopacket.Payload("x"))
		add("large ACK", layers.IPProtocolTCP, 0, &layers.TCP{SrcPort: 5001, DstPort: 80, ACK: true, Window: 100}, gopacket.Payload(make([]byte, 1300)))
		if to.Is4() {
			add("echo", icmp, 0, echo, gopacket.Payload("ping"))
		} else {
			add("echo", icmp, 0, echo, gopacket.Payload{0, 77, 0, 1, 'p', 'i', 'n', 'g'})
		}
		add("TCP to be cut", layers.IPProtocolTCP, 0x20, &layers.TCP{SrcPort: 5001, DstPort: 80, ACK: true, PSH: true, Window: 100}, gopacket.Payload(bytes.Repeat([]byte("0123456789"), 900)))
		out[len(out)-1].gso = 1300
	}
	return out
}

func ipHeader(from, to netip.Addr, proto layers.IPProtocol, tos uint8) gopacket.SerializableLayer {
	if from.Is6() {
		return &layers.IPv6{Version: 6, TrafficClass: tos, FlowLabel: 7, NextHeader: proto, HopLimit: 64, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
	}
	return &layers.IPv4{Version: 4, TTL: 64, TOS: tos, Id: 99, Flags: layers.IPv4DontFragment, Protocol: proto, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
}

// frame is the layers in bytes, with lengths and checksums.
func frame(t *testing.T, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for i, l := range ls {
		if s, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok && i > 0 {
			_ = s.SetNetworkLayerForChecksum(ls[i-1].(gopacket.NetworkLayer)) //nolint:forcetypeassert // it is behind one
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// vnetHeader is struct virtio_net_hdr: how the kernel is told of a packet that is to
// be cut, or tells of one.
const vnetHeader = 10

func (s sample) withVnet() []byte {
	h := make([]byte, vnetHeader, vnetHeader+len(s.frame))
	if s.gso != 0 {
		l4 := 14 + 20
		h[1] = 1 // VIRTIO_NET_HDR_GSO_TCPV4
		if s.frame[12] == 0x86 {
			l4, h[1] = 14+40, 4 // VIRTIO_NET_HDR_GSO_TCPV6
		}
		h[0] = 1 // its checksum is to be made
		binary.NativeEndian.PutUint16(h[2:], uint16(l4+20))
		binary.NativeEndian.PutUint16(h[4:], s.gso)
		binary.NativeEndian.PutUint16(h[6:], uint16(l4))
		binary.NativeEndian.PutUint16(h[8:], 16)
		// Until then there is the pseudo header's sum.
		frame := bytes.Clone(s.frame)
		binary.BigEndian.PutUint16(frame[l4+16:], ^headerSum(pseudo(frame)))
		return append(h, frame...)
	}
	return append(h, s.frame...)
}

func pseudo(frame []byte) []byte {
	if frame[12] == 0x86 {
		return append(bytes.Clone(frame[14+8:14+40]), 0, 6, frame[18], frame[19])
	}
	total := binary.BigEndian.Uint16(frame[16:]) - 20
	return append(bytes.Clone(frame[14+12:14+20]), 0, 6, byte(total>>8), byte(total))
}

// onWire sends the packets from the first pod, one after the other, and returns what
// its node puts on the wire for each.
func (w *world) onWire(t *testing.T, packets []sample) (out [][]byte) {
	t.Helper()
	wire := packetSocket(t, w.nodes[0].fabric, "port1")
	pod := packetSocket(t, w.pods[0], "eth0")
	for _, p := range packets {
		if _, err := unix.Write(pod, p.withVnet()); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		out = append(out, heardOnWire(t, wire, p))
	}
	return out
}

// heardOnWire is the next packet to a quiet node.
func heardOnWire(t *testing.T, wire int, p sample) []byte {
	t.Helper()
	buf := make([]byte, 1<<16+vnetHeader)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		n, err := unix.Read(wire, buf)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got := buf[vnetHeader:n]
		if len(got) < 14+overhead || got[13] != 0 || got[23] != unix.IPPROTO_UDP {
			continue
		}
		if dst := netip.AddrFrom4([4]byte(got[30:34])).String(); dst != quietNode && dst != quietVTEP {
			continue
		}
		if size := binary.NativeEndian.Uint16(buf[4:]); size != p.gso {
			t.Errorf("%s: segments of %d bytes, want %d", p.name, size, p.gso)
		}
		return bytes.Clone(got)
	}
	t.Fatalf("%s: nothing was sent", p.name)
	return nil
}

// packetSocket sends and hears whole frames of a device.
func packetSocket(t *testing.T, ns netns.NsHandle, dev string) (fd int) {
	t.Helper()
	inNS(t, ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8&0xFF00 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}))
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
