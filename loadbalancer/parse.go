// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/manifest"
)

// ParseServices reads one or many Kubernetes v1 Services, YAML or JSON. The
// error joins all problems of all documents, each with document, name and path
// of the field; with an error there are no objects.
func ParseServices(source []byte) ([]Object, error) {
	docs, err := manifest.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("read services: %w", err)
	}
	var objects []Object
	var errs []error
	seen := map[string]bool{}
	for _, d := range docs {
		root := d.Root()
		o := parseService(root)
		o.Source = d.Text
		what := "document"
		if root.FieldText("kind") == "Service" {
			what = "Service " + o.ID()
			if seen[o.ID()] {
				root.Problem("given twice in this input")
			}
			seen[o.ID()] = true
		}
		for _, p := range root.Problems() {
			errs = append(errs, fmt.Errorf("document %d: %s: %w", d.Index, what, p))
		}
		objects = append(objects, o)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return objects, nil
}

func parseService(root manifest.Node) Object {
	o := Object{Service: &keyspacev1.Service{Namespace: "default", Type: "ClusterIP"}}
	version, kind := root.FieldText("apiVersion"), root.FieldText("kind")
	if version != "v1" || kind != "Service" {
		root.Problem("kind %q of apiVersion %q is not a service: want Service of v1", kind, version)
		return o
	}
	// A status is the API server's account of the object, not part of it.
	root.Only([]string{"apiVersion", "kind", "metadata", "spec", "status"}, nil)
	o.parseMetadata(root)
	spec, ok := root.Field("spec")
	if !ok {
		if !root.Has("spec") {
			root.At("spec").Problem("required")
		}
		return o
	}
	o.parseSpec(spec)
	return o
}

func (o *Object) parseMetadata(root manifest.Node) {
	meta, ok := root.Field("metadata")
	if !ok {
		root.At("metadata").Problem("required")
		return
	}
	meta.Only([]string{"name", "namespace", "labels", "annotations", "uid", "resourceVersion",
		"generation", "creationTimestamp", "managedFields", "ownerReferences", "finalizers", "selfLink"},
		manifest.NotYet("generateName", "deletionTimestamp", "deletionGracePeriodSeconds"))
	s := o.Service
	s.Name = meta.FieldText("name")
	checkLabelName(meta.At("metadata.name"), s.Name)
	if meta.Has("namespace") {
		s.Namespace = meta.FieldText("namespace")
		checkLabelName(meta.At("metadata.namespace"), s.Namespace)
	}
	if m, ok := meta.Field("labels"); ok {
		s.Labels = textMap(m)
	}
	if m, ok := meta.Field("annotations"); ok {
		parseAnnotations(m, s)
	}
}

