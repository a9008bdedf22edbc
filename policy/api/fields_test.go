// SPDX-License-Identifier: Apache-2.0

package api

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// known is a field of a language: two values that must mean different things, or
// one that says nothing of what is allowed, or none for a field that is refused.
type known []string

// mapping is one place in a document where a mapping stands.
type mapping struct {
	path   string // of the mapping in its document
	doc    string // the document, with {%} for the mapping
	base   map[string]string
	fields map[string]known
}

func (m mapping) with(field, value string) []byte {
	var items []string
	for _, k := range slices.Sorted(maps.Keys(m.base)) {
		if k != field {
			items = append(items, k+": "+m.base[k])
		}
	}
	return []byte(strings.Replace(m.doc, "{%}", "{"+strings.Join(append(items, field+": "+value), ", ")+"}", 1))
}

// selectorFields and expressionFields are the same wherever selectors stand.
func selectorFields() map[string]known {
	return map[string]known{
		"matchLabels":      {"{a: b}", "{a: c}"},
		"matchExpressions": {"[{key: a, operator: Exists}]", "[{key: a, operator: DoesNotExist}]"},
	}
}

// inRules are the mappings in a rule, by where they stand in it.
func inRules(doc, path string) []mapping {
	at := func(p, in string, base map[string]string, fields map[string]known) mapping {
		return mapping{path + p, strings.Replace(doc, "{%}", in, 1), base, fields}
	}
	out := []mapping{
		at("", "{%}", map[string]string{"endpointSelector": "{}", "ingress": "[{}]"}, map[string]known{
			"endpointSelector": {"{}", "{matchLabels: {a: b}}"}, "nodeSelector": nil,
			"ingress": {"[{}]", "[{fromEntities: [all]}]"}, "egress": {"[{}]", "[{toEntities: [all]}]"},
			"ingressDeny": {"[{}]", "[{fromEntities: [all]}]"}, "egressDeny": {"[{}]", "[{toEntities: [all]}]"},
			"enableDefaultDeny": {"{ingress: false}", "{egress: true}"},
			"labels":            {"[{key: a}]"}, "description": {"a", "b"}, "log": nil, "authentication": nil,
		}),
		at(".enableDefaultDeny", "{endpointSelector: {}, ingress: [{}], egress: [{}], enableDefaultDeny: {%}}", nil,
			map[string]known{"ingress": {"true", "false"}, "egress": {"true", "false"}}),
		at(".labels[0]", "{endpointSelector: {}, ingress: [{}], labels: [{%}]}", map[string]string{"key": "a"},
			map[string]known{"key": {"b"}, "value": {"v"}, "source": {"s"}}),
		at(".endpointSelector", "{endpointSelector: {%}, ingress: [{}]}", nil, selectorFields()),
		at(".endpointSelector.matchExpressions[0]", "{endpointSelector: {matchExpressions: [{%}]}, ingress: [{}]}",
			map[string]string{"key": "a", "operator": "In", "values": "[b]"},
			map[string]known{"key": {"a", "c"}, "operator": {"In", "NotIn"}, "values": {"[b]", "[b, c]"}}),
	}
	for _, section := range []string{"ingress", "egress", "ingressDeny", "egressDeny"} {
		prefix := "from"
		if strings.HasPrefix(section, "egress") {
			prefix = "to"
		}
		in := func(p, item string, base map[string]string, fields map[string]known) mapping {
			return at("."+section+"[0]"+p, "{endpointSelector: {}, "+section+": ["+item+"]}", base, fields)
		}
		part := map[string]known{
			prefix + "Endpoints": {"[{}]", "[{matchLabels: {a: b}}]"}, prefix + "Entities": {"[all]", "[world]"},
			prefix + "CIDR": {"[10.0.0.0/8]", "[10.0.0.0/9]"}, prefix + "CIDRSet": {"[{cidr: 10.0.0.0/8}]", "[{cidr: 10.0.0.0/9}]"},
			"toPorts": {"[{ports: [{port: 80}]}]", "[{ports: [{port: 81}]}]"}, "icmps": {"[{fields: [{type: 8}]}]", "[{fields: [{type: 128, family: IPv6}]}]"},
			prefix + "Requires": nil, prefix + "Groups": nil, prefix + "Nodes": nil, prefix + "FQDNs": nil, "authentication": nil,
		}
		if prefix == "to" {
			part["toServices"] = known{"[{k8sService: {serviceName: a, namespace: b}}]", "[{k8sService: {serviceName: a, namespace: c}}]"}
			out = append(out,
				in(".toServices[0]", "{toServices: [{%}]}", nil, map[string]known{
					"k8sService": {"{serviceName: a, namespace: b}", "{serviceName: b, namespace: b}"}, "k8sServiceSelector": nil}),
				in(".toServices[0].k8sService", "{toServices: [{k8sService: {%}}]}", map[string]string{"serviceName": "a", "namespace": "b"},
					map[string]known{"serviceName": {"a", "b"}, "namespace": {"b", "c"}}))
		}
		out = append(out, in("", "{%}", nil, part),
			in("."+prefix+"Endpoints[0]", "{"+prefix+"Endpoints: [{%}]}", nil, selectorFields()),
			in("."+prefix+"CIDRSet[0]", "{"+prefix+"CIDRSet: [{%}]}", map[string]string{"cidr": "10.0.0.0/8"}, map[string]known{
				"cidr": {"10.0.0.0/8", "11.0.0.0/8"}, "except": {"[10.1.0.0/16]", "[10.2.0.0/16]"}, "cidrGroupRef": nil, "cidrGroupSelector": nil}),
			in(".toPorts[0]", "{toPorts: [{%}]}", map[string]string{"ports": "[{port: 80}]"}, map[string]known{
				"ports": {"[{port: 80}]", "[{port: http}]"}, "rules": nil, "listener": nil, "terminatingTLS": nil, "originatingTLS": nil, "serverNames": nil}),
			in(".toPorts[0].ports[0]", "{toPorts: [{ports: [{%}]}]}", map[string]string{"port": "80"}, map[string]known{
				"port": {"80", "'81'"}, "endPort": {"90", "91"}, "protocol": {"TCP", "UDP"}}),
			in(".icmps[0]", "{icmps: [{%}]}", nil, map[string]known{"fields": {"[{type: 8}]", "[{type: 128, family: IPv6}]"}}),
			in(".icmps[0].fields[0]", "{icmps: [{fields: [{%}]}]}", map[string]string{"type": "EchoRequest"}, map[string]known{
				"type": {"8"}, "family": {"IPv4", "IPv6"}}))
	}
	return out
}

