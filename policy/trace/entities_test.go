// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy/api"
)

// What a hint tells to write is accepted.
func TestHintsNameEntitiesThatAreAccepted(t *testing.T) {
	const head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {endpointSelector: {matchLabels: {app: web}}, "
	q := Question{Cluster: "east", Objects: parse(t, head+"ingress: [{}]}\n"), Protocol: api.TCP, Port: 80, Dst: workload(t, "east", "web", "10.1.0.1")}
	proposed, refused := 0, 0
	for n := identity.Number(2); n <= identity.MaxReserved; n++ {
		name, ok := n.Reserved()
		if !ok {
			continue
		}
		q.Src = End{Name: name, Reserved: n}
		v, err := q.Ingress()
		hints := strings.Join(v.Hints, "\n")
		if err != nil || v.Allowed {
			t.Fatalf("%s: %+v, %v", name, v, err)
		}
		_, rule, given := strings.Cut(hints, ": ingress: ")
		if !given {
			refused++
			if !strings.Contains(hints, "no rule can name "+name) {
				t.Errorf("%s: %q", name, hints)
			}
			continue
		}
		proposed++
		if _, err := api.Parse([]byte(head + "ingress: " + rule + "}\n")); err != nil {
			t.Errorf("%s: the hint %q is refused: %v", name, hints, err)
		}
	}
	if proposed == 0 || refused == 0 {
		t.Errorf("%d proposed, %d refused: both happen", proposed, refused)
	}
}

// The hint about an address outside that a default denies names what comes closest,
// and is a rule that, applied, lets it through and nobody beside it, as source and
// as destination.
func TestHintsForAddressesOutside(t *testing.T) {
	objects := parse(t, rules+`
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: outside, namespace: demo}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromCIDR: [0.0.0.0/0], toPorts: [{ports: [{port: "443", protocol: TCP}]}]}]
  egress: [{toCIDR: [203.0.113.0/24], toPorts: [{ports: [{port: "443", protocol: TCP}]}]}]
`)
	web := workload(t, "east", "web", "10.1.0.1")
	for addr, closest := range map[string]string{"203.0.113.5": "allows the same peer on 443/tcp", "2001:db8::5": ""} {
		outside := End{Name: addr, Addr: netip.MustParseAddr(addr)}
		beside := End{Name: "beside", Addr: outside.Addr.Next()}
		for _, c := range []struct{ src, dst, src2, dst2 End }{{web, outside, web, beside}, {outside, web, beside, web}} {
			vs, err := Run(Question{Cluster: "east", Objects: objects, Src: c.src, Dst: c.dst, Protocol: api.TCP, Port: 80})
			if err != nil {
				t.Fatal(err)
			}
			v := vs[0]
			if c.dst.Name == web.Name {
				v = vs[1]
			}
			hints := strings.Join(v.Hints, "\n")
			_, rule, given := strings.Cut(hints, "to allow it, add to a policy that selects ")
			if v.Allowed || !given || !strings.Contains(hints, closest) {
				t.Errorf("%s to %s: allowed %v, %q", c.src.Name, c.dst.Name, v.Allowed, hints)
				continue
			}
			applied(t, c.src, c.dst, 80, v, rule, objects)
			if d := withRule(t, c.src2, c.dst2, 80, v, rule, objects); d.Allowed {
				t.Errorf("%s to %s: the rule of the hint lets in more: %q", c.src.Name, c.dst.Name, rule)
			}
		}
	}
}
