// SPDX-License-Identifier: Apache-2.0

package api

import (
	"strings"

	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/manifest"
)

// endpointSelector reads what selects local endpoints. A namespaced object
// selects in its namespace only.
func (p ruleParser) endpointSelector(n manifest.Node) Selector {
	reqs := p.requirements(n)
	for _, r := range reqs {
		switch {
		case r.Source == labels.Reserved:
			n.Problem("selects %s:%s: policy for nodes and reserved endpoints is not supported yet", r.Source, r.Key)
		case p.namespace != ClusterWide && isNamespace(r) && !r.is(p.namespace):
			n.Problem("names another namespace: an object of namespace %q selects in it only", p.namespace)
		}
	}
	if p.namespace != ClusterWide {
		reqs = append(reqs, inNamespace(p.namespace))
	}
	return NewSelector(reqs...)
}

// peerSelector reads one item of fromEndpoints or toEndpoints. In a namespaced
// object it means that namespace unless it names one, or labels of namespaces.
func (p ruleParser) peerSelector(n manifest.Node, peers *Peers) {
	reqs := p.requirements(n)
	reserved, named := 0, false
	for _, r := range reqs {
		if r.Source == labels.Reserved {
			reserved++
		}
		named = named || isNamespace(r) || r.Source == labels.Namespace
	}
	if reserved > 0 {
		if e, ok := reservedPeer(n, reqs); ok {
			peers.Entities = append(peers.Entities, e)
		}
		return
	}
	if p.namespace != ClusterWide && !named {
		reqs = append(reqs, inNamespace(p.namespace))
	}
	peers.Selectors = append(peers.Selectors, NewSelector(reqs...))
}

// reservedPeer is the entity that a selector like {"reserved:host": ""} means.
func reservedPeer(n manifest.Node, reqs []Requirement) (Entity, bool) {
	r := reqs[0]
	if len(reqs) != 1 || r.Operator != Exists && !r.is("") {
		n.Problem("a reserved label must stand alone, without a value")
		return "", false
	}
	switch e := Entity(r.Key); e {
	case EntityWorld, EntityHost, EntityRemoteNode, EntityHealth, EntityInit, EntityKubeAPIServer:
		return e, true
	}
	n.Problem("label reserved:%s is not supported", r.Key)
	return "", false
}

func isNamespace(r Requirement) bool {
	return r.Source == labels.Mesh && r.Key == labels.NamespaceKey
}

func inNamespace(ns string) Requirement {
	return Requirement{Source: labels.Mesh, Key: labels.NamespaceKey, Operator: In, Values: []string{ns}}
}

// is reports whether the requirement wants exactly one value.
func (r Requirement) is(value string) bool {
	return r.Operator == In && len(r.Values) == 1 && r.Values[0] == value
}

// requirements reads matchLabels and matchExpressions.
func (p ruleParser) requirements(n manifest.Node) []Requirement {
	if !n.Only([]string{"matchLabels", "matchExpressions"}, nil) {
		return nil
	}
	var reqs []Requirement
	if m, ok := n.Field("matchLabels"); ok {
		names, values := m.Entries()
		for i, v := range values {
			text, isText := v.Text()
			source, key, known := labelName(v, names[i])
			if isText && known && checkValue(v, text) {
				reqs = append(reqs, Requirement{source, key, In, []string{text}})
			}
		}
	}
	if m, ok := n.Field("matchExpressions"); ok {
		for _, item := range m.List() {
			if r, ok := parseExpression(item); ok {
				reqs = append(reqs, r)
			}
		}
	}
	return reqs
}

func parseExpression(n manifest.Node) (r Requirement, ok bool) {
	if !n.Only([]string{"key", "operator", "values"}, nil) {
		return r, false
	}
	before := len(n.Problems())
	key := n.FieldText("key")
	r.Source, r.Key, _ = labelName(n.At(n.Path+".key"), key)
	r.Operator = Operator(n.FieldText("operator"))
	if values, has := n.Field("values"); has {
		for _, v := range values.List() {
			if text, isText := v.Text(); isText && checkValue(v, text) {
				r.Values = append(r.Values, text)
			}
		}
	}
	switch r.Operator {
	case In, NotIn:
		if len(r.Values) == 0 {
			n.At(n.Path+".values").Problem("required with operator %s", r.Operator)
		}
	case Exists, DoesNotExist:
		if len(r.Values) > 0 {
			n.At(n.Path+".values").Problem("not allowed with operator %s", r.Operator)
		}
	default:
		n.At(n.Path+".operator").Problem("%q is not an operator: want In, NotIn, Exists or DoesNotExist", r.Operator)
	}
	return r, len(n.Problems()) == before
}

// Names by which others know the labels that Hawser sets itself.
const (
	aliasCluster         = "io.cilium.k8s.policy.cluster"
	aliasNamespace       = "io.kubernetes.pod.namespace"
	aliasNamespaceLabels = "io.cilium.k8s.namespace.labels."
	aliasNamespaceName   = aliasNamespaceLabels + labels.KubernetesName
)

// labelName splits a selector's key into source and key and translates aliases.
// A key of a family that no endpoint here carries is refused: a selector that
// silently selects nothing is a hole.
func labelName(n manifest.Node, name string) (source, key string, ok bool) {
	l, err := labels.Parse(name, labels.Any)
	if err != nil || strings.Contains(name, "=") {
		n.Problem("%q is not the name of a label", name)
		return "", "", false
	}
	source, key = l.Source, l.Key
	foreign := source == labels.Any || source == labels.Kubernetes
	switch {
	case foreign && key == aliasCluster:
		return labels.Mesh, labels.ClusterKey, true
	case foreign && (key == aliasNamespace || key == aliasNamespaceName):
		return labels.Mesh, labels.NamespaceKey, true
	case foreign && strings.HasPrefix(key, aliasNamespaceLabels):
		if key = strings.TrimPrefix(key, aliasNamespaceLabels); key == "" {
			n.Problem("%q is not the name of a label", name)
			return "", "", false
		}
		return labels.Namespace, key, true
	case source == labels.Namespace && key == labels.KubernetesName:
		return labels.Mesh, labels.NamespaceKey, true
	case foreign && (strings.HasPrefix(key, "io.cilium.k8s.") || strings.HasPrefix(key, "io.kubernetes.pod.")):
		n.Problem("label %q is not supported yet", name)
		return "", "", false
	case source == labels.Mesh && key != labels.ClusterKey && key != labels.NamespaceKey:
		n.Problem("label %q does not exist: there are mesh:cluster and mesh:namespace", name)
		return "", "", false
	case name == "true" || name == "false":
		n.Problem("label %q: YAML reads unquoted y, yes, on, n, no and off as true and false; quote the key", name)
		return "", "", false
	case source == labels.CIDR:
		n.Problem("label %q: cidr labels cannot be selected", name)
		return "", "", false
	}
	return source, key, true
}

// maxValue is how long a value of a label may be, in bytes.
const maxValue = 256

func checkValue(n manifest.Node, v string) bool {
	if len(v) > maxValue || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == ';' || r == 0x7f }) {
		n.Problem("not a value of a label: too long, or has ';' or control characters")
		return false
	}
	return true
}
