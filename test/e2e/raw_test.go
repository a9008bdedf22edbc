// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

const (
	tunnelPort = 8472
	rawCount   = 3 // packets that one command sends
)

// forged is a few UDP packets made by hand.
type forged struct {
	from, to place // to is a pod
	source   netip.Addr
	node     place  // that a tunnel packet is sent to: by default the pod's node
	vni      uint32 // of a tunnel packet
	tunnel   bool
	expect   string // "delivered", "nothing" (not delivered), or the reason of the drop
	at       string // node that drops
	identity uint32 // of the source in the drop's event; 0 is any
	port     uint16
}

// cmdForge is `forge tunnel|plain from=PLACE to=POD source=PLACE [node=PLACE] [vni=N]
// [identity=N] [at=NODE] expect=delivered|nothing|REASON`: packets made by hand, with
// this source address, sent through a UDP socket as VXLAN to the node of the pod
// (tunnel), or as they are (plain).
func cmdForge(s *script, args []string) (string, error) {
	f, err := s.parseForged(args)
	if err != nil {
		return "", err
	}
	port, received, stop, err := listenIn(f.to)
	if err != nil {
		return "", err
	}
	defer stop()
	f.port = port
	reason := f.expect
	if reason == "delivered" || reason == "nothing" {
		reason = "forwarded"
	}
	if err := within(callTimeout, func() error { return s.world.events.follows(f.at) }); err != nil {
		return "", err
	}
	before, err := s.world.drops(f.at, reason)
	if err != nil {
		return "", err
	}
	mark := s.world.events.mark()
	if err := f.send(); err != nil {
		return "", err
	}
	s.count("forged packets", rawCount)
	if f.expect == "delivered" {
		err := within(patience, func() error { return wantCount(received(), rawCount) })
		return "", err
	}
	if f.expect == "nothing" {
		return "", within(patience, func() error {
			after, err := s.world.drops(f.at, reason)
			if err == nil && after == before {
				err = fmt.Errorf("%s has seen no packet", f.at)
			}
			return errors.Join(err, wantCount(received(), 0))
		})
	}
	x := expectedDrop{
		reason: f.expect, node: f.at, source: f.source.String(), destination: f.to.addr.String(), protocol: "udp",
		destinationPort: uint32(port), sourceIdentity: f.identity,
	}
	if f.tunnel && f.at == f.from.node { // as it is, with what it holds unread
		x.source, x.destination, x.destinationPort = f.from.addr.String(), f.node.addr.String(), tunnelPort
	}
	if err := s.seen(mark, before, rawCount, x); err != nil {
		return "", err
	}
	return "", wantCount(received(), 0)
}

func wantCount(got, want int) error {
	if got != want {
		return fmt.Errorf("%d of %d packets reached the pod, want %d", got, rawCount, want)
	}
	return nil
}

func (s *script) parseForged(args []string) (forged, error) {
	const help = "forge tunnel|plain from=PLACE to=POD source=PLACE [node=PLACE] [vni=N] [identity=N] [at=NODE] expect=delivered|nothing|REASON"
	var f forged
	if len(args) < 4 || args[0] != "tunnel" && args[0] != "plain" {
		return f, usage(help)
	}
	f.tunnel = args[0] == "tunnel"
	for _, a := range args[1:] {
		what, v, _ := strings.Cut(a, "=")
		var p place
		var n uint64
		var err error
		switch what {
		case "from", "to", "source", "node":
			p, err = s.place(v)
		case "vni", "identity":
			n, err = strconv.ParseUint(v, 10, 24)
		}
		if err != nil {
			return f, err
		}
		switch what {
		case "from":
			f.from = p
		case "to":
			f.to, f.at = p, p.node
		case "source":
			f.source = p.addr
		case "node":
			f.node = p
		case "vni":
			f.vni = uint32(n)
		case "identity":
			f.identity = uint32(n)
		case "at":
			f.at = v
		case "expect":
			f.expect = v
		default:
			return f, usage(help)
		}
	}
	var err error
	if f.tunnel && !f.node.addr.IsValid() {
		f.node, err = s.place(f.to.node)
	}
	return f, err
}

// listenIn opens a UDP socket in a pod and counts what it gets.
func listenIn(p place) (port uint16, received func() int, stop func(), err error) {
	var c *net.UDPConn
	err = nsthread.InNetns(p.netns, func() error {
		c, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		return 0, nil, nil, err
	}
	got := 0
	received = func() int {
		buf := make([]byte, 2048)
		for {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, _, err := c.ReadFromUDP(buf); err != nil {
				return got
			}
			got++
		}
	}
	return uint16(c.LocalAddr().(*net.UDPAddr).Port), received, func() { c.Close() }, nil
}

func (f forged) send() error {
	inner, err := f.packet()
	if err != nil {
		return err
	}
	return nsthread.InNetns(f.from.netns, func() error {
		if !f.tunnel {
			return sendRaw(f.to.addr, inner)
		}
		c, err := net.Dial("udp4", netip.AddrPortFrom(f.node.addr, tunnelPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		for range rawCount {
			// Who has no such port says so: nothing was done with the packet.
			if _, err := c.Write(inner); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return nil
	})
}

// packet is the packet from its IP header on, or from the VXLAN header on.
func (f forged) packet() ([]byte, error) {
	ip := &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: f.source.AsSlice(), DstIP: f.to.addr.AsSlice(),
	}
	udp := &layers.UDP{SrcPort: 4242, DstPort: layers.UDPPort(f.port)}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		return nil, err
	}
	stack := []gopacket.SerializableLayer{ip, udp, gopacket.Payload("made by hand")}
	if f.tunnel {
		eth := &layers.Ethernet{
			SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeIPv4,
		}
		stack = append([]gopacket.SerializableLayer{&layers.VXLAN{ValidIDFlag: true, VNI: f.vni}, eth}, stack...)
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...)
	return buf.Bytes(), err
}

// sendRaw sends IP packets as they are, routed as the namespace routes.
func sendRaw(to netip.Addr, packet []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range rawCount {
		if err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
			return err
		}
	}
	return nil
}
