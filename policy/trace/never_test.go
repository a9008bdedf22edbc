// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"strings"
	"testing"
)

// A selector whose conditions exclude each other is told as that, for peers and for
// endpoints, and not as one that selects nobody just now.
func TestLintOfSelectorsThatSelectNobodyEver(t *testing.T) {
	around := Surroundings{Cluster: "east", Identities: mesh(t)}
	for selector, want := range map[string]string{
		"matchExpressions: [{key: tier, operator: Exists}, {key: tier, operator: DoesNotExist}]":                    "tier and !tier exclude each other",
		"matchLabels: {app: web}, matchExpressions: [{key: app, operator: DoesNotExist}]":                           "app=web and !app exclude each other",
		"matchLabels: {app: web}, matchExpressions: [{key: app, operator: NotIn, values: [web, b]}]":                "app=web and app not in (b,web) exclude each other",
		"matchExpressions: [{key: 'cni:app', operator: Exists}, {key: app, operator: DoesNotExist}]":                "cni:app and !app exclude each other",
		"matchLabels: {'mesh:cluster': west}, matchExpressions: [{key: 'mesh:cluster', operator: In, values: [a]}]": "mesh:cluster=a and mesh:cluster=west exclude each other",
		// These may be met, by somebody.
		"matchExpressions: [{key: app, operator: Exists}, {key: 'cni:app', operator: DoesNotExist}]":               "selects no workload",
		"matchExpressions: [{key: app, operator: In, values: [web, x]}, {key: app, operator: NotIn, values: [x]}]": "",
		"matchExpressions: [{key: app, operator: Exists}, {key: tier, operator: DoesNotExist}]":                    "",
		"matchLabels: {app: nobody}": "selects no workload",
	} {
		for _, where := range []string{"ingress: [{fromEndpoints: [{" + selector + "}]}]", "ingress: [{fromEntities: [world]}]"} {
			subject, never := "matchLabels: {app: web}", want
			if !strings.Contains(where, "fromEndpoints") {
				subject = selector
			}
			if strings.Contains(want, "mesh:cluster") && subject == selector {
				continue // endpoints are the own cluster's, and say no cluster
			}
			objects := parse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {endpointSelector: {"+subject+"}, "+where+"}\n")
			var texts []string
			for _, f := range Lint(around, objects) {
				texts = append(texts, f.Text)
			}
			got := strings.Join(texts, "\n")
			if len(texts) > 1 || never == "" && got != "" || !strings.Contains(got, never) || strings.Contains(got, "exclude each other") != strings.Contains(never, "exclude") {
				t.Errorf("%s in %s: %q, want %q", selector, where, got, never)
			}
		}
	}
}

// An empty list of peers is nobody, which is told of an allow as of a deny; an item
// without any list is how the default is ended.
func TestLintOfEmptyListsOfPeers(t *testing.T) {
	around := Surroundings{Cluster: "east", Identities: mesh(t)}
	const ports = `, toPorts: [{ports: [{port: "80"}]}]`
	for rules, want := range map[string]string{
		"ingress: [{fromEndpoints: []}]":                       "allows nothing: its list of peers is empty",
		"ingress: [{fromEndpoints: []" + ports + "}]":          "allows nothing: its list of peers is empty",
		"ingress: [{fromEntities: []" + ports + "}]":           "allows nothing: its list of peers is empty, which is nobody; to allow everybody write fromEntities: [all]",
		"egress: [{toCIDR: [], toCIDRSet: []" + ports + "}]":   "allows nothing: its list of peers is empty, which is nobody; to allow everybody write toEntities: [all]",
		"ingressDeny: [{fromEndpoints: []}]":                   "denies nothing: it names no peer",
		"ingress: [{}]":                                        "",
		"ingress: [{" + strings.TrimPrefix(ports, ", ") + "}]": "",
		"ingress: [{fromEndpoints: [{}]}]":                     "",
	} {
		objects := parse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {endpointSelector: {matchLabels: {app: web}}, "+rules+"}\n")
		found := Lint(around, objects)
		if want == "" && len(found) > 0 || want != "" && (len(found) != 1 || !strings.Contains(found[0].Text, want)) {
			t.Errorf("%s: %v, want %q", rules, found, want)
		}
	}
	list := parse(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: demo}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: []}]}\n")
	if found := Lint(around, list); len(found) > 0 { // there it is everybody
		t.Errorf("an empty list of a NetworkPolicy: %v", found)
	}
}
