// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// An object of 10,000 rules is read, resolved and taken back like any other.
func TestLargeObject(t *testing.T) {
	const rules = 10000
	var b strings.Builder
	b.WriteString("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: large, namespace: demo}\nspec:\n  endpointSelector: {}\n  ingress:\n")
	for i := range rules {
		fmt.Fprintf(&b, "  - {fromEndpoints: [{matchLabels: {app: app-%d}}], toPorts: [{ports: [{port: %d}]}]}\n", i, 1+i)
	}
	objects, err := api.Parse([]byte(b.String()))
	if err != nil || len(objects[0].Rules[0].Parts) != rules {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	e, err := New(Config{Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 5000, 9999} {
		if err := e.UpsertIdentity(identity.Number(65536+i), "east", appLabels(i)); err != nil {
			t.Fatal(err)
		}
	}
	id, err := e.AcquireRuleSet(appLabels(-1))
	if err != nil {
		t.Fatal(err)
	}
	e.UpsertObject(objects[0])
	e.Changes()
	rs, _ := e.RuleSet(id)
	for i, port := range map[int]uint16{0: 1, 5000: 5001, 9999: 10000} {
		for p, want := range map[uint16]bool{port: true, port + 1: false} {
			if got := Decide(rs, datapath.Ingress, Peer{Identity: identity.Number(65536 + i)}, api.TCP, p); got.Allow != want {
				t.Errorf("app-%d on %d: %+v, want allow=%v", i, p, got, want)
			}
		}
	}
	e.DeleteObject("demo", "large")
	e.Changes()
	if rs, _ = e.RuleSet(id); rs.Ingress || len(rs.Entries) != 0 {
		t.Errorf("left behind: ingress %v, %d entries", rs.Ingress, len(rs.Entries))
	}
	if len(e.selectors) != 0 {
		t.Errorf("%d selectors left behind", len(e.selectors))
	}
}

func appLabels(i int) labels.Set {
	return labels.New(
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
		labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: "demo"},
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: fmt.Sprintf("app-%d", i)},
	)
}

// Endpoints that are audited have a rule set apart with the same entries; a node
// that audits has only such.
func TestAuditedRuleSets(t *testing.T) {
	for node, want := range map[bool][2]bool{false: {false, true}, true: {true, true}} {
		e, err := New(Config{Cluster: "east", Audit: node})
		if err != nil {
			t.Fatal(err)
		}
		plain, err1 := e.Acquire(Subject{Labels: appLabels(1)})
		audited, err2 := e.Acquire(Subject{Labels: appLabels(1), Audit: true})
		if err1 != nil || err2 != nil || plain == audited {
			t.Fatalf("rule sets %d and %d, %v %v", plain, audited, err1, err2)
		}
		e.Changes()
		for i, id := range []uint32{plain, audited} {
			if rs, _ := e.RuleSet(id); rs.Audit != want[i] {
				t.Errorf("node audits %v: rule set %d is audited: %v", node, i, rs.Audit)
			}
		}
		if names := e.RuleSetIDs(); names[Subject{Labels: appLabels(1), Audit: true}.Name()] != audited || names[appLabels(1).Hash()] != plain {
			t.Errorf("names %v", names)
		}
		e.Release(Subject{Labels: appLabels(1), Audit: true})
		if _, ok := e.RuleSet(audited); ok {
			t.Error("the audited rule set is left")
		}
		if _, ok := e.RuleSet(plain); !ok {
			t.Error("the other rule set is gone")
		}
	}
}
