// SPDX-License-Identifier: Apache-2.0

// Package observe turns the datapath's events into what people read: with the
// labels and workloads of both sides and the rule that decided. It hands them
// to whoever listens.
//
// Start with Describe; Hub is the fan-out. Counting drops is not done here: the
// programs count every packet in the metrics map, events are only a sample.
package observe

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// Resolver knows what numbers and addresses stand for on this node.
type Resolver interface {
	// Workload is who has an address: "namespace/name", cluster and node; all
	// empty when unknown.
	Workload(netip.Addr) (workload, cluster, node string)
	// Labels are those of an identity, nil when unknown.
	Labels(identity.Number) []string
	// Identity is whose an address is; 0 when nobody is known to have it.
	Identity(netip.Addr) identity.Number
	// Origin names the rule or the default deny behind a verdict.
	Origin(ruleSet uint32, d datapath.Direction, origin uint32) string
}

// Describe renders an event that this node saw now.
func Describe(e datapath.Event, now time.Time, cluster, node string, r Resolver) *hawserv1.Event {
	out := &hawserv1.Event{
		Time:        now.UnixNano(),
		Type:        TypeName(e.Type),
		Cluster:     cluster,
		Node:        node,
		Program:     e.Program,
		Direction:   e.Direction.String(),
		Source:      peer(e.Source, e.SourceID, r),
		Destination: peer(e.Destination, e.DestID, r),
		Protocol:    ProtocolName(e.Protocol),
		Summary:     summary(e),
		Length:      e.Length,
		Suppressed:  e.Suppressed,
	}
	if e.Type == datapath.EventDrop {
		out.Reason = maps.ReasonName(e.Reason)
		out.Detail = detail(e)
		out.Line = e.Line
	}
	if e.Type == datapath.EventVerdict && e.Reason != maps.Forwarded {
		out.Reason = maps.ReasonName(e.Reason)
	}
	if e.RuleSet != datapath.OpenRuleSet {
		out.Origin = r.Origin(e.RuleSet, e.Direction, e.Origin)
	}
	return out
}

// peer is an end. What a program drops before it has looked up who has an address
// has no identity: the labels are those of the address then.
func peer(a netip.AddrPort, n identity.Number, r Resolver) *hawserv1.EventPeer {
	p := &hawserv1.EventPeer{Port: uint32(a.Port()), Identity: uint32(n)}
	if a.Addr().IsValid() {
		p.Ip = a.Addr().String()
		p.Workload, p.Cluster, p.Node = r.Workload(a.Addr())
		if n == identity.Unknown {
			n = r.Identity(a.Addr())
		}
	}
	p.Labels = r.Labels(n)
	return p
}

// TypeName is the name of an event type: drop, verdict or trace.
func TypeName(t datapath.EventType) string {
	switch t {
	case datapath.EventDrop:
		return "drop"
	case datapath.EventVerdict:
		return "verdict"
	}
	return "trace"
}

// detail names the missing or offending object of a drop.
func detail(e datapath.Event) string {
	if e.Outer.IsValid() && !e.Outer.IsUnspecified() {
		return fmt.Sprintf("tunnelled by %s", e.Outer)
	}
	return ""
}

// ProtocolName is the short name of an IP protocol.
func ProtocolName(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "icmpv6"
	case 132:
		return "sctp"
	}
	return fmt.Sprint(p)
}

var tcpFlags = []struct {
	bit  uint8
	name string
}{{0x02, "SYN"}, {0x10, "ACK"}, {0x01, "FIN"}, {0x04, "RST"}, {0x08, "PSH"}, {0x20, "URG"}}

func summary(e datapath.Event) string {
	switch e.Protocol {
	case 6:
		var set []string
		for _, f := range tcpFlags {
			if e.TCPFlags&f.bit != 0 {
				set = append(set, f.name)
			}
		}
		return strings.Join(set, ",")
	case 1, 58:
		return fmt.Sprintf("type %d code %d", e.ICMPType, e.ICMPCode)
	}
	return ""
}
