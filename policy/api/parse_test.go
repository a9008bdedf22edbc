// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const l3rule = `[{"labels":[{"key":"name","value":"l3-rule"}],"endpointSelector":{"matchLabels":{"id":"app1"}},` +
	`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}],"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}]}]}]}]`

// cnp is a policy of namespace demo around a spec.
func cnp(spec string) string {
	return "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec:\n" + indent(spec)
}

func ccnp(spec string) string {
	return "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\nspec:\n" + indent(spec)
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ") + "\n"
}

// show prints a rule in one line for each part.
func show(r Rule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s | deny %v %v", r.Endpoints, r.DefaultDeny[0], r.DefaultDeny[1])
	for _, p := range r.Parts {
		verb := "allow"
		if p.Deny {
			verb = "deny"
		}
		var peers []string
		if p.Peers.Any {
			peers = append(peers, "ANY")
		}
		for _, s := range p.Peers.Selectors {
			peers = append(peers, "{"+s.String()+"}")
		}
		for _, e := range p.Peers.Entities {
			peers = append(peers, "@"+string(e))
		}
		for _, c := range p.Peers.CIDRs {
			peers = append(peers, map[bool]string{true: "block "}[c.Block]+c.String())
		}
		fmt.Fprintf(&b, "\n%s %s %s [%s] [%s]", p.Path, p.Direction, verb, strings.Join(peers, " "), showPorts(p.Ports))
	}
	return b.String()
}

func showPorts(ports []Port) string {
	var out []string
	for _, p := range ports {
		switch {
		case p.Name != "":
			out = append(out, fmt.Sprintf("{%d %s}", p.Protocol, p.Name))
		case p.End != 0:
			out = append(out, fmt.Sprintf("{%d %d-%d}", p.Protocol, p.Port, p.End))
		default:
			out = append(out, fmt.Sprintf("{%d %d}", p.Protocol, p.Port))
		}
	}
	return strings.Join(out, " ")
}

