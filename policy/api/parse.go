// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/internal/manifest"
)

// Parse reads one or many documents, YAML or JSON. The error joins all problems
// of all documents, each with document, kind, name and path of the field; with
// an error there are no objects.
func Parse(source []byte) ([]Object, error) {
	docs, err := manifest.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	var objects []Object
	var errs []error
	for _, d := range docs {
		os, problems := parseDocument(d)
		objects = append(objects, os...)
		errs = append(errs, problems...)
	}
	errs = append(errs, duplicates(objects)...)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return objects, nil
}

func duplicates(objects []Object) (errs []error) {
	seen := map[string]string{}
	for _, o := range objects {
		if kind, ok := seen[o.ID()]; ok {
			errs = append(errs, fmt.Errorf("%s %s: its name is already that of a %s in this input",
				o.Kind, o.ID(), kind))
		}
		seen[o.ID()] = o.Kind
	}
	return errs
}

func parseDocument(d manifest.Document) (objects []Object, errs []error) {
	root := d.Root()
	what := KindRuleArray
	if _, ok := root.Value.([]any); ok {
		objects = parseRuleArray(root, d.Text)
	} else if root.Has("items") && root.FieldText("apiVersion") == "v1" && root.FieldText("kind") == kindList {
		objects, what = parseList(root), kindList
	} else {
		var o Object
		o, what = parseManifest(root)
		o.Source = d.Text
		objects = []Object{o}
	}
	if what != "" {
		what += ": "
	}
	for _, p := range root.Problems() {
		errs = append(errs, fmt.Errorf("document %d: %s%w", d.Index, what, p))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return objects, nil
}

// kindList is what `kubectl get -o yaml` writes of several objects.
const kindList = "List"

// parseList reads the objects of a list. Each becomes one with a text of its own.
func parseList(root manifest.Node) (objects []Object) {
	root.Only([]string{"apiVersion", "kind", "metadata", "items"}, nil)
	items, _ := root.Field("items")
	list := items.List()
	if len(list) == 0 {
		items.Problem("the list is empty")
	}
	for _, item := range list {
		o, _ := parseManifest(item)
		b, _ := json.MarshalIndent(item.Value, "", "  ") // it came out of a decoder
		o.Source = string(b)
		for i := range o.Rules {
			o.Rules[i].Path = strings.TrimPrefix(o.Rules[i].Path, item.Path+".")
		}
		objects = append(objects, o)
	}
	return objects
}

// parseManifest reads an object with apiVersion and kind. what names it in
// messages, if it is one.
func parseManifest(root manifest.Node) (o Object, what string) {
	if _, ok := root.Value.(map[string]any); !ok {
		root.Problem("must be an object or a list of rules")
		return o, ""
	}
	version, kind := root.FieldText("apiVersion"), root.FieldText("kind")
	o.Kind = kind
	switch {
	case version == "cilium.io/v2" && (kind == KindNetworkPolicy || kind == KindClusterwidePolicy):
	case version == "hawser.io/v1" && kind == KindMeshPolicy:
	case version == "networking.k8s.io/v1" && kind == KindKubernetesPolicy:
		root.Only([]string{"apiVersion", "kind", "metadata", "spec", "status"}, nil)
		o.parseMetadata(root)
		o.parseNetworkPolicy(root)
		return o, kind + " " + o.ID()
	case strings.HasPrefix(version, "policy.networking.k8s.io/"):
		root.Problem("kind %s of %s is not supported yet: there are no tiers before and behind the policies of namespaces", kind, version)
		return o, ""
	default:
		root.Problem("kind %q of apiVersion %q is not a policy: want %s of networking.k8s.io/v1, %s or %s of cilium.io/v2, or %s of hawser.io/v1",
			kind, version, KindKubernetesPolicy, KindNetworkPolicy, KindClusterwidePolicy, KindMeshPolicy)
		return o, ""
	}
	// A status is the API server's account of the object, not part of it.
	root.Only([]string{"apiVersion", "kind", "metadata", "spec", "specs", "status"}, nil)
	o.parseMetadata(root)
	o.parseSpecs(root)
	return o, kind + " " + o.ID()
}

const maxName = 253

func (o *Object) parseMetadata(root manifest.Node) {
	o.Namespace = "default"
	if o.Kind == KindClusterwidePolicy {
		o.Namespace = ClusterWide
	}
	meta, ok := root.Field("metadata")
	if !ok {
		root.At("metadata").Problem("required")
		return
	}
	// What an API server and its controllers write into an object says nothing of
	// whom it lets do what. One that is being deleted is refused.
	meta.Only([]string{"name", "namespace", "labels", "annotations", "uid", "resourceVersion",
		"generation", "creationTimestamp", "managedFields", "ownerReferences", "finalizers", "selfLink"},
		manifest.NotYet("generateName", "deletionTimestamp", "deletionGracePeriodSeconds"))
	for _, field := range []string{"labels", "annotations"} {
		if m, ok := meta.Field(field); ok {
			_, values := m.Entries()
			for _, v := range values {
				v.Text()
			}
		}
	}
	before := len(meta.Problems())
	if o.Name = meta.FieldText("name"); len(meta.Problems()) == before {
		checkName(meta.At("metadata.name"), o.Name, `^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
	}
	ns, ok := meta.Field("namespace")
	if !ok {
		return
	}
	text, ok := ns.Text()
	if o.Kind == KindClusterwidePolicy {
		ns.Problem("%s belongs to no namespace", o.Kind)
		return
	}
	if ok {
		o.Namespace = text
		checkName(ns, text, `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	}
}

func checkName(n manifest.Node, name, pattern string) {
	switch {
	case name == "":
		n.Problem("required")
	case len(name) > maxName:
		n.Problem("has %d characters: more than %d", len(name), maxName)
	case !regexp.MustCompile(pattern).MatchString(name):
		n.Problem("%q is not a name: want %s", name, pattern)
	}
}

func (o *Object) parseSpecs(root manifest.Node) {
	p := ruleParser{namespace: o.Namespace}
	spec, hasSpec := root.Field("spec")
	if hasSpec {
		o.Rules = append(o.Rules, p.rule(spec))
	}
	specs, hasSpecs := root.Field("specs")
	if hasSpecs {
		items := specs.List()
		for _, item := range items {
			o.Rules = append(o.Rules, p.rule(item))
		}
		if len(items) == 0 {
			specs.Problem("must hold at least one rule")
		}
	}
	if !hasSpec && !hasSpecs && !root.Has("spec") && !root.Has("specs") {
		root.At("spec").Problem("required (or specs)")
	}
}

// parseRuleArray reads the JSON array of rules; the rules that share a name
// label are one object.
func parseRuleArray(root manifest.Node, text string) []Object {
	items := root.List()
	if len(items) == 0 {
		root.Problem("the list of rules is empty")
	}
	p := ruleParser{namespace: ClusterWide}
	byName := map[string]int{}
	var objects []Object
	var values [][]any
	for _, item := range items {
		r := p.rule(item)
		name := ruleName(item)
		i, ok := byName[name]
		if !ok {
			i = len(objects)
			byName[name] = i
			objects = append(objects, Object{Kind: KindRuleArray, Namespace: ClusterWide, Name: name})
			values = append(values, nil)
		}
		values[i] = append(values[i], item.Value)
		r.Path = fmt.Sprintf("[%d]", len(objects[i].Rules))
		objects[i].Rules = append(objects[i].Rules, r)
	}
	for i := range objects {
		objects[i].Source = text
		if len(objects) > 1 {
			// The values came out of a decoder: they can be encoded.
			b, _ := json.MarshalIndent(values[i], "", "  ")
			objects[i].Source = string(b)
		}
	}
	return objects
}

// ruleName is the value of the rule's label "name".
func ruleName(item manifest.Node) string {
	ls, ok := item.Field("labels")
	if !ok {
		item.Problem(`needs a label with key "name" in labels, which names its object`)
		return ""
	}
	names := []string{}
	for _, l := range ls.List() {
		if l.FieldText("key") == "name" {
			names = append(names, l.FieldText("value"))
		}
	}
	if len(names) == 0 {
		ls.Problem(`needs a label with key "name", which names the rule's object`)
		return ""
	}
	if len(slices.Compact(names)) > 1 {
		ls.Problem(`has several labels with key "name"`)
	}
	checkName(ls, names[0], `^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$`)
	return names[0]
}
