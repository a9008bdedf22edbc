// SPDX-License-Identifier: Apache-2.0

package api

import (
	"strconv"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/manifest"
)

// parseNetworkPolicy reads the spec of a NetworkPolicy of Kubernetes. It differs
// from the other language in that leaving a list out, or empty, means any peer,
// and in that its ipBlocks concern pods as well.
func (o *Object) parseNetworkPolicy(root manifest.Node) {
	n, ok := root.Field("spec")
	if !ok {
		if !root.Has("spec") {
			root.At("spec").Problem("required")
		}
		return
	}
	p := ruleParser{namespace: o.Namespace}
	if !n.Only([]string{"podSelector", "policyTypes", "ingress", "egress"}, nil) {
		return
	}
	r := Rule{Path: n.Path}
	if sel, ok := n.Field("podSelector"); ok {
		checkKeys(sel)
		r.Endpoints = p.endpointSelector(sel)
	} else if !n.Has("podSelector") {
		n.At(n.Path + ".podSelector").Problem("required ({} selects all pods of the namespace)")
	}
	r.DefaultDeny = policyTypes(n)
	for _, s := range sections()[:2] {
		list, ok := n.Field(s.field)
		if !ok {
			continue
		}
		for i, item := range list.List() {
			part := p.networkPolicyPart(item, s)
			part.Path = s.field + "[" + strconv.Itoa(i) + "]"
			// Rules of a direction that the object does not govern say nothing.
			if r.DefaultDeny[s.direction] {
				r.Parts = append(r.Parts, part)
			}
		}
	}
	o.Rules = append(o.Rules, r)
}

// policyTypes are the directions that the object governs. Without the field
// they are ingress, and egress when there are rules for it.
func policyTypes(n manifest.Node) (d [2]bool) {
	var items []manifest.Node
	if f, ok := n.Field("policyTypes"); ok {
		items = f.List()
	}
	for _, item := range items {
		switch text, _ := item.Text(); text {
		case "Ingress":
			d[datapath.Ingress] = true
		case "Egress":
			d[datapath.Egress] = true
		default:
			item.Problem("%q is not a policy type: want Ingress or Egress", text)
		}
	}
	if len(items) == 0 {
		d[datapath.Ingress] = true
		m, _ := n.Value.(map[string]any)
		list, _ := m["egress"].([]any)
		d[datapath.Egress] = len(list) > 0
	}
	return d
}

func (p ruleParser) networkPolicyPart(n manifest.Node, s section) Part {
	part := Part{Direction: s.direction}
	field := "from"
	if s.direction == datapath.Egress {
		field = "to"
	}
	if !n.Only([]string{field, "ports"}, nil) {
		return part
	}
	part.Peers.Any = true
	if list, ok := n.Field(field); ok {
		for _, item := range list.List() {
			part.Peers.Any = false
			p.networkPolicyPeer(item, &part.Peers)
		}
	}
	if list, ok := n.Field("ports"); ok {
		for _, item := range list.List() {
			if port, ok := networkPolicyPort(item); ok {
				part.Ports = append(part.Ports, port)
			}
		}
		part.Ports = sortPorts(part.Ports)
	}
	checkNames(n, part)
	return part
}

func (p ruleParser) networkPolicyPeer(n manifest.Node, peers *Peers) {
	if !n.Only([]string{"podSelector", "namespaceSelector", "ipBlock"}, nil) {
		return
	}
	block, hasBlock := n.Field("ipBlock")
	pods, hasPods := n.Field("podSelector")
	namespaces, hasNamespaces := n.Field("namespaceSelector")
	switch {
	case hasBlock && (hasPods || hasNamespaces):
		n.Problem("ipBlock cannot be combined with podSelector or namespaceSelector")
		return
	case hasBlock:
		if block.Only([]string{"cidr", "except"}, nil) {
			if c, ok := parseCIDRSet(block); ok {
				c.Block = true
				peers.CIDRs = append(peers.CIDRs, c)
			}
		}
		return
	case !hasPods && !hasNamespaces:
		if !n.Has("ipBlock") && !n.Has("podSelector") && !n.Has("namespaceSelector") {
			n.Problem("must have podSelector, namespaceSelector or ipBlock")
		}
		return
	}
	var reqs []Requirement
	if hasPods {
		checkKeys(pods)
		reqs = p.requirements(pods)
	}
	if hasNamespaces {
		reqs = append(reqs, p.namespaceRequirements(namespaces)...)
		// Only pods are in a namespace.
		reqs = append(reqs, Requirement{Source: labels.Mesh, Key: labels.NamespaceKey, Operator: Exists})
	} else {
		reqs = append(reqs, inNamespace(p.namespace))
	}
	peers.Selectors = append(peers.Selectors, NewSelector(reqs...))
}

