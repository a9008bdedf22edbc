// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// stream is numbered datagrams from one namespace to another, about a thousand a
// second.
type stream struct {
	name        string
	stop, ended atomic.Bool
	sent, heard atomic.Uint64
	twice       atomic.Uint64
	done        chan error
}

func startStream(t *testing.T, name string, from, to netns.NsHandle, at netip.AddrPort) *stream {
	t.Helper()
	s := &stream{name: name, done: make(chan error, 2)}
	var in, out *net.UDPConn
	inNS(t, to, func() (err error) {
		if in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(unspecified(at.Addr()), at.Port()))); err != nil {
			return err
		}
		return in.SetReadBuffer(4 << 20)
	})
	inNS(t, from, func() (err error) {
		out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	})
	go func() {
		defer out.Close()
		for n := uint64(0); !s.stop.Load(); n++ {
			if _, err := out.Write(binary.BigEndian.AppendUint64(nil, n)); err != nil {
				s.done <- err
				return
			}
			s.sent.Add(1)
			time.Sleep(time.Millisecond)
		}
		s.done <- nil
	}()
	go func() {
		seen := map[uint64]bool{}
		buf := make([]byte, 64)
		for !s.ended.Load() {
			_ = in.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			n, err := in.Read(buf)
			if n != 8 || err != nil {
				continue
			}
			if k := binary.BigEndian.Uint64(buf); seen[k] {
				s.twice.Add(1)
			} else {
				seen[k] = true
				s.heard.Add(1)
			}
		}
		s.done <- in.Close()
	}()
	return s
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// goesOn waits until n more datagrams are heard.
func (s *stream) goesOn(t *testing.T, n uint64) {
	t.Helper()
	want := s.heard.Load() + n
	for end := time.Now().Add(20 * time.Second); s.heard.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %d of %d datagrams were heard", s.name, s.heard.Load(), s.sent.Load())
		}
	}
}

// complete ends the stream and expects all of it to have been heard, once.
func (s *stream) complete(t *testing.T) {
	t.Helper()
	s.stop.Store(true)
	errs := []error{<-s.done}
	for end := time.Now().Add(5 * time.Second); s.heard.Load() < s.sent.Load() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	s.ended.Store(true)
	if err := errors.Join(append(errs, <-s.done)...); err != nil {
		t.Errorf("%s: %v", s.name, err)
	}
	t.Logf("%s: %d datagrams sent, %d heard, %d twice", s.name, s.sent.Load(), s.heard.Load(), s.twice.Load())
	if s.heard.Load() != s.sent.Load() || s.twice.Load() > 0 {
		t.Errorf("%s: %d of %d datagrams were lost, %d came twice", s.name, s.sent.Load()-s.heard.Load(), s.sent.Load(), s.twice.Load())
	}
}

// TestOtherMakeLosesNothing changes who makes the tunnel's headers on one node, to
// the kernel's device and back, under traffic in both directions.
func TestOtherMakeLosesNothing(t *testing.T) {
	for _, attach := range []string{loader.AttachTCX, loader.AttachClsact} {
		t.Run(attach, func(t *testing.T) { otherMake(t, attach) })
	}
}

func otherMake(t *testing.T, attach string) {
	w := newWorldWith(t, attach)
	serve(t, w.pods[1], 8080)
	conn := dial(t, w.pods[0], ips(1), 8080)
	var streams []*stream
	for i := range 2 {
		for name, to := range map[string]netip.Addr{"IPv4": ips(1 - i), "IPv6": ip6s(1 - i)} {
			streams = append(streams, startStream(t, name+[]string{" out", " in"}[i], w.pods[i], w.pods[1-i],
				netip.AddrPortFrom(to, map[string]uint16{"IPv4": 7004, "IPv6": 7006}[name])))
		}
	}
	on := func(n uint64) {
		t.Helper()
		for _, s := range streams {
			s.goesOn(t, n)
		}
	}
	on(200)
	for _, tunnel := range []string{netdev.TunnelDevice, ""} {
		tables := w.agents[0].tables
		w.agents[0].stop(t)
		w.nodes[0].tunnel = tunnel
		w.agents[0] = startAgentWith(t, attach, w.nodes[0], tables, w.eps[0].Device)
		w.agents[0].wait(t)
		if used := w.fromDevice(t); tunnel == "" && used {
			t.Error("from_tunnel is still attached")
		} else if tunnel != "" && !used {
			t.Error("from_tunnel is not attached")
		}
		if tunnel == "" {
			inNS(t, w.nodes[0].ns, func() error {
				if l, err := net.InterfaceByName(netdev.TunnelDevice); err != nil || l.Flags&net.FlagUp != 0 {
					t.Errorf("without its program the device is %+v, %v; want it down", l, err)
				}
				return netdev.DeleteTunnelDevice()
			})
		}
		on(300)
		if err := echo(conn, "still here "+tunnel, 5*time.Second); err != nil {
			t.Error(err)
		}
	}
	for _, s := range streams {
		s.complete(t)
	}
	for i := range w.agents {
		for _, r := range w.dropped(t, i) {
			if r.Reason != 0 && r.Reason != maps.DropLinkTalk && r.Reason != maps.DropRouterSolicitation {
				t.Errorf("node %d dropped: %+v", i, r)
			}
		}
	}
}

