// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

const rules = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: demo}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
  ingressDeny:
  - fromCIDR: [192.0.2.0/24]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: demo}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16}}], ports: [{port: 80, endPort: 90}]}]
`

func workload(t *testing.T, cluster, app, addr string) End {
	t.Helper()
	ls, err := labels.ParseSet([]string{"mesh:cluster=" + cluster, "mesh:namespace=demo", "cni:app=" + app}, labels.CNI)
	if err != nil {
		t.Fatal(err)
	}
	e := End{Name: cluster + "/" + app, Labels: ls}
	if addr != "" {
		e.Addr = netip.MustParseAddr(addr)
	}
	return e
}

func TestRun(t *testing.T) {
	objects, err := api.Parse([]byte(rules))
	if err != nil {
		t.Fatal(err)
	}
	web, client := workload(t, "east", "web", "10.1.0.1"), workload(t, "east", "client", "10.1.0.2")
	far, other := workload(t, "west", "client", "10.2.0.2"), workload(t, "east", "other", "")
	outside := func(a string) End { return End{Name: a, Addr: netip.MustParseAddr(a)} }
	for _, c := range []struct {
		name     string
		src, dst End
		port     uint16
		want     string // each direction: verdict, reason, hints
	}{
		{"allowed both ways", client, web, 80, "allow by demo/out egress[0] | allow by demo/web ingress[0]"},
		{"another port", client, web, 85, "allow by demo/out egress[0] | DENY demo/web default deny; demo/web ingress[0] allows the same peer on 80/tcp; " +
			`to allow it, add to a policy that selects east/web: ingress: [{fromEndpoints: [{matchLabels: {app: "client", mesh:namespace: "demo"}}], toPorts: [{ports: [{port: "85", protocol: TCP}]}]}]`},
		{"out of the ipBlock", client, far, 80, "DENY demo/out default deny; " +
			`to allow it, add to a policy that selects east/client: egress: [{toEndpoints: [{matchLabels: {app: "client", mesh:cluster: "west", mesh:namespace: "demo"}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}] | not asked: its policies are those of cluster west`},
		{"the cluster was not named", far, web, 80, "not asked: its policies are those of cluster west | DENY demo/web default deny; " +
			"demo/web ingress[0] allows it in cluster east only: a selector without mesh:cluster means the local cluster; smallest change: add  mesh:cluster: west  to its matchLabels"},
		{"denied by a rule", outside("192.0.2.9"), web, 80, "allow not a workload of the mesh: no policy of the mesh concerns it | " +
			"DENY by demo/web ingressDeny[0]; a deny beats every allow: take this out of demo/web ingressDeny[0]"},
		{"nothing selects it", web, other, 80, "allow no policy selects it for egress | allow no policy selects it for ingress"},
		{"no address for an ipBlock", client, other, 80, "DENY demo/out default deny; " +
			`to allow it, add to a policy that selects east/client: egress: [{toEndpoints: [{matchLabels: {app: "other", mesh:namespace: "demo"}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]; ` +
			"ipBlocks were not looked up: east/other has no address here | allow no policy selects it for ingress"},
		{"the own host", End{Name: "host", Reserved: identity.Host}, web, 81, "allow not a workload of the mesh: no policy of the mesh concerns it | allow a node always reaches its own endpoints"},
	} {
		t.Run(c.name, func(t *testing.T) {
			vs, err := Run(Question{Cluster: "east", Objects: objects, Src: c.src, Dst: c.dst, Protocol: api.TCP, Port: c.port})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range vs {
				text := v.Reason
				if v.Asked {
					text = map[bool]string{true: "allow ", false: "DENY "}[v.Allowed] + text
				}
				got = append(got, strings.Join(append([]string{text}, v.Hints...), "; "))
			}
			if strings.Join(got, " | ") != c.want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, " | "), c.want)
			}
			// What a hint proposes is a rule, and it does what it says.
			for _, v := range vs {
				for _, h := range v.Hints {
					if _, rule, ok := strings.Cut(h, "to allow it, add to a policy that selects "); ok {
						applied(t, c.src, c.dst, c.port, v, rule, objects)
					}
				}
			}
		})
	}
}

func applied(t *testing.T, src, dst End, port uint16, v Verdict, hint string, objects []api.Object) {
	t.Helper()
	if a := withRule(t, src, dst, port, v, hint, objects); !a.Allowed {
		t.Errorf("with the rule of the hint it is still denied: %s", a.Reason)
	}
}

// withRule is the answer in the direction of v once the rule of a hint is applied, too.
func withRule(t *testing.T, src, dst End, port uint16, v Verdict, hint string, objects []api.Object) Verdict {
	t.Helper()
	_, rule, _ := strings.Cut(hint, ": ")
	more, err := api.Parse([]byte("apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: hint}\nspec: {endpointSelector: {}, " + rule + "}\n"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Run(Question{Cluster: "east", Objects: append(more, objects...), Src: src, Dst: dst, Protocol: api.TCP, Port: port})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range again {
		if a.Direction == v.Direction {
			return a
		}
	}
	t.Fatalf("no answer for %s", v.Direction)
	return Verdict{}
}
