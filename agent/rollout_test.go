// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// What a node tells of its policies' problems is by their names, and bounded.
func TestToldProblems(t *testing.T) {
	a := &Agent{cfg: Config{Cluster: "east"}, view: testView(t)}
	if got := a.toldProblems(); len(got) != 0 {
		t.Errorf("without problems: %v", got)
	}
	for i := range 50 {
		a.view.policies[fmt.Sprintf("demo/p%02d", i)] = "unknown field\nand another"
	}
	got := a.toldProblems()
	if len(got) != 32 || got["demo/p32"] != "" || !strings.HasPrefix(got["demo/p31"], "unknown field; and another (apply it anew") {
		t.Errorf("%d of 50, %v", len(got), got)
	}
}

func numbered(i int) labels.Set {
	return labels.Set{{Source: labels.Kubernetes, Key: "i", Value: fmt.Sprint(i)}, {Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
		{Source: labels.Mesh, Key: labels.NamespaceKey, Value: "demo"}}
}

// An object of which rules are left out for lack of room is told by its name.
func TestTooManyEntriesAreTold(t *testing.T) {
	v := testView(t)
	var err error
	if v.engine, err = policy.New(policy.Config{Cluster: "east", MaxEntries: 100}); err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: Config{Cluster: "east"}, view: v}
	objects, err := api.Parse([]byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: wide, namespace: demo}\n" +
		"spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}, {port: 81}, {port: 82}]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	v.engine.UpsertObject(objects[0])
	if _, err := v.engine.AcquireRuleSet(numbered(0)); err != nil {
		t.Fatal(err)
	}
	come := func(n int) {
		t.Helper()
		for i := range n {
			if err := v.engine.UpsertIdentity(identity.Number(1<<16+1+i), "east", numbered(i)); err != nil {
				t.Fatal(err)
			}
		}
		v.engine.Publish(v.tables.RuleSets)
	}
	come(30)
	if got := a.toldProblems(); len(got) != 0 {
		t.Errorf("with room: %v", got)
	}
	come(40)
	const want = "ingress: what it allows single peers is left out: all policies together are more than 100 entries (ports times peers) for each of 1 kinds of endpoint, this one about 120 (write ranges "
	if got := a.toldProblems(); len(got) != 1 || !strings.HasPrefix(got["demo/wide"], want) {
		t.Errorf("got %v", got)
	}
	both := tooManyEntries([]policy.Excess{{Object: "demo/a", Directions: []datapath.Direction{datapath.Ingress, datapath.Egress}, Closed: true}})
	if !strings.HasPrefix(both[0].GetProblem(), "ingress and egress: nothing is let through: ") {
		t.Errorf("got %v", both)
	}
}
