// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"strconv"

	"github.com/hawser-mesh/hawser/internal/manifest"
)

func parseICMPRule(n manifest.Node) []Port {
	if !n.Only([]string{"fields"}, nil) {
		return nil
	}
	list, ok := n.Field("fields")
	if !ok {
		if !n.Has("fields") {
			n.At(n.Path + ".fields").Problem("required")
		}
		return nil
	}
	items := list.List()
	if len(items) == 0 {
		list.Problem("must name at least one type")
	}
	var ports []Port
	for _, item := range items {
		if p, ok := parseICMPField(item); ok {
			ports = append(ports, p)
		}
	}
	return ports
}

func parseICMPField(n manifest.Node) (Port, bool) {
	if !n.Only([]string{"type", "family"}, nil) {
		return Port{}, false
	}
	protocol := ICMP
	if f, ok := n.Field("family"); ok {
		switch text, _ := f.Text(); text {
		case "IPv4":
		case "IPv6":
			protocol = ICMPv6
		default:
			f.Problem("%q is not a family: want IPv4 or IPv6", text)
		}
	}
	f, ok := n.Field("type")
	if !ok {
		if !n.Has("type") {
			n.At(n.Path + ".type").Problem("required")
		}
		return Port{}, false
	}
	v, ok := icmpType(f, protocol)
	if !ok {
		return Port{}, false
	}
	if why := NeverJudged(protocol, v); why != "" {
		f.Problem("%s", why)
		return Port{}, false
	}
	return Port{Protocol: protocol, Port: ICMPPort(v)}, true
}

// icmpType is a number, also as text, or a name.
func icmpType(f manifest.Node, protocol uint8) (uint8, bool) {
	text, isText := f.Value.(string)
	if !isText {
		v, ok := f.Uint(255)
		return uint8(v), ok
	}
	if v, ok := icmpTypes(protocol)[text]; ok {
		return v, true
	}
	v, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		f.Problem("%q is not an ICMP type of this family", text)
		return 0, false
	}
	return uint8(v), true
}

// EchoRequest is the type of ICMP messages that policy is asked about.
func EchoRequest(protocol uint8) uint8 {
	if protocol == ICMPv6 {
		return 128
	}
	return 8
}

// echoReply answers an EchoRequest.
func echoReply(protocol uint8) uint8 {
	if protocol == ICMPv6 {
		return 129
	}
	return 0
}

// NeverJudged says of a type of ICMP messages that policy is never asked about
// what becomes of them and what to do; it is empty for echo requests.
func NeverJudged(protocol, icmpType uint8) string {
	n, family := icmpType, "IPv4"
	failed := n == 3 || n == 4 || n == 11 || n == 12
	link := false
	if protocol == ICMPv6 {
		family = "IPv6"
		failed = n >= 1 && n <= 4
		link = n >= 130 && n <= 137 || n == 143
	}
	request := EchoRequest(protocol)
	what := fmt.Sprintf("policy is never asked about ICMP type %d of %s, only about echo requests: ", n, family)
	switch {
	case n == request:
		return ""
	case n == echoReply(protocol):
		return what + fmt.Sprintf("an echo reply passes with the flow that its request opened and never alone; write EchoRequest (type %d)", request)
	case failed:
		what += "an error passes with the flow that it is about"
	case link:
		what += "messages between neighbours are answered on the link and never forwarded"
	default:
		what += "messages of this type never pass"
	}
	return what + "; leave the type out"
}

// icmpTypes are the types that have names.
func icmpTypes(protocol uint8) map[string]uint8 {
	if protocol == ICMPv6 {
		return map[string]uint8{
			"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4,
			"EchoRequest": 128, "EchoReply": 129, "MulticastListenerQuery": 130,
			"MulticastListenerReport": 131, "MulticastListenerDone": 132, "RouterSolicitation": 133,
			"RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136,
			"RedirectMessage": 137,
		}
	}
	return map[string]uint8{
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
		"RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12,
		"Timestamp": 13, "TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
	}
}
