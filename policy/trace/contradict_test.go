// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/internal/testutil/policymodel"
	"github.com/hawser-mesh/hawser/policy/api"
)

// found are the findings of a kind over two objects: one that allows and one that
// denies, as rules for app=web of namespace demo.
func found(t *testing.T, around Surroundings, kind, allow, deny string) string {
	t.Helper()
	const object = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: %s, namespace: demo}\nspec: {endpointSelector: {matchLabels: {app: web}}, %s}\n"
	around.Others = parse(t, fmt.Sprintf(object, "deny", deny))
	var out []string
	for _, f := range Lint(around, parse(t, fmt.Sprintf(object, "allow", allow))) {
		if strings.Contains(f.Text, kind) {
			out = append(out, f.String())
		}
	}
	return strings.Join(out, "; ")
}

// An allow is told of which another object denies all, and one of which something
// may be left is not.
func TestLintOfContradictions(t *testing.T) {
	around := Surroundings{Cluster: "east", Identities: mesh(t)}
	from := func(labels, ports string) string {
		return "fromEndpoints: [{matchLabels: {" + labels + "}}]" + ports
	}
	const p80, p81, p8090 = `, toPorts: [{ports: [{port: "80", protocol: TCP}]}]`, `, toPorts: [{ports: [{port: "81", protocol: TCP}]}]`, `, toPorts: [{ports: [{port: "80", endPort: 90, protocol: TCP}]}]`
	for _, c := range []struct {
		allow, deny string
		told        bool
	}{
		{from("app: a", p80), from("app: a", p80), true},
		{from("app: a, tier: x", p80), from("app: a", ""), true},
		{from("app: a, tier: x", p80), from("app: a", p8090), true},
		{from("app: a", p80), from("app: a, tier: x", ""), false},
		{from("app: a", p80), from("app: a", p81), false},
		{from("app: a", p8090), from("app: a", p80), false},
		{from("app: a", ""), from("app: a", p80), false},
		{from("app: a", p80), from(`app: a, mesh:cluster: west`, ""), false},
		{from("app: a", p80), "fromEntities: [cluster]", true},
		{from("app: a, mesh:cluster: west", p80), "fromEntities: [cluster]", false},
		{from("app: a, mesh:cluster: west", p80), "fromEntities: [mesh]", true},
		{from("app: a", p80), "fromEntities: [all]", true},
		{"fromCIDR: [192.0.2.0/25]" + p80, "fromCIDR: [192.0.2.0/24]", true},
		{"fromCIDR: [192.0.2.0/24]", "fromCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.4/32]}]", false},
		{"fromCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.4/30]}]", "fromCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.4/32]}]", true},
		{"fromCIDR: [192.0.2.0/23]", "fromCIDR: [192.0.2.0/24]", false},
	} {
		got := found(t, around, "allows nothing", "ingress: [{"+c.allow+"}]", "ingressDeny: [{"+c.deny+"}]")
		want := ""
		if c.told {
			want = "demo/allow spec.ingress[0]: allows nothing: demo/deny spec.ingressDeny[0] denies all of it"
		}
		if got != want {
			t.Errorf("allow %s, deny %s: %q, want %q", c.allow, c.deny, got, want)
		}
	}
}

func TestLintOfNobody(t *testing.T) {
	around := Surroundings{Cluster: "east", Identities: mesh(t), Pods: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/17"), netip.MustParsePrefix("10.1.128.0/17")}}
	for allow, want := range map[string]string{
		"fromCIDR: [10.1.0.0/16]":                                  "10.1.0.0/16 matches nothing: all of it is ranges of the mesh's pods",
		"fromCIDR: [10.1.4.0/24]":                                  "10.1.4.0/24 matches nothing",
		"fromCIDR: [10.0.0.0/8]":                                   "10.0.0.0/8 does not mean the pods in it, such as those of 10.1.0.0/17",
		"fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]": "",
		"fromCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.0/25, 192.0.2.128/25]}]": "192.0.2.0/24 is nothing: its except takes all of it",
		"fromCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.0/25]}]":                 "",
		"fromEntities: [none]":        "entity none is nobody",
		"fromEntities: [none, world]": "",
		"fromCIDR: [192.0.2.0/24]":    "",
	} {
		got := found(t, around, "", "ingress: [{"+allow+"}]", "ingress: [{}]")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", allow, got, want)
		}
	}
	const block = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: b, namespace: demo}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: %s}}]}]}\n"
	for cidr, want := range map[string]string{"10.1.4.0/24": "", "10.1.4.0/24, except: [10.1.4.0/25, 10.1.4.128/25]": "10.1.4.0/24 is nothing"} {
		if got := fmt.Sprint(Lint(around, parse(t, fmt.Sprintf(block, cidr)))); want == "" && got != "[]" || !strings.Contains(got, want) {
			t.Errorf("ipBlock %s: %s, want %q", cidr, got, want)
		}
	}
}

// What is called implied is: whom the one selects the other does.
func TestImplies(t *testing.T) {
	w := policymodel.NewWorld(1)
	var selectors []api.Selector
	for len(selectors) < 400 {
		for _, r := range w.Object().Rules {
			selectors = append(selectors, r.Endpoints)
		}
	}
	proven := 0
	for _, a := range selectors {
		for _, b := range selectors[:100] {
			if !implies(a, b) || a.ID() == b.ID() || len(b.Requirements) == 0 {
				continue
			}
			proven++
			for range 40 {
				if ls := w.Labels(); a.Matches(ls) && !b.Matches(ls) {
					t.Fatalf("%s is said to imply %s, but %s has only the first", a, b, ls)
				}
			}
		}
	}
	if proven < 100 {
		t.Errorf("%d implications are too few to say anything", proven)
	}
}