func metadataFields() map[string]known {
	return map[string]known{
		"name": {"a", "b"}, "namespace": {"a", "b"}, "labels": {"{a: b}"}, "annotations": {"{a: b}"}, "uid": {"x"},
		"resourceVersion": {"x"}, "generation": {"1"}, "creationTimestamp": {"x"}, "managedFields": {"[]"}, "selfLink": {"x"},
		"ownerReferences": {"[{apiVersion: apps/v1, kind: Deployment, name: web, uid: x, controller: true}]"}, "finalizers": {"[example.com/x]"},
		"generateName": nil, "deletionTimestamp": nil, "deletionGracePeriodSeconds": nil,
	}
}

// TestEveryField goes through the fields that the Rule type of Cilium and the
// NetworkPolicy of Kubernetes have: each does something, or is refused by name;
// what is a field elsewhere is unknown here.
func TestEveryField(t *testing.T) {
	head := func(version, kind, metadata string) string {
		return "{apiVersion: " + version + ", kind: " + kind + ", metadata: {" + metadata + "}, "
	}
	const rule = "{endpointSelector: {}, ingress: [{}]}"
	languages := map[string][]mapping{"RuleArray": inRules("[{%}]", "[0]")}
	for kind, version := range map[string]string{KindNetworkPolicy: "cilium.io/v2", KindClusterwidePolicy: "cilium.io/v2", KindMeshPolicy: "hawser.io/v1"} {
		head := head(version, kind, "name: p")
		metadata := metadataFields()
		if kind == KindClusterwidePolicy {
			delete(metadata, "namespace") // TestRefused
		}
		languages[kind] = append(inRules(head+"spec: {%}}", "spec"),
			mapping{"metadata", "{apiVersion: " + version + ", kind: " + kind + ", metadata: {%}, spec: " + rule + "}", map[string]string{"name": "p"}, metadata},
			mapping{"", "{%}", map[string]string{"apiVersion": version, "kind": kind, "metadata": "{name: p}", "spec": rule},
				map[string]known{"spec": {rule, "{endpointSelector: {}, egress: [{}]}"}, "specs": {"[" + rule + "]", "[" + rule + ", " + rule + "]"}, "status": {"{}"}}})
	}
	np := head("networking.k8s.io/v1", KindKubernetesPolicy, "name: p") + "spec: "
	languages[KindKubernetesPolicy] = inNetworkPolicy(np)
	all := map[string]bool{"bogus": true}
	for _, mappings := range languages {
		for _, m := range mappings {
			for f := range m.fields {
				all[f] = true
			}
		}
	}
	for language, mappings := range languages {
		t.Run(language, func(t *testing.T) {
			for _, m := range mappings {
				if language == "RuleArray" {
					m.doc = strings.Replace(m.doc, "[{", "[{labels: [{key: name, value: p}], ", 1)
					if m.path == "[0]" {
						m.doc = "[{%}]"
						m.base["labels"] = "[{key: name, value: p}]"
						delete(m.fields, "labels") // TestRefused
					} else if strings.HasPrefix(m.path, "[0].labels") {
						continue
					}
				}
				m.check(t, all)
			}
		})
	}
}