func checkLabelName(n manifest.Node, name string) {
	switch {
	case name == "":
		n.Problem("required")
	case len(name) > 63 || !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`).MatchString(name):
		n.Problem("%.80q is not a name: want at most 63 of a-z, 0-9 and -, neither first nor last a -", name)
	}
}

func textMap(n manifest.Node) map[string]string {
	out := map[string]string{}
	names, values := n.Entries()
	for i, v := range values {
		if text, ok := v.Text(); ok {
			out[names[i]] = text
		}
	}
	return out
}

// laterFields are fields of a Service's spec that are understood, but not
// supported.
func laterFields() []string {
	return []string{"externalIPs", "externalName", "externalTrafficPolicy", "healthCheckNodePort",
		"loadBalancerIP", "loadBalancerClass", "loadBalancerSourceRanges", "allocateLoadBalancerNodePorts",
		"publishNotReadyAddresses", "trafficDistribution"}
}

func (o *Object) parseSpec(spec manifest.Node) {
	ok := spec.Only([]string{"type", "selector", "ports", "clusterIP", "clusterIPs", "sessionAffinity",
		"sessionAffinityConfig", "internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy"}, manifest.NotYet(laterFields()...))
	if !ok {
		return
	}
	only(spec, "type", "ClusterIP")
	o.parseAffinity(spec)
	only(spec, "internalTrafficPolicy", "Cluster")
	if f, ok := spec.Field("selector"); ok {
		o.Service.Selector = textMap(f)
	}
	o.parseClusterIPs(spec)
	o.parseFamilies(spec)
	ports, ok := spec.Field("ports")
	if !ok {
		if !spec.Has("ports") {
			spec.At("spec.ports").Problem("required")
		}
		return
	}
	o.parsePorts(ports)
}

// Seconds for which a client stays with its backend.
const (
	defaultAffinity = 10800
	maxAffinity     = 86400
)

func (o *Object) parseAffinity(spec manifest.Node) {
	f, ok := spec.Field("sessionAffinity")
	text := ""
	if ok {
		text, _ = f.Text()
	}
	switch text {
	case "", "None":
		if c, ok := spec.Field("sessionAffinityConfig"); ok {
			c.Problem("set sessionAffinity: ClientIP too")
		}
		return
	case "ClientIP":
	default:
		f.Problem("%q: want None or ClientIP", text)
		return
	}
	o.Service.SessionAffinitySeconds = defaultAffinity
	config, ok := spec.Field("sessionAffinityConfig")
	if !ok || !config.Only([]string{"clientIP"}, nil) {
		return
	}
	client, ok := config.Field("clientIP")
	if !ok || !client.Only([]string{"timeoutSeconds"}, nil) {
		return
	}
	if t, ok := client.Field("timeoutSeconds"); ok {
		n, ok := t.Uint(maxAffinity)
		if ok && n == 0 {
			t.Problem("0: want 1 to %d", maxAffinity)
		}
		o.Service.SessionAffinitySeconds = uint32(n)
	}
}

// only refuses every value of a field but one.
func only(n manifest.Node, field, want string) {
	f, ok := n.Field(field)
	if !ok {
		return
	}
	if text, ok := f.Text(); ok && text != want {
		f.Problem("%q is not supported yet: want %s", text, want)
	}
}

func (o *Object) parseClusterIPs(spec manifest.Node) {
	var nodes []manifest.Node
	if f, ok := spec.Field("clusterIP"); ok {
		nodes = append(nodes, f)
	}
	if f, ok := spec.Field("clusterIPs"); ok {
		nodes = append(nodes, f.List()...)
	}
	for _, n := range nodes {
		text, ok := n.Text()
		if !ok || text == "" {
			continue // "": one is to be allocated
		}
		if text == "None" {
			o.Service.Headless = true
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast() {
			n.Problem("%q is not an address that a service can have", text)
			continue
		}
		if !slices.Contains(o.ClusterIPs, a) {
			o.ClusterIPs = append(o.ClusterIPs, a)
		}
	}
	if o.Service.Headless && len(o.ClusterIPs) > 0 {
		spec.At("spec.clusterIPs").Problem("a service has an address or None, not both")
	}
	if len(o.ClusterIPs) > 2 || len(o.ClusterIPs) == 2 && FamilyOf(o.ClusterIPs[0]) == FamilyOf(o.ClusterIPs[1]) {
		spec.At("spec.clusterIPs").Problem("a service has at most one address of each family")
	}
}

func (o *Object) parsePorts(list manifest.Node) {
	items := list.List()
	if len(items) == 0 {
		list.Problem("must name at least one port")
	}
	for _, item := range items {
		p := parsePort(item)
		if len(items) > 1 && p.Name == "" {
			item.At(item.Path + ".name").Problem("required when there are several ports")
		}
		for _, q := range o.Service.Ports {
			if p.Name == q.Name {
				item.At(item.Path+".name").Problem("%q is already that of another port", p.Name)
			}
			if p.Port == q.Port && p.Protocol == q.Protocol {
				item.Problem("port and protocol are already those of another port")
			}
		}
		o.Service.Ports = append(o.Service.Ports, p)
	}
}

func parsePort(n manifest.Node) *keyspacev1.ServicePort {
	p := &keyspacev1.ServicePort{Protocol: keyspacev1.Protocol_PROTOCOL_TCP}
	if !n.Only([]string{"name", "protocol", "port", "targetPort"}, manifest.NotYet("nodePort", "appProtocol")) {
		return p
	}
	if f, ok := n.Field("name"); ok {
		p.Name, _ = f.Text()
		checkLabelName(f, p.Name)
	}
	if f, ok := n.Field("protocol"); ok {
		switch text, _ := f.Text(); text {
		case "TCP":
		case "UDP":
			p.Protocol = keyspacev1.Protocol_PROTOCOL_UDP
		case "SCTP":
			f.Problem("SCTP is not supported yet")
		default:
			f.Problem("%q is not a protocol: want TCP or UDP", text)
		}
	}
	if f, ok := n.Field("port"); ok {
		v, ok := f.Uint(65535)
		if p.Port = uint32(v); ok && v == 0 {
			f.Problem("must be from 1 to 65535")
		}
	} else if !n.Has("port") {
		n.At(n.Path + ".port").Problem("required")
	}
	if f, ok := n.Field("targetPort"); ok {
		p.Target = parseTarget(f)
	}
	return p
}

// parseTarget reads a target port: a number, or the name of a port of the
// endpoints. A number written as text is one too.
func parseTarget(f manifest.Node) string {
	if number, ok := f.Value.(json.Number); ok {
		if v, ok := f.Uint(65535); ok && v == 0 {
			f.Problem("must be from 1 to 65535")
		}
		return number.String()
	}
	text, ok := f.Text()
	if !ok {
		return ""
	}
	if v, isNumber := portNumber(text); isNumber {
		if v == 0 {
			f.Problem("%q is not from 1 to 65535", text)
		}
		return text
	}
	if len(text) > 15 || !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`).MatchString(text) {
		f.Problem("%.80q is neither a port nor the name of one", text)
	}
	return text
}
