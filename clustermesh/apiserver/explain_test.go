// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

const explainPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: demo}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}, {matchLabels: {app: client, "mesh:cluster": west}}]
    toPorts: [{ports: [{port: http, protocol: TCP}]}]
`

func storeRecord(t *testing.T, s *Server, k kvstore.Key, m proto.Message) {
	t.Helper()
	op, err := put(k, m)
	if err == nil {
		err = s.commit(t.Context(), []kvstore.Op{op})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func labelsOf(cluster, app string) []string {
	return []string{"k8s:app=" + app, "mesh:cluster=" + cluster, "mesh:namespace=demo"}
}

func explainServer(t *testing.T) *Server {
	t.Helper()
	s := start(t, testConfig(t))
	for n, cluster := range map[uint32]string{1<<16 + 1: "east", 2<<16 + 1: "west"} {
		for i, app := range []string{"web", "client", "other"} {
			id := n + uint32(i)
			storeRecord(t, s, kvstore.NewKey(kvstore.State, cluster, kvstore.KindIdentity, kvstore.NumberName(id)), &keyspacev1.Identity{Number: id, Labels: labelsOf(cluster, app)})
		}
	}
	storeRecord(t, s, kvstore.NewKey(kvstore.State, "east", kvstore.KindIP, "10.1.0.5/32"), &keyspacev1.IPEntry{
		Prefix: "10.1.0.5/32", Identity: 1<<16 + 1, Node: "n1", TunnelAddress: "192.168.1.1", Namespace: "demo", Workload: "web-1",
		NamedPorts: []*keyspacev1.NamedPort{{Name: "http", Port: 8080, Protocol: keyspacev1.Protocol_PROTOCOL_TCP}},
	})
	if _, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: explainPolicy}); err != nil {
		t.Fatal(err)
	}
	return s
}

// A peer is told the verdict and the rule's name, of its own published workloads
// and ours, and of nothing else.
func TestExplainToAPeer(t *testing.T) {
	s := explainServer(t)
	q := func(self, peer []string, address string, port uint32) *federationv1.Explain {
		return &federationv1.Explain{Self: &federationv1.ExplainEnd{Labels: self, Address: address}, Peer: &federationv1.ExplainEnd{Labels: peer}, Protocol: 6, Port: port}
	}
	const answered, refused = federationv1.Explanation_OUTCOME_ANSWERED, federationv1.Explanation_OUTCOME_REFUSED
	for name, c := range map[string]struct {
		q       *federationv1.Explain
		outcome federationv1.Explanation_Outcome
		allowed bool
		reason  string
	}{
		"allowed by a port's name":    {q(labelsOf("east", "web"), labelsOf("west", "client"), "10.1.0.5", 8080), answered, true, "by demo/web ingress[0]"},
		"another port":                {q(labelsOf("east", "web"), labelsOf("west", "client"), "10.1.0.5", 81), answered, false, "demo/web default deny"},
		"another workload":            {q(labelsOf("east", "web"), labelsOf("west", "other"), "10.1.0.5", 8080), answered, false, "demo/web default deny"},
		"nothing selects it":          {q(labelsOf("east", "other"), labelsOf("west", "other"), "", 80), answered, true, "no policy selects it for ingress"},
		"not its workload":            {q(labelsOf("east", "web"), labelsOf("east", "client"), "10.1.0.5", 8080), refused, false, "no workload of west"},
		"not ours":                    {q(labelsOf("west", "web"), labelsOf("west", "client"), "", 80), refused, false, "no workload of east"},
		"a workload that is not here": {q(labelsOf("east", "guess"), labelsOf("west", "client"), "", 80), refused, false, "no workload of east"},
		"no labels":                   {q(nil, nil, "", 80), refused, false, "no workload"},
		"malformed label":             {q([]string{"="}, nil, "", 80), refused, false, "label"},
		"malformed address":           {q(labelsOf("east", "web"), labelsOf("west", "client"), "x", 80), refused, false, "x"},
		"no such port":                {q(labelsOf("east", "web"), labelsOf("west", "client"), "", 70000), refused, false, "no such packet"},
	} {
		got := s.explainTo(t.Context(), "west", c.q)
		if got.GetOutcome() != c.outcome || got.GetAllowed() != c.allowed || !strings.Contains(got.GetReason(), c.reason) {
			t.Errorf("%s: %v, want %v %v %q", name, got, c.outcome, c.allowed, c.reason)
		}
		for _, secret := range []string{"fromEndpoints", "smallest", "8080", "add"} {
			if strings.Contains(got.GetReason(), secret) {
				t.Errorf("%s: the answer %q says more than names", name, got.GetReason())
			}
		}
	}
}

// The own cluster's answer says what would change it, and takes into account how
// the node of the workload was told to enforce policy.
func TestExplainOwnPolicies(t *testing.T) {
	s := explainServer(t)
	ask := func(address string) *hawserv1.ExplainPolicyResponse {
		t.Helper()
		r, err := s.ExplainPolicy(t.Context(), &hawserv1.ExplainPolicyRequest{Direction: "ingress", Protocol: 6, Port: 81,
			Self: &hawserv1.ExplainPolicyEnd{Labels: labelsOf("east", "web"), Address: address}, Peer: &hawserv1.ExplainPolicyEnd{Labels: labelsOf("west", "client")}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := ask("10.1.0.5"); !r.GetAnswered() || r.GetAllowed() || !strings.Contains(strings.Join(r.GetHints(), "\n"), "no node of east has said") {
		t.Errorf("%v", r)
	}
	status := func(node, mode string, audit bool) {
		storeRecord(t, s, kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, node), &keyspacev1.NodeStatus{Node: node, PolicyScope: "local", PolicyMode: mode, PolicyAudit: audit})
	}
	status("n1", "default", true)
	status("n2", "never", false)
	if r := ask("10.1.0.5"); r.GetAllowed() || !r.GetAudited() || !strings.Contains(strings.Join(r.GetHints(), "\n"), "to allow it, add") {
		t.Errorf("on a node that audits: %v", r)
	}
	if r := ask(""); !strings.Contains(strings.Join(r.GetHints(), "\n"), "enforce policy differently") {
		t.Errorf("on an unknown node of two that differ: %v", r)
	}
	storeRecord(t, s, kvstore.NewKey(kvstore.Local, "east", kvstore.KindPolicy, "demo", "later"), &keyspacev1.PolicyObject{
		Kind: "MeshPolicy", Namespace: "demo", Name: "later", Source: "of a later version"})
	if r := ask("10.1.0.5"); !strings.Contains(strings.Join(r.GetHints(), "\n"), "1 policies cannot be read and are left out") {
		t.Errorf("with a policy that cannot be read: %v", r)
	}
	status("n1", "never", false)
	if r := ask("10.1.0.5"); !r.GetAllowed() || !strings.Contains(r.GetReason(), "never") {
		t.Errorf("on a node that enforces nothing: %v", r)
	}
	r, err := s.ExplainPolicy(t.Context(), &hawserv1.ExplainPolicyRequest{Cluster: "west", Direction: "egress"})
	if err != nil || r.GetAnswered() || !strings.Contains(r.GetReason(), "west is not connected") {
		t.Errorf("a cluster that is away: %v, %v", r, err)
	}
	if _, err := s.ExplainPolicy(t.Context(), &hawserv1.ExplainPolicyRequest{Direction: "both"}); err == nil {
		t.Error("a direction that does not exist is answered")
	}
}

// What may not be meant is told when it is applied.
func TestApplyWarns(t *testing.T) {
	s := explainServer(t)
	r, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: strings.Replace(explainPolicy, "app: web", "app: wbe", 1)})
	if err != nil || len(r.GetWarnings()) != 1 || !strings.Contains(r.GetWarnings()[0], "demo/web spec: selects no workload of cluster east now: app=wbe") {
		t.Errorf("%v, %v", r.GetWarnings(), err)
	}
	if r, err = s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: explainPolicy}); err != nil || len(r.GetWarnings()) != 0 {
		t.Errorf("nothing to point out: %v, %v", r.GetWarnings(), err)
	}
	// A peer that names no cluster is one of the own, or where the nodes say so of any.
	storeRecord(t, s, kvstore.NewKey(kvstore.State, "west", kvstore.KindIdentity, kvstore.NumberName(2<<16+9)), &keyspacev1.Identity{Number: 2<<16 + 9, Labels: labelsOf("west", "probe")})
	ours := strings.Replace(explainPolicy, "app: client}", "app: probe}", 1)
	for scope, want := range map[string]int{"local": 1, "mesh": 0} {
		storeRecord(t, s, kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, "n1"), &keyspacev1.NodeStatus{Node: "n1", PolicyScope: scope, PolicyMode: "default"})
		if r, err = s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: ours}); err != nil || len(r.GetWarnings()) != want {
			t.Errorf("scope %s: %v, %v, want %d", scope, r.GetWarnings(), err, want)
		}
	}
}

// A reserved end without an address is called by its name.
func TestReservedEndsHaveNames(t *testing.T) {
	if end, err := endOf(nil, "", 6); err != nil || end.Name != "remote-node" {
		t.Errorf("%+v, %v", end, err)
	}
	if end, err := endOf(nil, "10.0.0.1", 6); err != nil || end.Name != "10.0.0.1" {
		t.Errorf("%+v, %v", end, err)
	}
}
