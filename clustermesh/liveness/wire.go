// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"encoding/binary"
	"net/netip"
)

// A probe is the payload of a UDP packet to the tunnel's port: a VXLAN header
// (RFC 7348), an Ethernet, an IPv4 and a UDP header, the nonce and, when the size
// of the packet matters, zeros. The answer has addresses and ports swapped
// (bpf/lib/probe.h) and is as large.
const (
	vxlanFlags     = 0x08000000 // the VNI is valid
	healthIdentity = 4          // identity.Health
	echoPort       = 7          // RFC 862; asked to, answered from
	askPort        = 49152      // of the asker

	vxlanLen, ethLen, ipLen, udpLen = 8, 14, 20, 8
	ipAt                            = vxlanLen + ethLen
	udpAt                           = ipAt + ipLen
	nonceAt                         = udpAt + udpLen
	probeLen                        = nonceAt + len(Nonce{})
	outerLen                        = ipLen + udpLen // of the packet that carries it
)

// encodeProbe is the question of a node to another, in a packet of so many bytes
// at least.
func encodeProbe(from, to netip.Addr, n Nonce, size int) []byte {
	b := make([]byte, max(probeLen, size-outerLen))
	inner := uint16(len(b) - ipAt)
	binary.BigEndian.PutUint32(b, vxlanFlags)
	binary.BigEndian.PutUint32(b[4:], healthIdentity<<8)
	eth := b[vxlanLen:]
	eth[0], eth[6], eth[11] = 2, 2, 1 // locally administered; nobody looks
	eth[12] = 0x08                    // IPv4
	ip := b[ipAt:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], inner)
	ip[8], ip[9] = 64, 17 // TTL, UDP
	src, dst := from.As4(), to.As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ipLen]))
	udp := b[udpAt:]
	binary.BigEndian.PutUint16(udp, askPort)
	binary.BigEndian.PutUint16(udp[2:], echoPort)
	binary.BigEndian.PutUint16(udp[4:], inner-ipLen) // no checksum: the outer one covers it
	copy(b[nonceAt:], n[:])
	return b
}

// decodeAnswer reads an answer that came from a node, in a packet of so many
// bytes; ok is false for anything else.
func decodeAnswer(b []byte, from netip.Addr) (n Nonce, size int, ok bool) {
	if len(b) < probeLen || !from.Is4() {
		return n, 0, false
	}
	src := from.As4()
	ok = binary.BigEndian.Uint32(b) == vxlanFlags && binary.BigEndian.Uint32(b[4:]) == healthIdentity<<8 &&
		b[ipAt] == 0x45 && b[ipAt+9] == 17 && [4]byte(b[ipAt+12:ipAt+16]) == src &&
		binary.BigEndian.Uint16(b[udpAt:]) == echoPort && binary.BigEndian.Uint16(b[udpAt+2:]) == askPort
	copy(n[:], b[nonceAt:])
	return n, len(b) + outerLen, ok
}

// checksum is that of an IPv4 header (RFC 1071) whose own field is zero.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xFFFF + sum>>16
	return ^uint16(sum&0xFFFF + sum>>16)
}