// namespaceRequirements reads a namespaceSelector. It concerns the labels that
// workloads have from their namespace, of which its name is always there.
func (p ruleParser) namespaceRequirements(n manifest.Node) []Requirement {
	reqs := p.requirements(n)
	for i, r := range reqs {
		if r.Source == labels.Any && r.Key == labels.KubernetesName {
			reqs[i].Source, reqs[i].Key = labels.Mesh, labels.NamespaceKey
			continue
		}
		switch r.Source {
		case labels.Any:
			reqs[i].Source = labels.Namespace
		case labels.Mesh, labels.Namespace:
		default:
			n.Problem("label %q: Kubernetes' labels have no source", r.Source+":"+r.Key)
		}
	}
	return reqs
}

// checkKeys refuses what Kubernetes would not take as a label's key, except the
// labels that Hawser itself sets.
func checkKeys(n manifest.Node) {
	check := func(at manifest.Node, key string) {
		if source, _, found := strings.Cut(key, ":"); found && source != labels.Mesh {
			at.Problem("label %q: Kubernetes' labels have no source", key)
		}
	}
	if m, ok := n.Value.(map[string]any); ok {
		if _, isMap := m["matchLabels"].(map[string]any); isMap {
			names, values := fieldOf(n, "matchLabels").Entries()
			for i, v := range values {
				check(v, names[i])
			}
		}
		if list, isList := m["matchExpressions"].([]any); isList {
			for i, item := range list {
				if e, isMap := item.(map[string]any); isMap {
					key, _ := e["key"].(string)
					check(n.At(n.Path+".matchExpressions["+strconv.Itoa(i)+"].key"), key)
				}
			}
		}
	}
}

func fieldOf(n manifest.Node, name string) manifest.Node {
	f, _ := n.Field(name)
	return f
}

// networkPolicyPort reads a port; without a number it is every port of its
// protocol.
func networkPolicyPort(n manifest.Node) (Port, bool) {
	if !n.Only([]string{"port", "protocol", "endPort"}, nil) {
		return Port{}, false
	}
	port, ok := Port{}, true
	if f, has := n.Field("port"); has {
		port, ok = kubernetesPort(f)
	} else if n.Has("endPort") {
		n.At(n.Path + ".endPort").Problem("needs port, the first of the range")
		ok = false
	}
	port.End = 0
	if ok && n.Has("port") {
		port.End = parseEndPort(n, port, ok)
	}
	port.Protocol = TCP
	if f, has := n.Field("protocol"); has {
		switch text, _ := f.Text(); text {
		case "TCP":
		case "UDP":
			port.Protocol = UDP
		case "SCTP":
			port.Protocol = SCTP
		default:
			f.Problem("%q is not a protocol: want TCP, UDP or SCTP", text)
		}
	}
	return port, ok
}

// kubernetesPort is a number or a name; text is always a name.
func kubernetesPort(f manifest.Node) (Port, bool) {
	if text, isText := f.Value.(string); isText {
		if isPortName(text) {
			return Port{Name: text}, true
		}
		f.Problem("%q is not a port's name: numbers are written without quotes", text)
		return Port{}, false
	}
	v, ok := f.Uint(65535)
	if ok && v == 0 {
		f.Problem("must be from 1 to 65535")
		return Port{}, false
	}
	return Port{Port: uint16(v)}, ok
}
