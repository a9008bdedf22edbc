// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// policyShape is how many rules over how many identities, and how many of those
// each rule's peer selector means. Each rule has a TCP port of its own, unless
// onePort is set.
type policyShape struct {
	rules, identities, perRule int
	onePort                    bool
}

func (s policyShape) String() string {
	return fmt.Sprintf("%d rules × %d identities (%d per rule)", s.rules, s.identities, s.perRule)
}

// labelsOf are those of identity i: five labels, of which app is what selectors
// ask for and instance tells it from all others.
func (s policyShape) labelsOf(i int) labels.Set {
	return labels.New(
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
		labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: fmt.Sprintf("ns-%d", i%20)},
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: fmt.Sprintf("app-%d", i%(s.identities/s.perRule))},
		labels.Label{Source: labels.Kubernetes, Key: "version", Value: fmt.Sprintf("v%d", i%7)},
		labels.Label{Source: labels.Kubernetes, Key: "instance", Value: fmt.Sprintf("i-%d", i)},
	)
}

// engine knows the identities and no policy.
func (s policyShape) engine(t *testing.T) *policy.Engine {
	t.Helper()
	e, err := policy.New(policy.Config{Cluster: "east", MaxEntries: 1 << 18})
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.identities {
		if err := e.UpsertIdentity(identity.Number(65536+i), "east", s.labelsOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// objects are the rules, an object each, all of which select every endpoint.
func (s policyShape) objects() (out []api.Object) {
	for i := range s.rules {
		port := uint16(1000 + i)
		if s.onePort {
			port = 8080
		}
		out = append(out, allowObject(fmt.Sprintf("rule-%d", i), api.NewSelector(),
			api.NewSelector(is("app", fmt.Sprintf("app-%d", i%(s.identities/s.perRule)))), port))
	}
	return out
}

func is(key, value string) api.Requirement {
	return api.Requirement{Source: labels.Any, Key: key, Operator: api.In, Values: []string{value}}
}

// allowObject lets peers in on a port.
func allowObject(name string, endpoints, peers api.Selector, port uint16) api.Object {
	return api.Object{Kind: api.KindRuleArray, Namespace: api.ClusterWide, Name: name, Source: name, Rules: []api.Rule{{
		Path: "[0]", Endpoints: endpoints, DefaultDeny: [2]bool{true, false}, Parts: []api.Part{{
			Path: "ingress[0]", Direction: datapath.Ingress, Peers: api.Peers{Selectors: []api.Selector{peers}},
			Ports: []api.Port{{Protocol: api.TCP, Port: port}},
		}},
	}}}
}

// TestPerfPolicyEngine measures resolving, without a kernel.
func TestPerfPolicyEngine(t *testing.T) {
	r := newReport(t, "policy-engine", "policy resolution: all rules applied over known identities for one endpoint, then one identity that comes and goes; engine only")
	for _, s := range []policyShape{
		{rules: 100, identities: 1000, perRule: 1},
		{rules: 1000, identities: 1000, perRule: 1},
		{rules: 1000, identities: 10000, perRule: 1},
		{rules: 1000, identities: 10000, perRule: 20},
		{rules: 1000, identities: 10000, perRule: 200, onePort: true},
	} {
		goal := func(g string) string {
			if s.rules == 1000 && s.identities == 10000 {
				return g
			}
			return ""
		}
		var cold, heap, comes []float64
		entries := 0
		for range flags.rounds {
			before := heapMiB()
			e, objects := s.engine(t), s.objects()
			runtime.GC()
			start := time.Now()
			for _, o := range objects {
				e.UpsertObject(o)
			}
			if _, err := e.AcquireRuleSet(s.labelsOf(1)); err != nil {
				t.Fatal(err)
			}
			changes := e.Changes()
			cold = append(cold, float64(time.Since(start).Microseconds())/1000)
			entries = len(changes[0].Upsert)
			heap = append(heap, heapMiB()-before)
			comes = append(comes, comesAndGoes(t, e, s))
			runtime.KeepAlive(objects)
		}
		r.add(fmt.Sprintf("%s, %d entries: first resolution", s, entries), "ms", goal("< 60"), cold)
		r.add("  heap afterwards, identities included", "MiB", goal("< 200"), heap)
		r.add("  one identity comes and goes", "µs", goal("< 50"), comes)
	}
	r.note("the new identity has the labels of an app that rules select; coming and going are both in the number, each with the entries that it leads to")
	r.finish(t)
}

// comesAndGoes is the time of an identity's coming and going, in µs on average of
// many.
func comesAndGoes(t *testing.T, e *policy.Engine, s policyShape) float64 {
	t.Helper()
	const times = 300
	var took time.Duration
	for i := range times {
		ls := s.labelsOf(s.identities + i)
		start := time.Now()
		if err := e.UpsertIdentity(1<<23, "east", ls); err != nil {
			t.Fatal(err)
		}
		came := e.Changes()
		e.DeleteIdentity(1 << 23)
		went := e.Changes()
		took += time.Since(start)
		if len(came) > 1 || len(came) != len(went) || i < s.rules && len(came) == 0 {
			t.Fatalf("identity %d: %d changes when it came, %d when it went", i, len(came), len(went))
		}
	}
	return float64(took.Nanoseconds()) / 1000 / times
}

// heapMiB is what is live on the heap.
func heapMiB() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}
