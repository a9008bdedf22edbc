// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/internal/manifest"
)

func sortPorts(ports []Port) []Port {
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.End, b.End), cmp.Compare(a.Name, b.Name))
	})
	return slices.Compact(ports)
}

func parsePortRule(n manifest.Node) []Port {
	if !n.Only([]string{"ports"}, laterInPorts()) {
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

// laterInPorts are the fields that look into what connections carry.
func laterInPorts() manifest.Later {
	later := manifest.NotYet("listener", "terminatingTLS", "originatingTLS", "serverNames")
	later["rules"] = "what a connection carries is not looked at; without it the rule means all that the ports carry"
	return later
}

func parsePort(n manifest.Node) []Port {
	if !n.Only([]string{"port", "protocol", "endPort"}, nil) {
		return nil
	}
	port, ok := parsePortOrName(n)
	port.End = parseEndPort(n, port, ok)
	protocols := []uint8{TCP, UDP, SCTP}
	if f, has := n.Field("protocol"); has {
		text, _ := f.Text()
		switch strings.ToUpper(text) {
		case "ANY":
		case "TCP":
			protocols = []uint8{TCP}
		case "UDP":
			protocols = []uint8{UDP}
		case "SCTP":
			protocols = []uint8{SCTP}
		case "ICMP", "ICMPV6":
			f.Problem("protocol %s has no ports: write icmps", text)
		case "VRRP", "IGMP":
			f.Problem("protocol %s is not supported yet", text)
		default:
			f.Problem("%q is not a protocol: want TCP, UDP, SCTP or ANY", text)
		}
	}
	if !ok {
		return nil
	}
	var ports []Port
	for _, port.Protocol = range protocols {
		ports = append(ports, port)
	}
	return ports
}

// parsePortOrName accepts the number as text, as the schema has it, and as a
// number, as people write it.
func parsePortOrName(n manifest.Node) (Port, bool) {
	f, ok := n.Field("port")
	if !ok {
		if !n.Has("port") {
			n.At(n.Path + ".port").Problem("required")
		}
		return Port{}, false
	}
	text, isText := f.Value.(string)
	if !isText {
		v, ok := f.Uint(65535)
		return Port{Port: uint16(v)}, ok
	}
	v, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err != nil && isPortName(text):
		return Port{Name: text}, true
	case err != nil || v > 65535:
		f.Problem("%q is not a port: want 1 to 65535, 0 for all, or a port's name", text)
		return Port{}, false
	}
	return Port{Port: uint16(v)}, true
}

// isPortName reports whether Kubernetes would take s as a port's name.
func isPortName(s string) bool {
	return len(s) <= 15 && regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(s) &&
		strings.ContainsFunc(s, func(r rune) bool { return r >= 'a' && r <= 'z' })
}

// checkNames refuses to ask those for the number of a port's name who have none:
// prefixes outside the mesh, and entities that no workload is. ipBlocks concern
// workloads, too, which have names.
func checkNames(n manifest.Node, p Part) {
	if p.Direction != datapath.Egress {
		return
	}
	var nameless string
	if slices.ContainsFunc(p.Peers.CIDRs, func(c CIDR) bool { return !c.Block }) {
		nameless = "what is in a prefix outside the mesh"
	}
	for _, e := range p.Peers.Entities {
		switch e {
		case EntityWorld, EntityHost, EntityRemoteNode, EntityHealth, EntityInit, EntityKubeAPIServer:
			nameless = "entity " + string(e)
		}
	}
	for _, port := range p.Ports {
		if port.Name != "" && nameless != "" {
			n.Problem("port name %q: %s has no names for its ports; write the number", port.Name, nameless)
		}
	}
}

// parseEndPort is the last port of a range, 0 without one.
func parseEndPort(n manifest.Node, port Port, known bool) uint16 {
	f, ok := n.Field("endPort")
	if !ok {
		return 0
	}
	v, ok := f.Uint(65535)
	switch {
	case !ok || !known:
	case port.Name != "":
		f.Problem("a range cannot begin with a port's name (%q)", port.Name)
	case port.Port == 0:
		f.Problem("a range cannot begin with 0, which is all ports")
	case v < uint64(port.Port):
		f.Problem("%d is before the first port %d", v, port.Port)
	case v > uint64(port.Port):
		return uint16(v)
	}
	return 0
}