func TestAccepted(t *testing.T) {
	const in = "mesh:namespace=demo"
	for _, c := range []struct{ name, source, want string }{
		{"the rule of the getting-started pages", l3rule,
			"id=app1 | deny true false\ningress[0] ingress allow [{id=app2}] [{6 80}]"},
		{"namespaced: own namespace for endpoints and peers",
			cnp("endpointSelector: {matchLabels: {app: web}}\ningress:\n- fromEndpoints: [{matchLabels: {app: client}}]"),
			"app=web, " + in + " | deny true false\ningress[0] ingress allow [{app=client, " + in + "}] []"},
		{"peer in another namespace and cluster",
			cnp("endpointSelector: {}\negress:\n- toEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: other, io.cilium.k8s.policy.cluster: west}}]"),
			in + " | deny false true\negress[0] egress allow [{mesh:cluster=west, mesh:namespace=other}] []"},
		{"our own label names", cnp("endpointSelector: {}\ningress:\n- fromEndpoints: [{matchLabels: {mesh:namespace: other, mesh:cluster: west}}]"),
			in + " | deny true false\ningress[0] ingress allow [{mesh:cluster=west, mesh:namespace=other}] []"},
		{"namespace by its name label", cnp("endpointSelector: {}\ningress:\n- fromEndpoints: [{matchLabels: {k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: other}}]"),
			in + " | deny true false\ningress[0] ingress allow [{mesh:namespace=other}] []"},
		{"labels of namespaces", cnp("endpointSelector: {matchLabels: {io.cilium.k8s.namespace.labels.stage: prod}}\ningress:\n- fromEndpoints:\n  - matchLabels: {k8s:io.cilium.k8s.namespace.labels.team: red, app: a}\n" +
			"  - {matchExpressions: [{key: 'namespace:team', operator: NotIn, values: [red]}]}\n  - {matchLabels: {io.cilium.k8s.namespace.labels.team: red, 'mesh:namespace': x}}\n  - {matchLabels: {'namespace:kubernetes.io/metadata.name': z}}"),
			in + ", namespace:stage=prod | deny true false\n" +
				"ingress[0] ingress allow [{app=a, namespace:team=red} {namespace:team not in (red)} {mesh:namespace=x, namespace:team=red} {mesh:namespace=z}] []"},
		{"own namespace named", cnp("endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: demo}}\ningress: [{}]"),
			in + " | deny true false\ningress[0] ingress allow [] []"},
		{"cluster-wide", ccnp("endpointSelector: {matchLabels: {app: web}}\ningress:\n- fromEndpoints: [{}]"),
			"app=web | deny true false\ningress[0] ingress allow [{all}] []"},
		{"no peers means none", cnp("endpointSelector: {}\ningress:\n- fromEndpoints: []\n- fromEntities: []\n  toPorts: [{ports: [{port: '80'}]}]"),
			in + " | deny true false\ningress[0] ingress allow [] []\ningress[1] ingress allow [] [{6 80} {17 80} {132 80}]"},
		{"peers left out means any", cnp("endpointSelector: {}\ningress:\n- toPorts: [{ports: [{port: '53', protocol: UDP}]}]"),
			in + " | deny true false\ningress[0] ingress allow [ANY] [{17 53}]"},
		{"all endpoints of the namespace", cnp("endpointSelector: {}\ningress:\n- fromEndpoints: [{}]"),
			in + " | deny true false\ningress[0] ingress allow [{" + in + "}] []"},
		{"an empty part denies by default only", cnp("endpointSelector: {}\ningress: [{}]\negress:\n- toPorts: []"),
			in + " | deny true true\ningress[0] ingress allow [] []\negress[0] egress allow [] []"},
		{"an empty list is no list", cnp("endpointSelector: {}\ningress: []\negress: [{}]"),
			in + " | deny false true\negress[0] egress allow [] []"},
		{"entities", ccnp("endpointSelector: {}\ningress:\n- fromEntities: [world, cluster, mesh, host, remote-node, health, init, kube-apiserver, none]\n- fromEntities: [all]"),
			"all | deny true false\ningress[0] ingress allow [@world @cluster @mesh @host @remote-node @health @init @kube-apiserver @none] []\ningress[1] ingress allow [ANY] []"},
		{"reserved labels are entities", cnp("endpointSelector: {}\ningress:\n- fromEndpoints: [{matchLabels: {'reserved:host': ''}}, {matchExpressions: [{key: 'reserved:world', operator: Exists}]}]"),
			in + " | deny true false\ningress[0] ingress allow [@host @world] []"},
		{"expressions", ccnp("endpointSelector:\n  matchExpressions:\n  - {key: k8s:app, operator: In, values: [b, a, b]}\n  - {key: env, operator: NotIn, values: [dev]}\n  - {key: any:x, operator: Exists}\n  - {key: z, operator: DoesNotExist, values: []}\ningress: [{}]"),
			"env not in (dev), x, !z, k8s:app in (a,b) | deny true false\ningress[0] ingress allow [] []"},
		{"ports", ccnp("endpointSelector: {}\negress:\n- toPorts:\n  - ports: [{port: 443, protocol: tcp}, {port: '443', protocol: TCP}]\n  - ports: [{port: '0', protocol: UDP}, {port: '8080', protocol: ANY}]"),
			"all | deny false true\negress[0] egress allow [ANY] [{6 443} {6 8080} {17 0} {17 8080} {132 8080}]"},
		{"deny", cnp("endpointSelector: {}\ningressDeny:\n- fromEntities: [world]\negressDeny:\n- toPorts: [{ports: [{port: '25', protocol: TCP}]}]"),
			in + " | deny true true\ningressDeny[0] ingress deny [@world] []\negressDeny[0] egress deny [ANY] [{6 25}]"},
		{"enableDefaultDeny", cnp("endpointSelector: {}\nenableDefaultDeny: {ingress: false, egress: true}\ningress: [{fromEntities: [world]}]"),
			in + " | deny false true\ningress[0] ingress allow [@world] []"},
		{"enableDefaultDeny alone", cnp("endpointSelector: {}\nenableDefaultDeny: {ingress: true}"),
			in + " | deny true false"},
		{"description and labels", cnp("description: why\nlabels: [{key: a, value: b, source: c}, {key: d}]\nendpointSelector: {}\ningress: [{}]"),
			in + " | deny true false\ningress[0] ingress allow [] []"},
		{"prefixes", cnp("endpointSelector: {}\ningress:\n- fromCIDR: [10.0.0.0/8, 192.0.2.1, '2001:db8::/32', 0.0.0.0/0]\n  fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.1.0.1, 10.2.0.0/16]}]\n- fromCIDR: []\negressDeny:\n- toCIDRSet: [{cidr: '::/0'}]"),
			in + " | deny true true\ningress[0] ingress allow [10.0.0.0/8 192.0.2.1/32 2001:db8::/32 0.0.0.0/0 10.0.0.0/8 except 10.1.0.1/32, 10.2.0.0/16] []\n" +
				"ingress[1] ingress allow [] []\negressDeny[0] egress deny [::/0] []"},
		{"ranges and names", cnp("endpointSelector: {}\negress:\n- toPorts: [{ports: [{port: '8000', endPort: 8999, protocol: TCP}, {port: http, protocol: TCP}, {port: dns-tcp, protocol: UDP}, {port: 80, endPort: 80, protocol: SCTP}]}]"),
			in + " | deny false true\negress[0] egress allow [ANY] [{6 http} {6 8000-8999} {17 dns-tcp} {132 80}]"},
		{"icmps", cnp("endpointSelector: {}\ningress:\n- icmps: [{fields: [{type: 8}, {type: EchoRequest, family: IPv6}, {type: Echo}, {type: '128', family: IPv6}]}]"),
			in + " | deny true false\ningress[0] ingress allow [ANY] [{1 264} {58 384}]"},
		{"what an API server adds", "apiVersion: hawser.io/v1\nkind: MeshPolicy\nmetadata: {name: p.q, labels: {a: b}, annotations: {c: d}, uid: x, resourceVersion: '1', generation: 2, creationTimestamp: null, managedFields: [], selfLink: /x}\nstatus: {conditions: []}\nspec: {endpointSelector: {}, ingress: [{}]}",
			"mesh:namespace=default | deny true false\ningress[0] ingress allow [] []"},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects, err := Parse([]byte(c.source))
			if err != nil {
				t.Fatal(err)
			}
			if got := show(objects[0].Rules[0]); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			reparse(t, objects)
		})
	}
}

