// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

const echo = `apiVersion: v1
kind: Service
metadata:
  name: echo
  namespace: demo
  labels: {team: a}
  annotations:
    hawser.io/global: "true"
    kubectl.kubernetes.io/last-applied-configuration: "{}"
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: dns, port: 53, protocol: UDP, targetPort: dns}
`

func TestParseServices(t *testing.T) {
	objects, err := ParseServices([]byte(echo + "---\n" +
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"own","finalizers":["x.io/y"],"ownerReferences":[{"kind":"Deployment","name":"web","uid":"u"}]},"spec":{"clusterIP":"10.9.0.7","clusterIPs":["10.9.0.7"],"type":"ClusterIP",` +
		`"sessionAffinity":"None","internalTrafficPolicy":"Cluster","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"port":80,"targetPort":"443"}]},"status":{"loadBalancer":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []*keyspacev1.Service{{
		Namespace: "demo", Name: "echo", Type: "ClusterIP", Global: true, Shared: true,
		Annotations: map[string]string{"hawser.io/global": "true"},
		Selector:    map[string]string{"app": "echo"}, Labels: map[string]string{"team": "a"},
		Ports: []*keyspacev1.ServicePort{
			{Name: "http", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 80, Target: "8080"},
			{Name: "dns", Protocol: keyspacev1.Protocol_PROTOCOL_UDP, Port: 53, Target: "dns"},
		},
	}, {
		Namespace: "default", Name: "own", Type: "ClusterIP", IpFamilies: []string{IPv4},
		Ports: []*keyspacev1.ServicePort{{Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 80, Target: "443"}},
	}}
	if len(objects) != 2 {
		t.Fatalf("%d objects", len(objects))
	}
	for i, o := range objects {
		if !proto.Equal(o.Service, want[i]) {
			t.Errorf("got\n%v\nwant\n%v", o.Service, want[i])
		}
		reparse(t, o)
	}
	if ips := objects[1].ClusterIPs; len(ips) != 1 || ips[0].String() != "10.9.0.7" || len(objects[0].ClusterIPs) != 0 {
		t.Errorf("cluster IPs %v and %v", objects[0].ClusterIPs, ips)
	}
}

func reparse(t *testing.T, o Object) {
	t.Helper()
	again, err := ParseServices([]byte(o.Source))
	if err != nil || len(again) != 1 || !proto.Equal(again[0].Service, o.Service) {
		t.Fatalf("the source of %s means %v, %v", o.ID(), again, err)
	}
}

// annotated is the echo service with other annotations.
func annotated(annotations string) string {
	return strings.Replace(echo, `hawser.io/global: "true"`, annotations, 1)
}

func TestAnnotations(t *testing.T) {
	for _, c := range []struct {
		in             string
		global, shared bool
		want           map[string]string
	}{
		{`x: y`, false, false, nil},
		{`hawser.io/global: "false"`, false, false, map[string]string{"hawser.io/global": "false"}},
		{`service.cilium.io/global: "true"`, true, true, map[string]string{"hawser.io/global": "true"}},
		{`io.cilium/global-service: "true"`, true, true, map[string]string{"hawser.io/global": "true"}},
		{`{service.cilium.io/global: "true", hawser.io/global: "true"}`, true, true, map[string]string{"hawser.io/global": "true"}},
		{`{hawser.io/global: "true", hawser.io/shared: "false"}`, true, false, map[string]string{"hawser.io/global": "true", "hawser.io/shared": "false"}},
		{`{hawser.io/global: "true", service.cilium.io/shared: "true"}`, true, true, map[string]string{"hawser.io/global": "true", "hawser.io/shared": "true"}},
		{`{io.cilium/global-service: "true", io.cilium/shared-service: "false"}`, true, false, map[string]string{"hawser.io/global": "true", "hawser.io/shared": "false"}},
		{`{hawser.io/affinity: none, hawser.io/session-affinity: none, hawser.io/min-healthy: "1", hawser.io/lb-algorithm: maglev}`, false, false,
			map[string]string{"hawser.io/affinity": "none", "hawser.io/session-affinity": "none", "hawser.io/min-healthy": "1", "hawser.io/lb-algorithm": "maglev"}},
	} {
		source := "apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {" + strings.Trim(c.in, "{}") + "}}\nspec: {ports: [{port: 1}]}\n"
		objects, err := ParseServices([]byte(source))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		s := objects[0].Service
		if s.Global != c.global || s.Shared != c.shared || !maps.Equal(s.Annotations, c.want) {
			t.Errorf("%s: global %v, shared %v, %v", c.in, s.Global, s.Shared, s.Annotations)
		}
	}
}