// fromDevice reports whether from_tunnel or its slot is in use on node 0.
func (w *world) fromDevice(t *testing.T) (used bool) {
	t.Helper()
	inNS(t, w.nodes[0].ns, func() error {
		slots, err := ebpf.LoadPinnedMap(filepath.Join(w.nodes[0].pin, "maps", "slots"), nil)
		if err != nil {
			return err
		}
		defer slots.Close()
		objects, err := loader.Inventory(w.nodes[0].pin)
		for _, o := range objects {
			used = used || o.Name == "from_tunnel@"+netdev.TunnelDevice || o.Name == "from_tunnel6"
		}
		var id uint32
		if slots.Lookup(uint32(3), &id) == nil {
			used = true
		}
		return err
	})
	return used
}

// A train of datagrams (QUIC) crosses the tunnel whole and is cut at the end. Where
// the receiver's programs strip the headers it must be cut at the pod.
func TestDatagramTrains(t *testing.T) {
	for name, tunnels := range makes() {
		t.Run(name, func(t *testing.T) {
			w := newWorldOf(t, "", tunnels)
			for i := range 2 {
				if tunnels[1-i] == "" {
					inNS(t, w.pods[i], func() error {
						e, err := ethtool.NewEthtool()
						if err != nil {
							return err
						}
						defer e.Close()
						return e.Change("eth0", map[string]bool{"tx-udp-segmentation": false})
					})
				}
				train(t, w.pods[i], w.pods[1-i], ips(1-i))
				train(t, w.pods[i], w.pods[1-i], ip6s(1-i))
			}
		})
	}
}

const (
	trainLength = 40
	trainCar    = 1200 // bytes
)

func train(t *testing.T, from, to netns.NsHandle, at netip.Addr) {
	t.Helper()
	var in, out *net.UDPConn
	inNS(t, to, func() (err error) {
		in, err = net.ListenUDP("udp", &net.UDPAddr{IP: unspecified(at).AsSlice()})
		if err != nil {
			return err
		}
		return in.SetReadBuffer(4 << 20)
	})
	defer in.Close()
	port := in.LocalAddr().(*net.UDPAddr).Port //nolint:forcetypeassert // of a UDPConn
	inNS(t, from, func() (err error) {
		out, err = net.DialUDP("udp", nil, &net.UDPAddr{IP: at.AsSlice(), Port: port})
		return err
	})
	defer out.Close()
	raw, err := out.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var opt error
	err = raw.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, trainCar)
	})
	if err := errors.Join(err, opt); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, trainLength*trainCar)
	for i := range trainLength {
		data[i*trainCar] = byte(i)
	}
	if _, err := out.Write(data); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2*trainCar)
	_ = in.SetReadDeadline(time.Now().Add(5 * time.Second))
	for i := range trainLength {
		n, err := in.Read(buf)
		if err != nil {
			t.Fatalf("to %s: %d of %d datagrams came: %v", at, i, trainLength, err)
		}
		if n != trainCar || buf[0] != byte(i) {
			t.Errorf("to %s: datagram %d has %d bytes and is number %d", at, i, n, buf[0])
		}
	}
}