func np(spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec:\n" + indent(spec)
}

func TestNetworkPolicy(t *testing.T) {
	const in = "mesh:namespace=demo"
	for _, c := range []struct{ name, source, want string }{
		{"deny all ingress", np("podSelector: {}"), in + " | deny true false"},
		{"deny all egress", np("podSelector: {}\npolicyTypes: [Egress]"), in + " | deny false true"},
		{"allow all", np("podSelector: {}\ningress: [{}]\negress: [{}]"),
			in + " | deny true true\ningress[0] ingress allow [ANY] []\negress[0] egress allow [ANY] []"},
		{"an empty egress list does not govern egress", np("podSelector: {}\negress: []"), in + " | deny true false"},
		{"no types is the default", np("podSelector: {}\npolicyTypes: []\negress: [{}]"), in + " | deny true true\negress[0] egress allow [ANY] []"},
		{"rules of a direction not governed", np("podSelector: {}\npolicyTypes: [Ingress]\negress: [{}]"), in + " | deny true false"},
		{"empty from is any", np("podSelector: {matchLabels: {app: a}}\ningress: [{from: [], ports: [{port: 80}]}]"),
			"app=a, " + in + " | deny true false\ningress[0] ingress allow [ANY] [{6 80}]"},
		{"pods here, everywhere, there", np("podSelector: {}\ningress:\n- from:\n  - podSelector: {matchLabels: {app: a}}\n  - namespaceSelector: {}\n" +
			"  - podSelector: {matchLabels: {app: b}}\n    namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [x, z]}]}"),
			in + " | deny true false\ningress[0] ingress allow [{app=a, " + in + "} {mesh:namespace} {app=b, mesh:namespace, mesh:namespace in (x,z)}] []"},
		{"labels of namespaces", np("podSelector: {}\ningress:\n- from:\n  - namespaceSelector: {matchLabels: {team: red}}\n  - podSelector: {matchLabels: {team: b}}\n" +
			"    namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}, {key: stage, operator: DoesNotExist}]}"),
			in + " | deny true false\ningress[0] ingress allow [{mesh:namespace, namespace:team=red} {team=b, mesh:namespace, !namespace:stage, namespace:team not in (red)}] []"},
		{"cluster by its label", np("podSelector: {}\ningress: [{from: [{podSelector: {matchLabels: {'mesh:cluster': west}}}]}]"),
			in + " | deny true false\ningress[0] ingress allow [{mesh:cluster=west, " + in + "}] []"},
		{"ipBlock", np("podSelector: {}\negress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]"),
			in + " | deny true true\negress[0] egress allow [block 10.0.0.0/8 except 10.1.0.0/16] []"},
		{"a port by name in an ipBlock", np("podSelector: {}\negress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: http}]}]"),
			in + " | deny true true\negress[0] egress allow [block 10.0.0.0/8] [{6 http}]"},
		{"ports", np("podSelector: {}\ningress: [{ports: [{port: 80}, {port: dns, protocol: UDP}, {port: 90, endPort: 99}, {protocol: SCTP}, {}]}]"),
			in + " | deny true false\ningress[0] ingress allow [ANY] [{6 0} {6 80} {6 90-99} {17 dns} {132 0}]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects, err := Parse([]byte(c.source))
			if err != nil {
				t.Fatal(err)
			}
			if got := show(objects[0].Rules[0]); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			reparse(t, objects)
		})
	}
}

