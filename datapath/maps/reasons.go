// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/hawser-mesh/hawser/datapath"
)

// Drop reasons, the numbers and names of bpf/lib/drop.h (a test compares).
const (
	Forwarded datapath.DropReason = iota
	DropPolicyDenied
	DropSpoofedSource
	DropSpoofedIdentity
	DropUnknownSender
	DropIdentityUnknown
	DropConntrackFull
	DropNoBackend
	DropUnsupportedProtocol
	DropPacketTooBig
	DropNoTunnelEndpoint
	DropMalformed
	DropTinyFragment
	DropUnknownDestination
	DropUnknownEndpoint
	DropUnrelatedICMP
	DropIPOptions
	DropMulticast
	DropUnknownRuleSet
	DropRewriteFailed
	DropEarlyFragment
	DropOverlap
	DropNoSNATPort
	DropSourceRoute
	DropExtensionHeaders
	DropRouterSolicitation
	DropTupleInUse
	// DropLinkTalk is what a host tells its own link: heard, counted without an event.
	DropLinkTalk
	// DropStrayTunnel is what reached the tunnel's device past the underlay's program.
	DropStrayTunnel
	// DropForgedTunnel is a pod's packet to the tunnel port of a tunnel endpoint.
	DropForgedTunnel
	// DropUnaskedReply is an ICMP echo reply of which no request is known.
	DropUnaskedReply

	// AuditPolicyDenied is of a packet that policy would deny if the endpoint were
	// not audited: it passed.
	AuditPolicyDenied datapath.DropReason = 31
	// DropReasons is the room that the metrics map has for reasons.
	DropReasons = 32
)

// ReasonName is what a user reads: "policy denied". Number 0 is "forwarded".
func ReasonName(r datapath.DropReason) string {
	names := [...]string{
		"forwarded", "policy denied", "spoofed source", "spoofed identity", "unknown sender",
		"identity unknown yet", "conntrack full", "no backend", "unsupported protocol",
		"packet too big", "no tunnel endpoint", "malformed packet", "tiny fragment",
		"unknown destination", "unknown endpoint", "unrelated icmp error", "ip options",
		"multicast", "unknown rule set", "rewrite failed",
		"fragment before its first", "overlapping fragment", "no masquerade port",
		"source route", "too many extension headers", "router solicitation",
		"translated tuple in use", "link talk", "stray tunnel packet", "forged tunnel packet", "unasked echo reply",
	}
	if int(r) < len(names) {
		return names[r]
	}
	if r == AuditPolicyDenied {
		return "policy denied, audited only"
	}
	return fmt.Sprintf("reason %d", r)
}

// Programs, as numbered in events and metrics.
const (
	ProgramFromPod = iota
	ProgramFromOverlay
	ProgramFromHost

	programs = 4 // room in the metrics map
)

// ProgramName is the name of a program's number.
func ProgramName(n uint8) string {
	switch n {
	case ProgramFromPod:
		return "from_pod"
	case ProgramFromOverlay:
		return "from_overlay"
	case ProgramFromHost:
		return "from_host"
	}
	return fmt.Sprintf("program %d", n)
}
