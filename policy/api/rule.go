// SPDX-License-Identifier: Apache-2.0

package api

import (
	"slices"
	"strconv"

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
		manifest.Later{"nodeSelector": "policy for nodes comes with the host firewall; endpointSelector selects workloads", "log": "", "authentication": ""})
	if !ok {
		return r
	}
	r.Description = n.FieldText("description")
	checkRuleLabels(n)
	if sel, ok := n.Field("endpointSelector"); ok {
		r.Endpoints = p.endpointSelector(sel)
	} else if !n.Has("endpointSelector") && !n.Has("nodeSelector") {
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

// part reads one item of a section. The kinds of peers exclude each other, except
// CIDR and CIDRSet.
func (p ruleParser) part(n manifest.Node, s section) Part {
	part := Part{Direction: s.direction, Deny: s.deny}
	prefix := "from"
	if s.direction == datapath.Egress {
		prefix = "to"
	}
	kinds := []string{prefix + "Endpoints", prefix + "Entities", prefix + "CIDR", prefix + "CIDRSet"}
	if s.direction == datapath.Egress {
		kinds = append(kinds, "toServices")
	}
	if !n.Only(append([]string{"toPorts", "icmps"}, kinds...), laterPeers(prefix)) {
		return part
	}
	given := p.peers(n, kinds, &part.Peers)
	hasPorts := false
	if ports, ok := n.Field("toPorts"); ok {
		items := ports.List()
		hasPorts = len(items) > 0
		for _, item := range items {
			part.Ports = append(part.Ports, parsePortRule(item)...)
		}
	}
	if icmps, ok := n.Field("icmps"); ok {
		if hasPorts {
			icmps.Problem("cannot be combined with toPorts in one rule: write two")
		}
		items := icmps.List()
		hasPorts = hasPorts || len(items) > 0
		for _, item := range items {
			part.Ports = append(part.Ports, parseICMPRule(item)...)
		}
	}
	part.Ports = sortPorts(part.Ports)
	checkNames(n, part)
	// A part with neither peers nor ports allows nothing: it is how the
	// language spells "deny by default".
	part.NoPeers = given && part.Peers.Nobody()
	part.Peers.Any = part.Peers.Any || !given && hasPorts
	return part
}

// laterPeers are the other fields of a part; prefix is from or to.
func laterPeers(prefix string) manifest.Later {
	return manifest.Later{
		"authentication":    "",
		prefix + "FQDNs":    "the addresses of names are not followed; write " + prefix + "CIDR",
		prefix + "Groups":   "write the prefixes with " + prefix + "CIDR",
		prefix + "Nodes":    "all nodes together are " + prefix + "Entities: [remote-node]",
		prefix + "Requires": "write what is required into each selector of " + prefix + "Endpoints",
	}
}

// peers reads the fields that name peers: endpoints, entities, CIDR, CIDRSet and
// services.
func (p ruleParser) peers(n manifest.Node, kinds []string, peers *Peers) (given bool) {
	first := ""
	for i, kind := range kinds {
		list, ok := n.Field(kind)
		if !ok {
			continue
		}
		if given && (i != 3 || first != kinds[2]) {
			n.Problem("%s and %s cannot be combined in one rule: write two", first, kind)
		}
		if given = true; first == "" {
			first = kind
		}
		switch i {
		case 0:
			for _, item := range list.List() {
				p.peerSelector(item, peers)
			}
		case 1:
			parseEntities(list, peers)
		case 2:
			parseCIDRs(list, peers)
		case 3:
			parseCIDRSets(list, peers)
		case 4:
			parseServices(list, peers)
		}
	}
	return given
}

// parseServices reads services by their names. The namespace is asked for: what a
// missing one means elsewhere is every namespace.
func parseServices(n manifest.Node, peers *Peers) {
	for _, item := range n.List() {
		if !item.Only([]string{"k8sService"}, manifest.Later{"k8sServiceSelector": "name the service with k8sService"}) {
			continue
		}
		ref, ok := item.Field("k8sService")
		if !ok {
			if !item.Has("k8sService") && !item.Has("k8sServiceSelector") {
				item.At(item.Path + ".k8sService").Problem("required")
			}
			continue
		}
		if !ref.Only([]string{"serviceName", "namespace"}, nil) {
			continue
		}
		name, namespace := ref.FieldText("serviceName"), ref.FieldText("namespace")
		before := len(n.Problems())
		checkName(ref.At(ref.Path+".serviceName"), name, `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
		checkName(ref.At(ref.Path+".namespace"), namespace, `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
		if id := namespace + "/" + name; len(n.Problems()) == before && !slices.Contains(peers.Services, id) {
			peers.Services = append(peers.Services, id)
		}
	}
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
		case "ingress", "unmanaged", "world-ipv4", "world-ipv6":
			item.Problem("entity %q is not supported yet", text)
		default:
			if !e.Accepted() {
				item.Problem("%q is not an entity", text)
				continue
			}
			peers.Entities = append(peers.Entities, e)
		}
	}
}

// Accepted reports whether rules may name the entity.
func (e Entity) Accepted() bool {
	switch e {
	case EntityAll, EntityNone, EntityWorld, EntityCluster, EntityMesh, EntityHost, EntityRemoteNode, EntityHealth, EntityInit, EntityKubeAPIServer:
		return true
	}
	return false
}