// reparse checks that each object's source stands for it.
func reparse(t *testing.T, objects []Object) {
	t.Helper()
	for _, o := range objects {
		again, err := Parse([]byte(o.Source))
		if err != nil {
			t.Fatalf("source of %s does not parse: %v\n%s", o.ID(), err, o.Source)
		}
		again[0].Source = o.Source
		if len(again) != 1 || !reflect.DeepEqual(again[0], o) {
			t.Errorf("source of %s means\n%+v\nnot\n%+v", o.ID(), again, o)
		}
	}
}

func TestObjects(t *testing.T) {
	source := cnp("endpointSelector: {matchLabels: {app: a}}\ningress: [{}]") + "---\n" +
		strings.Replace(ccnp("endpointSelector: {}\ningress: [{}]"), "spec:", "specs:\n- endpointSelector: {}\n  egress: [{}]\nspec:", 1) + "---\n" +
		`[{"labels":[{"key":"name","value":"one"}],"endpointSelector":{},"ingress":[{}]},
{"labels":[{"key":"name","value":"Two_2"}],"endpointSelector":{},"ingress":[{}]},
{"labels":[{"key":"x","value":"y"},{"key":"name","value":"one"}],"endpointSelector":{},"egress":[{"toPorts":[{"ports":[{"port":80}]}]}]}]` + "\n"
	objects, err := Parse([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		line := o.Kind + " " + o.ID()
		for _, r := range o.Rules {
			line += " " + r.Path
		}
		got = append(got, line)
	}
	want := []string{
		"CiliumNetworkPolicy demo/p spec",
		"CiliumClusterwideNetworkPolicy _/p spec specs[0]",
		"RuleArray _/one [0] [1]",
		"RuleArray _/Two_2 [0]",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if s := objects[0].Selects(); !reflect.DeepEqual(s, []string{"app=a, mesh:namespace=demo"}) {
		t.Errorf("selects %q", s)
	}
	reparse(t, objects)
}

// What kubectl writes of several objects is read item by item; each has a text of
// its own, which says the same.
func TestParseList(t *testing.T) {
	const network = "  metadata: {name: a, namespace: demo, resourceVersion: \"7\"}\n  spec: {podSelector: {}, policyTypes: [Ingress]}\n"
	const list = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n" +
		"- apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n" + network +
		"- apiVersion: cilium.io/v2\n  kind: CiliumNetworkPolicy\n  metadata: {name: b, namespace: demo}\n  spec: {endpointSelector: {}, ingress: [{fromEntities: [host]}]}\n"
	objects, err := Parse([]byte(list))
	if err != nil || len(objects) != 2 || objects[0].ID() != "demo/a" || objects[1].ID() != "demo/b" {
		t.Fatalf("%+v, %v", objects, err)
	}
	for _, o := range objects {
		again, err := Parse([]byte(o.Source))
		if err != nil || len(again) != 1 || fmt.Sprintf("%+v", again[0].Rules) != fmt.Sprintf("%+v", o.Rules) || again[0].ID() != o.ID() {
			t.Errorf("%s: its text says %+v, %v", o.ID(), again, err)
		}
	}
	for text, want := range map[string]string{
		strings.Replace(list, "[host]", "[nobody]", 1):                      "items[1].spec.ingress[0].fromEntities[0]",
		strings.Replace(list, "kind: NetworkPolicy", "kind: Deployment", 1): "items[0]: kind \"Deployment\" of apiVersion",
		strings.Replace(list, "name: b", "name: a", 1):                      "its name is already that of",
		strings.Replace(list, "metadata: {resource", "spec: {resource", 1):  "spec",
		"apiVersion: v1\nkind: List\nitems: []\n":                           "items: the list is empty",
		"apiVersion: v1\nkind: List\nitems: {}\n":                           "items: must be a list",
		"apiVersion: v1\nkind: List\nitems: [null, 7]\n":                    "items[1]: must be an object",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