func TestRefusedServices(t *testing.T) {
	spec := func(fields string) string { return strings.Replace(echo, "spec:\n", "spec:\n  "+fields+"\n", 1) }
	port := func(p string) string { return echo + "  - " + p + "\n" }
	const later = "not supported yet"
	for _, c := range []struct{ source, want string }{
		{spec("type: NodePort"), `document 1: Service demo/echo: spec.type: "NodePort" is ` + later},
		{spec("type: LoadBalancer"), `spec.type: "LoadBalancer" is ` + later},
		{spec("type: ExternalName"), `spec.type: "ExternalName" is ` + later},
		{spec("clusterIP: None\n  clusterIPs: [10.0.0.1]"), "spec.clusterIPs: a service has an address or None, not both"},
		{spec("clusterIP: 'fe80::1'"), `spec.clusterIP: "fe80::1" is not an address that a service can have`},
		{spec("clusterIP: '::ffff:10.0.0.1'"), `spec.clusterIP: "::ffff:10.0.0.1" is not an address`},
		{spec("clusterIP: 127.0.0.1"), "spec.clusterIP: "},
		{spec("clusterIP: x"), "spec.clusterIP: "},
		{spec("clusterIP: 10.0.0.1\n  clusterIPs: [10.0.0.2]"), "spec.clusterIPs: a service has at most one address of each family"},
		{spec("sessionAffinity: Cookie"), `spec.sessionAffinity: "Cookie": want None or ClientIP`},
		{spec("sessionAffinityConfig: {}"), "spec.sessionAffinityConfig: set sessionAffinity: ClientIP too"},
		{spec("sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0: want 1 to 86400"},
		{spec("sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: "},
		{spec("sessionAffinity: ClientIP\n  sessionAffinityConfig: {cookie: {}}"), "spec.sessionAffinityConfig.cookie: "},
		{spec("internalTrafficPolicy: Local"), `spec.internalTrafficPolicy: "Local" is ` + later},
		{spec("ipFamilyPolicy: Both"), `spec.ipFamilyPolicy: "Both": want SingleStack, PreferDualStack or RequireDualStack`},
		{spec("ipFamilies: [IPv4, IPv5]"), `spec.ipFamilies[1]: "IPv5" is not a family: want IPv4 or IPv6`},
		{spec("ipFamilies: [IPv6, IPv6]"), "spec.ipFamilies[1]: IPv6 is given twice"},
		{spec("ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: SingleStack"), "spec.ipFamilyPolicy: SingleStack, but two families are wanted"},
		{spec("clusterIPs: [10.0.0.1, 'fd00::1']\n  ipFamilyPolicy: SingleStack"), "spec.ipFamilyPolicy: SingleStack, but two families are wanted"},
		{spec("clusterIP: 10.0.0.1\n  ipFamilies: [IPv6]\n  ipFamilyPolicy: SingleStack"), "spec.clusterIPs: 10.0.0.1 is no IPv6 address"},
		{spec("externalIPs: []"), "spec.externalIPs: " + later},
		{spec("externalName: x"), "spec.externalName: " + later},
		{spec("externalTrafficPolicy: Local"), "spec.externalTrafficPolicy: " + later},
		{spec("loadBalancerIP: x"), "spec.loadBalancerIP: " + later},
		{spec("loadBalancerClass: x"), "spec.loadBalancerClass: " + later},
		{spec("loadBalancerSourceRanges: []"), "spec.loadBalancerSourceRanges: " + later},
		{spec("allocateLoadBalancerNodePorts: false"), "spec.allocateLoadBalancerNodePorts: " + later},
		{spec("healthCheckNodePort: 1"), "spec.healthCheckNodePort: " + later},
		{spec("publishNotReadyAddresses: true"), "spec.publishNotReadyAddresses: " + later},
		{spec("trafficDistribution: PreferClose"), "spec.trafficDistribution: " + later},
		{spec("clusterip: x"), "spec.clusterip: unknown field"},
		{spec("type: 1"), "spec.type: must be a string"},
		{strings.Replace(echo, "{app: echo}", "{app: 1}", 1), "spec.selector.app: must be a string"},
		{strings.Replace(echo, "{app: echo}", "", 1), "spec.selector: is null"},
		{port("{port: 81}"), "spec.ports[2].name: required when there are several ports"},
		{port("{name: http, port: 81}"), `spec.ports[2].name: "http" is already`},
		{port("{name: x, port: 80}"), "spec.ports[2]: port and protocol are already"},
		{port("{name: X, port: 81}"), `spec.ports[2].name: "X" is not a name`},
		{port("{name: x, port: 0}"), "spec.ports[2].port: must be from 1 to 65535"},
		{port("{name: x, port: 65536}"), "spec.ports[2].port: must be a whole number"},
		{port("{name: x, port: '80'}"), "spec.ports[2].port: must be a whole number"},
		{port("{name: x}"), "spec.ports[2].port: required"},
		{port("{name: x, port: 81, protocol: SCTP}"), "spec.ports[2].protocol: SCTP is " + later},
		{port("{name: x, port: 81, protocol: tcp}"), `spec.ports[2].protocol: "tcp" is not a protocol`},
		{port("{name: x, port: 81, nodePort: 30000}"), "spec.ports[2].nodePort: " + later},
		{port("{name: x, port: 81, appProtocol: http}"), "spec.ports[2].appProtocol: " + later},
		{port("{name: x, port: 81, hostPort: 1}"), "spec.ports[2].hostPort: unknown field"},
		{port("{name: x, port: 81, targetPort: 0}"), "spec.ports[2].targetPort: must be from 1"},
		{port("{name: x, port: 81, targetPort: 70000}"), "spec.ports[2].targetPort: must be a whole number"},
		{port("{name: x, port: 81, targetPort: '70000'}"), `spec.ports[2].targetPort: "70000" is not from 1 to 65535`},
		{port("{name: x, port: 81, targetPort: 'a b'}"), "spec.ports[2].targetPort: "},
		{port("{name: x, port: 81, targetPort: true}"), "spec.ports[2].targetPort: must be a string"},
		{"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: []}", "spec.ports: must name at least one port"},
		{"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {}", "spec.ports: required"},
		{"apiVersion: v1\nkind: Service\nmetadata: {name: a}", "spec: required"},
		{"apiVersion: v1\nkind: Service\nspec: {ports: [{port: 1}]}", "metadata: required"},
		{"apiVersion: v1\nkind: Pod", `kind "Pod" of apiVersion "v1" is not a service`},
		{"x", "is not a service"},
		{"[]", "is not a service"},
		{strings.Replace(echo, "name: echo", "name: Echo", 1), `metadata.name: "Echo" is not a name`},
		{strings.Replace(echo, "namespace: demo", "namespace: a/b", 1), `metadata.namespace: "a/b" is not a name`},
		{strings.Replace(echo, "{team: a}", "{team: 1}", 1), "metadata.labels.team: must be a string"},
		{strings.Replace(echo, "  labels:", "  deletionTimestamp: x\n  labels:", 1), "metadata.deletionTimestamp: " + later},
		{echo + "---\n" + echo, "document 2: Service demo/echo: given twice"},
		{echo + "extra: 1\n", "extra: unknown field"},

		{annotated(`hawser.io/global: "yes"`), `metadata.annotations.hawser.io/global: "yes": want true or false`},
		{annotated(`hawser.io/global: true`), "metadata.annotations.hawser.io/global: must be a string"},
		{annotated(`hawser.io/shared: "true"`), "metadata.annotations.hawser.io/shared: a service that is not global"},
		{annotated("hawser.io/affinity: local"), `hawser.io/affinity: "local" is ` + later},
		{annotated("service.cilium.io/affinity: remote"), `service.cilium.io/affinity: "remote" is ` + later},
		{annotated("io.cilium/service-affinity: local"), `io.cilium/service-affinity: "local" is ` + later},
		{annotated("hawser.io/weights: east=80"), "hawser.io/weights: " + later},
		{annotated("hawser.io/min-healthy: 50%"), "hawser.io/min-healthy: "},
		{annotated("hawser.io/session-affinity: client-ip"), "hawser.io/session-affinity: "},
		{annotated("hawser.io/lb-algorithm: random"), "hawser.io/lb-algorithm: "},
		{annotated("hawser.io/import: auto"), "hawser.io/import: "},
		{annotated("hawser.io/globl: x"), "hawser.io/globl: unknown annotation"},
		{annotated("service.cilium.io/lb-l7: x"), "service.cilium.io/lb-l7: " + later},
		{annotated("hawser.io/global: \"true\"\n    service.cilium.io/global: \"false\""), "contradicts another name of hawser.io/global"},
	} {
		objects, err := ParseServices([]byte(c.source))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want an error with %q, got %d objects and: %v\nfor\n%s", c.want, len(objects), err, c.source)
		}
	}
}

func TestAllProblemsAreNamed(t *testing.T) {
	_, err := ParseServices([]byte(strings.Replace(annotated("hawser.io/weights: x"), "spec:", "spec:\n  type: NodePort\n  externalIPs: []", 1)))
	want := `document 1: Service demo/echo: metadata.annotations.hawser.io/weights: not supported yet
document 1: Service demo/echo: spec.externalIPs: not supported yet
document 1: Service demo/echo: spec.type: "NodePort" is not supported yet: want ClusterIP`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// FuzzParseServices: no input panics, and whatever is accepted can be stored
// and read again.
func FuzzParseServices(f *testing.F) {
	f.Add([]byte(echo))
	f.Add([]byte(echo + "---\n" + strings.Replace(echo, "name: echo", "name: other", 1)))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"clusterIP":"10.0.0.1","ports":[{"port":80,"targetPort":"x"}]}}`))
	f.Add([]byte("apiVersion: v1\nkind: Service\nmetadata: {annotations: {hawser.io/shared: 'true'}}\nspec:"))
	f.Fuzz(func(t *testing.T, source []byte) {
		objects, err := ParseServices(source)
		if err != nil {
			return
		}
		for _, o := range objects {
			if o.Service.GetName() == "" || o.Service.GetNamespace() == "" || len(o.Service.GetPorts()) == 0 {
				t.Fatalf("incomplete object %v", o.Service)
			}
			reparse(t, o)
		}
	})
}
