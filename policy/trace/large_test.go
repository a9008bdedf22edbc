// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// An object of 10,000 rules is pointed at, compared and explained at a cost that
// grows with its rules, not with their product.
func TestLargeObject(t *testing.T) {
	const rules = 10000
	var b strings.Builder
	b.WriteString("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: large, namespace: demo}\nspec:\n  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n")
	for i := range rules {
		app := fmt.Sprintf("app-%d", i)
		if i == rules-1 {
			app = "client"
		}
		fmt.Fprintf(&b, "  - {fromEndpoints: [{matchLabels: {app: %s}}], toPorts: [{ports: [{port: %d, protocol: TCP}]}]}\n", app, 1+i)
	}
	objects := parse(t, b.String())
	if err := policy.Check(objects...); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	found := Lint(Surroundings{Cluster: "east", Identities: mesh(t)}, objects)
	if len(found) != rules-1 || !strings.Contains(found[0].Text, "selects no workload now: app=app-0") {
		t.Errorf("%d findings, the first %v; want all rules but one", len(found), found[0])
	}
	pairs, err := Change{Cluster: "east", Identities: mesh(t), After: objects}.Pairs(t.Context())
	if err != nil || len(pairs) == 0 {
		t.Fatalf("pairs %v, error %v", pairs, err)
	}
	for _, p := range pairs {
		client := strings.Contains(p.Peer, "app=client") && strings.Contains(p.Peer, "mesh:cluster=east")
		if p.Peer != "host" && client == (len(p.Closed) == 1 && p.Closed[0] == "everything") {
			t.Errorf("%s of %s: %d opened, %d closed", p.Peer, p.Self, len(p.Opened), len(p.Closed))
		}
	}
	q := Question{Cluster: "east", Objects: objects, Protocol: api.TCP, Port: rules,
		Src: workload(t, "east", "client", "10.1.0.2"), Dst: workload(t, "east", "web", "10.1.0.1")}
	if v, err := q.Ingress(); err != nil || !v.Allowed || v.Reason != fmt.Sprintf("by demo/large ingress[%d]", rules-1) {
		t.Errorf("%+v, %v", v, err)
	}
	q.Src = End{Name: "a node", Reserved: identity.RemoteNode}
	if v, err := q.Ingress(); err != nil || v.Allowed {
		t.Errorf("%+v, %v", v, err)
	}
	runtime.ReadMemStats(&after)
	if all := after.TotalAlloc - before.TotalAlloc; all > 1<<30 {
		t.Errorf("%d MiB allocated", all>>20)
	} else {
		t.Logf("%d MiB allocated", all>>20)
	}
}

// Where there are too many denies and parts to compare, that is told, once for
// each object that allows anything.
func TestLintTellsWhatItDoesNotCompare(t *testing.T) {
	denying := func(rules int) []api.Object {
		o := api.Object{Namespace: "demo", Name: "denies", Rules: []api.Rule{{Path: "spec"}}}
		for range rules {
			o.Rules[0].Parts = append(o.Rules[0].Parts, api.Part{Path: "egressDeny[0]", Deny: true, Peers: api.Peers{Entities: []api.Entity{api.EntityWorld}}})
		}
		return []api.Object{o}
	}
	objects := parse(t, toKube)
	around := Surroundings{Cluster: "east", Identities: mesh(t), KubeAPIServers: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}
	for rules, want := range map[int]int{1000: 0, 1100: 1} {
		around.Others = denying(rules)
		found := Lint(around, objects)
		if len(found) != want || want > 0 && !strings.HasPrefix(found[0].String(), "demo/kube spec: not compared with all denies: ") {
			t.Errorf("%d denies: found %v", rules, found)
		}
	}
}