// What reaches the device's socket by another way than the underlay is refused:
// another device of the node, the node itself, a pod of it, or the tunnel, into which
// another node's programs let no pod send it.
func TestStrayTunnelPackets(t *testing.T) {
	w := newWorldOf(t, "", [2]string{netdev.TunnelDevice, netdev.TunnelDevice})
	l := newLAN(t, w.nodes[0])
	e := listen(t, w.pods[0])
	packet := frame(t, &layers.VXLAN{ValidIDFlag: true, VNI: uint32(ident(1))}, &layers.Ethernet{
		SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 0}, EthernetType: layers.EthernetTypeIPv4,
	}, ipHeader(ips(1), ips(0), layers.IPProtocolUDP, 0), &layers.UDP{SrcPort: 9, DstPort: 9000}, gopacket.Payload("stray"))
	for name, from := range map[string]struct {
		ns netns.NsHandle
		to netip.Addr
	}{
		"by another device": {l.ns, netip.MustParseAddr("198.51.100.1")}, "by the node itself": {w.nodes[0].ns, w.nodes[0].addr},
		"by its pod": {w.pods[0], w.nodes[0].addr},
	} {
		t.Run(name, func(t *testing.T) {
			w.dropsOneMore(t, 0, maps.DropStrayTunnel, func() { sendTunnel(t, from.ns, from.to, packet) })
		})
	}
	t.Run("by another node's pod", func(t *testing.T) {
		w.dropsOneMore(t, 1, maps.DropForgedTunnel, func() { sendTunnel(t, w.pods[1], w.nodes[0].addr, packet) })
	})
	t.Run("in the tunnel", func(t *testing.T) {
		wire := packetSocket(t, w.nodes[0].fabric, "port1")
		p := sample{frame: frame(t, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 9, 9}, DstMAC: w.mac(t, 0), EthernetType: layers.EthernetTypeIPv4},
			ipHeader(w.nodes[1].addr, w.nodes[0].addr, layers.IPProtocolUDP, 0), &layers.UDP{SrcPort: 40000, DstPort: 8472},
			&layers.VXLAN{ValidIDFlag: true, VNI: uint32(ident(1))},
			&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 7, 7}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 8, 8}, EthernetType: layers.EthernetTypeIPv4},
			ipHeader(ips(1), w.nodes[0].addr, layers.IPProtocolUDP, 0), &layers.UDP{SrcPort: 9, DstPort: 8472}, gopacket.Payload(packet))}
		w.dropsOneMore(t, 0, maps.DropStrayTunnel, func() {
			if _, err := unix.Write(wire, p.withVnet()); err != nil {
				t.Fatal(err)
			}
		})
	})
	// One by the tunnel is heard, and nothing before it was.
	send(t, w.pods[1], ips(1), ips(0), "right")
	e.hears(t, "right")
}

// Whichever hardware addresses an inner packet has, it is for whom its IP header
// says; the device takes it for another host's.
func TestInnerHardwareAddress(t *testing.T) {
	w := newWorldOf(t, "", makes()["netdev and ebpf"])
	mac := w.mac(t, 0)
	wire := packetSocket(t, w.nodes[0].fabric, "port1")
	e := listen(t, w.pods[0])
	for _, pair := range [][2]netip.Addr{{ips(1), ips(0)}, {ip6s(1), ip6s(0)}} {
		kind := layers.EthernetTypeIPv4
		if pair[0].Is6() {
			kind = layers.EthernetTypeIPv6
		}
		p := sample{frame: frame(t, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 9, 9}, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4},
			ipHeader(w.nodes[1].addr, w.nodes[0].addr, layers.IPProtocolUDP, 0), &layers.UDP{SrcPort: 40000, DstPort: 8472},
			&layers.VXLAN{ValidIDFlag: true, VNI: uint32(ident(1))},
			&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 7, 7}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 8, 8}, EthernetType: kind},
			ipHeader(pair[0], pair[1], layers.IPProtocolUDP, 0), &layers.UDP{SrcPort: 9, DstPort: 9000}, gopacket.Payload("by another name"))}
		if _, err := unix.Write(wire, p.withVnet()); err != nil {
			t.Fatal(err)
		}
		e.hears(t, "by another name")
	}
}

// mac is the address of a node's underlay device.
func (w *world) mac(t *testing.T, i int) (mac net.HardwareAddr) {
	t.Helper()
	inNS(t, w.nodes[i].ns, func() error {
		l, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = l.HardwareAddr
		}
		return err
	})
	return mac
}

// sendTunnel sends a datagram to a node's tunnel port.
func sendTunnel(t *testing.T, from netns.NsHandle, to netip.Addr, packet []byte) {
	t.Helper()
	inNS(t, from, func() error {
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: to.AsSlice(), Port: 8472})
		if err != nil {
			return err
		}
		_, err = c.Write(packet)
		return errors.Join(err, c.Close())
	})
}

// dropsOneMore sees that a node drops one packet for that reason by what is done.
func (w *world) dropsOneMore(t *testing.T, node int, why datapath.DropReason, do func()) {
	t.Helper()
	count := func() (n uint64) {
		for _, r := range w.dropped(t, node) {
			if r.Reason == why {
				n += r.Packets
			}
		}
		return n
	}
	before := count()
	do()
	for end := time.Now().Add(10 * time.Second); count() != before+1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d packets are dropped as %v, want %d; %+v", count(), why, before+1, w.dropped(t, node))
		}
	}
}
