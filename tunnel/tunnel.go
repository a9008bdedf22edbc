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
