// SPDX-License-Identifier: Apache-2.0

// Package tunnel is what a tunnel costs and where it listens. How packets get
// into one is the datapath's.
package tunnel

// DefaultVXLANPort is the UDP port of VXLAN: Linux's default. The one that IANA
// assigned is 4789.
const DefaultVXLANPort = 8472

// What VXLAN adds to an inner IP packet, in bytes: inner Ethernet 14, VXLAN 8,
// UDP 8, and outer IPv4 20 or IPv6 40 (RFC 7348).
const (
	VXLANOverhead4 = 50
	VXLANOverhead6 = 70
)

// ExternalVNI is the VNI of packets from and to external tunnel endpoints where
// their declaration names no other: the number of the identity world.
const ExternalVNI = 2

// MaxVNI is the highest VNI: it has 24 bits.
const MaxVNI = 1<<24 - 1

// ExternalMAC is the inner destination address of packets to external tunnel
// endpoints where their declaration names no other.
func ExternalMAC() [6]byte { return [6]byte{0x02} }
