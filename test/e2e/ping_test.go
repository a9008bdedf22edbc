// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// pinger is a raw socket that sends echo requests of one family.
type pinger struct {
	fd   int
	id   uint16
	size int // of what is echoed
}

// ping sends one echo request and waits for its reply.
func (p probe) ping() error {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var to unix.Sockaddr
	if p.to.addr.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		to = &unix.SockaddrInet6{Addr: p.to.addr.As16()}
	} else {
		to = &unix.SockaddrInet4{Addr: p.to.addr.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	ping := pinger{fd, p.source, p.size}
	if err := ping.send(family); err != nil {
		return err
	}
	return ping.await(family, p.wait)
}

// send sends the request; the kernel adds the checksum of ICMPv6.
func (p pinger) send(family int) error {
	payload := gopacket.Payload(make([]byte, p.size))
	buf := gopacket.NewSerializeBuffer()
	var parts []gopacket.SerializableLayer
	if family == unix.AF_INET6 {
		parts = []gopacket.SerializableLayer{
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)},
			&layers.ICMPv6Echo{Identifier: p.id, SeqNumber: 1}, payload,
		}
	} else {
		parts = []gopacket.SerializableLayer{
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: p.id, Seq: 1}, payload,
		}
	}
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: family == unix.AF_INET}, parts...); err != nil {
		return err
	}
	_, err := unix.Write(p.fd, buf.Bytes())
	return err
}

func (p pinger) await(family int, wait time.Duration) error {
	for end := time.Now().Add(wait); ; {
		left := unix.NsecToTimeval(max(1000, time.Until(end).Nanoseconds()))
		if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &left); err != nil {
			return err
		}
		in := make([]byte, 1500)
		n, err := unix.Read(p.fd, in)
		if errors.Is(err, unix.EINTR) && time.Now().Before(end) {
			continue
		}
		if err != nil {
			return err
		}
		if p.isReply(family, in[:n]) {
			return nil
		}
		if time.Now().After(end) {
			return os.ErrDeadlineExceeded
		}
	}
}

// isReply reads a packet of IPv4, or of ICMPv6: raw sockets differ.
func (p pinger) isReply(family int, raw []byte) bool {
	if family == unix.AF_INET {
		packet := gopacket.NewPacket(raw, layers.LayerTypeIPv4, gopacket.NoCopy)
		reply, ok := packet.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		return ok && reply.TypeCode.Type() == layers.ICMPv4TypeEchoReply && reply.Id == p.id
	}
	packet := gopacket.NewPacket(raw, layers.LayerTypeICMPv6, gopacket.NoCopy)
	kind, ok := packet.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	reply, isEcho := packet.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo)
	return ok && isEcho && kind.TypeCode.Type() == layers.ICMPv6TypeEchoReply && reply.Identifier == p.id
}
