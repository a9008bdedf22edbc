// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/internal/manifest"
)

// ruleParser reads rules of one object.
type ruleParser struct {
	namespace string
}

// section is one of the four lists of a rule.
type section struct {
	field     string
	direction datapath.Direction
	deny      bool
}

func sections() []section {
	return []section{
		{"ingress", datapath.Ingress, false}, {"egress", datapath.Egress, false},
		{"ingressDeny", datapath.Ingress, true}, {"egressDeny", datapath.Egress, true},
	}
}

func (p ruleParser) rule(n manifest.Node) Rule {
	r := Rule{Path: n.Path}
	ok := n.Only([]string{"endpointSelector", "ingress", "egress", "ingressDeny", "egressDeny",
		"description", "labels", "enableDefaultDeny"},
		[]string{"nodeSelector", "log", "authentication"})
	if !ok {
		return r
	}
	r.Description = n.FieldText("description")
	checkRuleLabels(n)
	if sel, ok := n.Field("endpointSelector"); ok {
		r.Endpoints = p.endpointSelector(sel)
	} else if !n.Has("endpointSelector") {
		n.At(n.Path + ".endpointSelector").Problem("required ({} selects all endpoints)")
	}
	for _, s := range sections() {
		list, ok := n.Field(s.field)
		if !ok {
			continue
		}
		for i, item := range list.List() {
			part := p.part(item, s)
			part.Path = s.field + "[" + strconv.Itoa(i) + "]"
			r.Parts = append(r.Parts, part)
			r.DefaultDeny[s.direction] = true
		}
	}
	explicit := parseDefaultDeny(n, &r)
	if len(r.Parts) == 0 && !explicit && len(n.Problems()) == 0 {
		n.Problem("has no effect: an empty list does not deny either; write ingress: [{}] or egress: [{}] to deny by default")
	}
	return r
}

// parseDefaultDeny applies enableDefaultDeny and reports whether it asks for a
// default deny.
func parseDefaultDeny(n manifest.Node, r *Rule) bool {
	dd, ok := n.Field("enableDefaultDeny")
	if !ok || !dd.Only([]string{"ingress", "egress"}, nil) {
		return false
	}
	asked := false
	for i, field := range []string{"ingress", "egress"} {
		if f, ok := dd.Field(field); ok {
			r.DefaultDeny[i], _ = f.Bool()
			asked = asked || r.DefaultDeny[i]
		}
	}
	return asked
}

func checkRuleLabels(n manifest.Node) {
	ls, ok := n.Field("labels")
	if !ok {
		return
	}
	for _, l := range ls.List() {
		if !l.Only([]string{"key", "value", "source"}, nil) {
			continue
		}
		if l.FieldText("key") == "" {
			l.At(l.Path + ".key").Problem("required")
		}
		l.FieldText("value")
		l.FieldText("source")
	}
}

func (p ruleParser) part(n manifest.Node, s section) Part {
	part := Part{Direction: s.direction, Deny: s.deny}
	prefix := "from"
	if s.direction == datapath.Egress {
		prefix = "to"
	}
	later := []string{"icmps", "authentication"}
	for _, peer := range []string{"CIDR", "CIDRSet", "FQDNs", "Services", "Groups", "Nodes", "Requires"} {
		later = append(later, prefix+peer)
	}
	if !n.Only([]string{prefix + "Endpoints", prefix + "Entities", "toPorts"}, later) {
		return part
	}
	endpoints, hasEndpoints := n.Field(prefix + "Endpoints")
	entities, hasEntities := n.Field(prefix + "Entities")
	if hasEndpoints && hasEntities {
		n.Problem("%sEndpoints and %sEntities cannot be combined in one rule: write two", prefix, prefix)
	}
	if hasEndpoints {
		for _, item := range endpoints.List() {
			p.peerSelector(item, &part.Peers)
		}
	}
	if hasEntities {
		parseEntities(entities, &part.Peers)
	}
	hasPorts := false
	if ports, ok := n.Field("toPorts"); ok {
		items := ports.List()
		hasPorts = len(items) > 0
		for _, item := range items {
			part.Ports = append(part.Ports, parsePortRule(item)...)
		}
		part.Ports = sortPorts(part.Ports)
	}
	// A part with neither peers nor ports allows nothing: it is how the
	// language spells "deny by default".
	part.Peers.Any = part.Peers.Any || !hasEndpoints && !hasEntities && hasPorts
	return part
}

func sortPorts(ports []Port) []Port {
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(ports)
}

func parseEntities(n manifest.Node, peers *Peers) {
	for _, item := range n.List() {
		text, ok := item.Text()
		if !ok {
			continue
		}
		switch e := Entity(text); e {
		case EntityAll:
			peers.Any = true
		case EntityNone:
		case EntityWorld, EntityCluster, EntityMesh, EntityHost, EntityRemoteNode, EntityHealth, EntityInit:
			peers.Entities = append(peers.Entities, e)
		case "kube-apiserver", "ingress", "unmanaged", "world-ipv4", "world-ipv6":
			item.Problem("entity %q is not supported yet", text)
		default:
			item.Problem("%q is not an entity", text)
		}
	}
}

func parsePortRule(n manifest.Node) []Port {
	if !n.Only([]string{"ports"}, []string{"rules", "listener", "terminatingTLS", "originatingTLS", "serverNames"}) {
		return nil
	}
	list, ok := n.Field("ports")
	if !ok {
		if !n.Has("ports") {
			n.At(n.Path + ".ports").Problem("required")
		}
		return nil
	}
	items := list.List()
	if len(items) == 0 {
		list.Problem("must name at least one port")
	}
	var ports []Port
	for _, item := range items {
		ports = append(ports, parsePort(item)...)
	}
	return ports
}

func parsePort(n manifest.Node) []Port {
	if !n.Only([]string{"port", "protocol"}, []string{"endPort"}) {
		return nil
	}
	number, ok := parsePortNumber(n)
	protocol := "ANY"
	if f, has := n.Field("protocol"); has {
		text, _ := f.Text()
		protocol = strings.ToUpper(text)
		switch protocol {
		case "TCP", "UDP", "ANY":
		case "SCTP", "ICMP", "ICMPV6", "VRRP", "IGMP":
			f.Problem("protocol %s is not supported yet", protocol)
		default:
			f.Problem("%q is not a protocol: want TCP, UDP or ANY", text)
		}
	}
	if !ok {
		return nil
	}
	var ports []Port
	if protocol != "UDP" {
		ports = append(ports, Port{TCP, number})
	}
	if protocol != "TCP" {
		ports = append(ports, Port{UDP, number})
	}
	return ports
}

// parsePortNumber accepts the number as text, as the schema has it, and as a
// number, as people write it.
func parsePortNumber(n manifest.Node) (uint16, bool) {
	f, ok := n.Field("port")
	if !ok {
		if !n.Has("port") {
			n.At(n.Path + ".port").Problem("required")
		}
		return 0, false
	}
	text, isText := f.Value.(string)
	if !isText {
		v, ok := f.Uint(65535)
		return uint16(v), ok
	}
	v, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err != nil && strings.ContainsAny(text, "abcdefghijklmnopqrstuvwxyz"):
		f.Problem("port names (%q) are not supported yet", text)
	case err != nil || v > 65535:
		f.Problem("%q is not a port: want 1 to 65535, or 0 for all", text)
	default:
		return uint16(v), true
	}
	return 0, false
}
