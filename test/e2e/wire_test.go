// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// tunnelled is what a capture on the fabric tells of one packet.
type tunnelled struct {
	outer, source, destination netip.Addr
	vni                        uint32
}

// cmdWire is `wire FROM TO PROTOCOL[/PORT] there=VNI back=VNI`: the probe is
// answered, and what crosses the fabric for it is VXLAN whose VNI is that.
func cmdWire(s *script, args []string) (string, error) {
	if len(args) != 5 {
		return "", usage("wire FROM TO tcp/PORT|icmp VNI-THERE VNI-BACK")
	}
	p, err := s.newProbe(args[:3])
	if err != nil {
		return "", err
	}
	there, err1 := strconv.ParseUint(args[3], 10, 24)
	back, err2 := strconv.ParseUint(args[4], 10, 24)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	var found []tunnelled
	var plain int
	err = s.capture(func() error { return p.ask() }, func(t tunnelled) {
		found = append(found, t)
	}, func(src, dst netip.Addr) {
		if src == p.from.addr && dst == p.to.addr || src == p.to.addr && dst == p.from.addr {
			plain++
		}
	})
	if err != nil {
		return "", err
	}
	var counts [2]int
	for _, t := range found {
		for i, want := range []tunnelled{{source: p.from.addr, destination: p.to.addr, vni: uint32(there)}, {source: p.to.addr, destination: p.from.addr, vni: uint32(back)}} {
			if t.source != want.source || t.destination != want.destination {
				continue
			}
			if t.vni != want.vni {
				return "", fmt.Errorf("%s → %s has VNI %d, want %d", t.source, t.destination, t.vni, want.vni)
			}
			counts[i]++
		}
	}
	s.count("captured", uint64(counts[0]+counts[1]))
	if counts[0] == 0 || counts[1] == 0 || plain > 0 {
		return "", fmt.Errorf("captured %d packets there, %d back, %d without a tunnel", counts[0], counts[1], plain)
	}
	return fmt.Sprintf("%d packets with VNI %d, %d with %d\n", counts[0], there, counts[1], back), nil
}

// capture reads all devices of the fabric while fn runs, and a little longer.
func (s *script) capture(fn func() error, tunnel func(tunnelled), plain func(src, dst netip.Addr)) error {
	fabric, err := s.place("fabric")
	if err != nil {
		return err
	}
	fd := -1
	err = nsthread.InNetns(fabric.netns, func() error {
		const allBigEndian = unix.ETH_P_ALL<<8&0xFF00 | unix.ETH_P_ALL>>8
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, allBigEndian)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// What crosses meanwhile stays in the socket until fn has ended, also when it
	// takes seconds.
	const room = 16 << 20
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room); err != nil {
		return err
	}
	const linger = 50 * time.Millisecond
	wait := unix.NsecToTimeval(linger.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	buf := make([]byte, 9000)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		classify(buf[:n], tunnel, plain)
	}
}

func classify(frame []byte, tunnel func(tunnelled), plain func(src, dst netip.Addr)) {
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	outer, ok := packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if !ok {
		return
	}
	udp, ok := packet.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !ok || udp.DstPort != tunnelPort {
		plain(addr(outer.SrcIP), addr(outer.DstIP))
		return
	}
	inner := gopacket.NewPacket(udp.Payload, layers.LayerTypeVXLAN, gopacket.Default)
	vxlan, ok1 := inner.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
	ip, ok2 := inner.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if ok1 && ok2 {
		tunnel(tunnelled{addr(outer.SrcIP), addr(ip.SrcIP), addr(ip.DstIP), vxlan.VNI})
	}
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}
