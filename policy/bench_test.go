// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

const (
	benchRules      = 1000
	benchIdentities = 10000
	benchApps       = 500
)

func benchLabels(i int) labels.Set {
	return labels.New(
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
		labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: fmt.Sprintf("ns-%d", i%20)},
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: fmt.Sprintf("app-%d", i%benchApps)},
		labels.Label{Source: labels.Kubernetes, Key: "version", Value: fmt.Sprintf("v%d", i%7)},
		labels.Label{Source: labels.Kubernetes, Key: "instance", Value: fmt.Sprintf("i-%d", i)},
	)
}

// benchEngine knows all identities; every rule selects every endpoint and
// allows the identities of one app on a port of its own.
func benchEngine(b testing.TB) (*Engine, []api.Object) {
	e, err := New(Config{Cluster: "east"})
	if err != nil {
		b.Fatal(err)
	}
	for i := range benchIdentities {
		if err := e.UpsertIdentity(identity.Number(65536+i), "east", benchLabels(i)); err != nil {
			b.Fatal(err)
		}
	}
	var objects []api.Object
	for i := range benchRules {
		objects = append(objects, api.Object{Kind: api.KindRuleArray, Namespace: api.ClusterWide,
			Name: fmt.Sprintf("rule-%d", i), Source: "x",
			Rules: []api.Rule{{Path: "[0]", DefaultDeny: [2]bool{true, false}, Parts: []api.Part{{
				Path: "ingress[0]", Direction: datapath.Ingress,
				Peers: api.Peers{Selectors: []api.Selector{api.NewSelector(api.Requirement{
					Source: labels.Any, Key: "app", Operator: api.In, Values: []string{fmt.Sprintf("app-%d", i%benchApps)}})}},
				Ports: []api.Port{{Protocol: api.TCP, Port: uint16(1000 + i)}},
			}}}}})
	}
	return e, objects
}

// BenchmarkFirstResolution is 1,000 rules applied over 10,000 identities and
// one endpoint that all of them select.
func BenchmarkFirstResolution(b *testing.B) {
	for range b.N {
		b.StopTimer()
		e, objects := benchEngine(b)
		b.StartTimer()
		for _, o := range objects {
			e.UpsertObject(o)
		}
		if _, err := e.AcquireRuleSet(benchLabels(1)); err != nil {
			b.Fatal(err)
		}
		changes := e.Changes()
		b.ReportMetric(float64(len(changes[0].Upsert)), "entries")
	}
}

// BenchmarkIdentityComesAndGoes is one identity added and removed, with the
// entries that each makes, under ten endpoints' rule sets.
func BenchmarkIdentityComesAndGoes(b *testing.B) {
	e, objects := benchEngine(b)
	for _, o := range objects {
		e.UpsertObject(o)
	}
	for i := range 10 {
		if _, err := e.AcquireRuleSet(benchLabels(i)); err != nil {
			b.Fatal(err)
		}
	}
	e.Changes()
	ls := benchLabels(benchIdentities + 7)
	b.ReportAllocs()
	for b.Loop() {
		if err := e.UpsertIdentity(200000, "east", ls); err != nil {
			b.Fatal(err)
		}
		if c := e.Changes(); len(c) != 10 || len(c[0].Upsert) != 2 {
			b.Fatalf("unexpected changes: %+v", c)
		}
		e.DeleteIdentity(200000)
		e.Changes()
	}
}