// inNetworkPolicy are the mappings of a NetworkPolicy; head is what stands before
// the spec.
func inNetworkPolicy(head string) []mapping {
	at := func(p, in string, base map[string]string, fields map[string]known) mapping {
		return mapping{"spec" + p, head + in + "}", base, fields}
	}
	out := []mapping{
		at("", "{%}", map[string]string{"podSelector": "{}", "policyTypes": "[Ingress, Egress]"}, map[string]known{
			"podSelector": {"{}", "{matchLabels: {a: b}}"}, "policyTypes": {"[Ingress]", "[Egress]"},
			"ingress": {"[]", "[{}]"}, "egress": {"[]", "[{}]"}}),
		at(".podSelector", "{podSelector: {%}}", nil, selectorFields()),
		{"metadata", "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {%}, spec: {podSelector: {}}}", map[string]string{"name": "p"}, metadataFields()},
		{"", "{%}", map[string]string{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": "{name: p}", "spec": "{podSelector: {}}"},
			map[string]known{"spec": {"{podSelector: {}}", "{podSelector: {}, ingress: [{}]}"}, "status": {"{}"}}},
	}
	for section, field := range map[string]string{"ingress": "from", "egress": "to"} {
		in := func(p, item string, base map[string]string, fields map[string]known) mapping {
			return at("."+section+"[0]"+p, "{podSelector: {}, "+section+": ["+item+"]}", base, fields)
		}
		out = append(out,
			in("", "{%}", nil, map[string]known{field: {"[]", "[{podSelector: {}}]"}, "ports": {"[]", "[{port: 80}]"}}),
			in(".ports[0]", "{ports: [{%}]}", map[string]string{"port": "80"}, map[string]known{
				"port": {"80", "http"}, "endPort": {"90", "91"}, "protocol": {"TCP", "SCTP"}}),
			in("."+field+"[0]", "{"+field+": [{%}]}", nil, map[string]known{
				"podSelector": {"{}", "{matchLabels: {a: b}}"}, "namespaceSelector": {"{matchLabels: {team: b}}", "{matchLabels: {kubernetes.io/metadata.name: b}}"},
				"ipBlock": {"{cidr: 10.0.0.0/8}", "{cidr: 10.0.0.0/9}"}}),
			in("."+field+"[0].ipBlock", "{"+field+": [{ipBlock: {%}}]}", map[string]string{"cidr": "10.0.0.0/8"}, map[string]known{
				"cidr": {"10.0.0.0/8", "11.0.0.0/8"}, "except": {"[10.1.0.0/16]", "[10.2.0.0/16]"}}),
			in("."+field+"[0].podSelector", "{"+field+": [{podSelector: {%}}]}", nil, selectorFields()))
	}
	return out
}

func (m mapping) check(t *testing.T, names map[string]bool) {
	t.Helper()
	path := func(field string) string { return strings.TrimPrefix(m.path+"."+field, ".") }
	refused := func(field, value, why string) {
		t.Helper()
		objects, err := Parse(m.with(field, value))
		if err == nil || !strings.Contains(err.Error(), path(field)+": "+why) {
			t.Errorf("%s: %s: %d objects, error %v, want %q", path(field), value, len(objects), err, why)
		}
	}
	for field, values := range m.fields {
		if values == nil {
			refused(field, "x", "not supported yet")
			refused(field, "null", "not supported yet")
			continue
		}
		var meanings [][]Object
		for _, value := range values {
			objects, err := Parse(m.with(field, value))
			if err != nil {
				t.Errorf("%s: %s: %v", path(field), value, err)
				continue
			}
			for i := range objects {
				objects[i].Source = ""
			}
			meanings = append(meanings, objects)
		}
		if len(meanings) == 2 && reflect.DeepEqual(meanings[0], meanings[1]) {
			t.Errorf("%s: %s and %s mean the same", path(field), values[0], values[1])
		}
	}
	names = maps.Clone(names)
	for f := range m.fields {
		names[strings.ToUpper(f[:1])+f[1:]], names[f+"x"] = true, true
	}
	for name := range names {
		_, isField := m.fields[name]
		if _, inBase := m.base[name]; isField || inBase || m.path == "metadata" && name == "namespace" {
			continue
		}
		objects, err := Parse(m.with(name, "x"))
		if err == nil || !strings.Contains(err.Error(), path(name)+": unknown field") {
			t.Errorf("%s: %d objects, error %v, want an unknown field", path(name), len(objects), err)
		}
	}
}

// TestEveryEntity goes through the entities that Cilium has.
func TestEveryEntity(t *testing.T) {
	for entity, accepted := range map[string]bool{
		"all": true, "none": true, "world": true, "cluster": true, "host": true, "remote-node": true, "health": true, "init": true,
		"mesh": true, "kube-apiserver": true, "ingress": false, "unmanaged": false, "world-ipv4": false, "world-ipv6": false,
	} {
		_, err := Parse([]byte(cnp("endpointSelector: {}\ningress: [{fromEntities: [" + entity + "]}]\negressDeny: [{toEntities: [" + entity + "]}]")))
		switch {
		case accepted && err != nil:
			t.Errorf("%s: %v", entity, err)
		case !accepted && (err == nil || strings.Count(err.Error(), `entity "`+entity+`" is not supported yet`) != 2):
			t.Errorf("%s: error %v, want it to be refused at both places", entity, err)
		}
	}
}
