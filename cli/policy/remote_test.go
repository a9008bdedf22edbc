// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

const closed = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: closed, namespace: demo}\n" +
	"spec: {endpointSelector: {matchLabels: {app: echo}}, ingress: [{}]}\n"

// cluster is an API server that knows two workloads and one policy.
type cluster struct {
	hawserv1.UnimplementedMeshServer
	scope string
}

func (cluster) Describe(context.Context, *hawserv1.DescribeRequest) (*hawserv1.ClusterDescription, error) {
	return &hawserv1.ClusterDescription{Cluster: "east"}, nil
}

func (c cluster) ListPolicies(context.Context, *hawserv1.ListPoliciesRequest) (*hawserv1.ListPoliciesResponse, error) {
	return &hawserv1.ListPoliciesResponse{
		Policies: []*hawserv1.PolicyInfo{{Namespace: "demo", Name: "open", Revision: 1}},
		Nodes: []*hawserv1.PolicyRollout{
			{Node: "n1", Scope: c.scope, Mode: "default"}, {Node: "n2", Scope: c.scope, Mode: "default", Missing: []string{"demo/open"}}},
	}, nil
}

func (cluster) ListIdentities(context.Context, *hawserv1.ListIdentitiesRequest) (*hawserv1.ListIdentitiesResponse, error) {
	return &hawserv1.ListIdentitiesResponse{Identities: []*hawserv1.IdentityInfo{
		{Number: 65540, Labels: []string{"mesh:cluster=east", "mesh:namespace=demo", "cni:app=echo"}},
		{Number: 131080, Labels: []string{"mesh:cluster=west", "mesh:namespace=demo", "cni:app=client"}},
	}}, nil
}

func (cluster) ListServices(context.Context, *hawserv1.ListServicesRequest) (*hawserv1.ListServicesResponse, error) {
	return &hawserv1.ListServicesResponse{}, nil
}

func (cluster) ListAddresses(context.Context, *hawserv1.ListAddressesRequest) (*hawserv1.ListAddressesResponse, error) {
	return &hawserv1.ListAddressesResponse{Addresses: []*hawserv1.AddressInfo{
		{Prefix: "10.1.0.5/32", Cluster: "east", Node: "n1", Workload: "demo/echo", Identity: 65540},
		{Prefix: "10.2.0.5/32", Cluster: "west", Node: "w1", Workload: "demo/client", Identity: 131080},
	}}, nil
}

func (cluster) ListNodes(context.Context, *hawserv1.ListNodesRequest) (*hawserv1.ListNodesResponse, error) {
	return &hawserv1.ListNodesResponse{Nodes: []*hawserv1.NodeInfo{
		{Cluster: "east", Name: "n1", TunnelAddress: "172.30.1.1", PodCidrs: []string{"10.1.0.0/24"}},
		{Cluster: "west", Name: "w1", TunnelAddress: "172.30.2.1", Addresses: []string{"2001:db8::2"}, PodCidrs: []string{"10.2.0.0/24"}},
	}}, nil
}

func (cluster) ClusterStatus(context.Context, *hawserv1.ClusterStatusRequest) (*hawserv1.ClusterStatusReport, error) {
	return &hawserv1.ClusterStatusReport{Cluster: "east", PodCidrs: []string{"10.1.0.0/16"}, ServiceCidrs: []string{"172.31.1.0/24"}}, nil
}

func (cluster) ApplyPolicy(context.Context, *hawserv1.ApplyPolicyRequest) (*hawserv1.ApplyPolicyResponse, error) {
	return &hawserv1.ApplyPolicyResponse{}, nil
}

// ExplainPolicy says whom it was asked about.
func (cluster) ExplainPolicy(_ context.Context, r *hawserv1.ExplainPolicyRequest) (*hawserv1.ExplainPolicyResponse, error) {
	return &hawserv1.ExplainPolicyResponse{Answered: true, Allowed: true, Reason: r.GetCluster() + " " + r.GetSelf().GetAddress() + " from " + r.GetPeer().GetAddress() + fmt.Sprintf(" identity %d", r.GetPeer().GetReserved())}, nil
}

func run(t *testing.T, s *session.Session, args ...string) (string, error) {
	t.Helper()
	cmd := New(s)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var b bytes.Buffer
	cmd.SetOut(&b)
	err := cmd.ExecuteContext(t.Context())
	return b.String(), err
}

const blocks = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: demo}\n" +
	"spec: {podSelector: {matchLabels: {app: echo}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}\n"

const inPods = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: closed, namespace: demo}\n" +
	"spec: {endpointSelector: {matchLabels: {app: echo}}, ingress: [{fromCIDR: [10.2.0.0/24, 10.1.0.0/16]}, {fromCIDR: [192.0.2.0/24]}]}\n"

// Dry runs and lint know the addresses of nodes and the ranges of pods.
func TestRanges(t *testing.T) {
	socket := played.Socket(t)
	played.APIServer(t, socket, cluster{scope: "local"})
	file := filepath.Join(t.TempDir(), "p.yaml")
	s := &session.Session{Context: played.Context(t, "", socket), Timeout: 5 * time.Second, Output: printer.Table}
	for _, c := range []struct {
		text string
		args []string
		want []string
	}{
		{blocks, []string{"apply", "--dry-run", "-f"}, []string{"remote-node at 2001:db8::2", "world in ::/0"}},
		{inPods, []string{"lint", "-f"}, []string{"10.2.0.0/24 matches nothing", "10.1.0.0/16 matches nothing"}},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, _ := run(t, s, append(c.args, file)...)
		rows := strings.Split(strings.TrimSpace(out), "\n")[1:]
		for i, want := range c.want {
			if len(rows) != len(c.want) || !strings.Contains(rows[i], want) {
				t.Errorf("%s: want %q in\n%s", c.args[0], c.want, out)
			}
		}
	}
	for n, want := range map[int]string{1: "1 finding", 2: "2 findings"} {
		if counted(n) != want {
			t.Errorf("%d: %s", n, counted(n))
		}
	}
}

// Where the context names neither agents nor the cluster, as on the host of an API
// server, policy is asked about by what nodes publish.
func TestWithoutAgents(t *testing.T) {
	socket := played.Socket(t)
	played.APIServer(t, socket, cluster{scope: "local"})
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte(closed), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &session.Session{Context: played.Context(t, "", socket), Timeout: 5 * time.Second, Output: printer.Table}
	if out, err := run(t, s, "trace", "--src", "west/demo/client", "--dst", "demo/echo", "--dport", "80"); err != nil || !strings.Contains(out, "ingress at east/demo/echo") || !strings.Contains(out, "east 10.1.0.5 from 10.2.0.5") {
		t.Errorf("trace: %v\n%s", err, out)
	}
	if out, err := run(t, s, "lint", "-f", file); err != nil || !strings.Contains(out, "Nothing to point out") {
		t.Errorf("lint: %v\n%s", err, out)
	}
	if out, err := run(t, s, "apply", "--dry-run", "-f", file); err != nil || !strings.Contains(out, "app=client,mesh:cluster=west") || !strings.Contains(out, "everything") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
	out, err := run(t, s, "status")
	if session.ExitCode(err) != session.No || !strings.Contains(out, "n1    1 of 1    –") || !strings.Contains(out, "n2    0 of 1    demo/open") {
		t.Errorf("status: %v\n%s", err, out)
	}
	s.Node = "n1"
	if out, err := run(t, s, "status"); err != nil || strings.Contains(out, "n2") {
		t.Errorf("status of one node: %v\n%s", err, out)
	}
}

type oneNode struct {
	hawserv1.UnimplementedNodeServer
}

func (oneNode) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	return &hawserv1.NodeStatusReport{Cluster: "east", Node: "n1", Policies: map[string]uint64{"demo/open": 1, "demo/former": 1}, PoliciesSettled: true}, nil
}

// A host asks its own agent, and the API server about the others.
func TestStatusOnAHost(t *testing.T) {
	api, agent := played.Socket(t), played.Socket(t)
	played.APIServer(t, api, cluster{})
	played.Agent(t, agent, oneNode{})
	s := &session.Session{Context: played.Context(t, "", api, "", agent), Timeout: 5 * time.Second, Output: printer.Table}
	out, err := run(t, s, "status")
	if session.ExitCode(err) != session.No || !strings.Contains(out, "n1    1 of 1    demo/former (deleted)") || !strings.Contains(out, "n2    0 of 1    demo/open") || strings.Count(out, "\n") != 3 {
		t.Errorf("%v\n%s", err, out)
	}
}

func (oneNode) ListEndpoints(context.Context, *hawserv1.ListEndpointsRequest) (*hawserv1.ListEndpointsResponse, error) {
	return &hawserv1.ListEndpointsResponse{Endpoints: []*hawserv1.Endpoint{{Id: 7, Cluster: "east", Node: "n1", Namespace: "demo", Name: "echo"}}}, nil
}

func (oneNode) ListRules(_ context.Context, r *hawserv1.ListRulesRequest) (*hawserv1.ListRulesResponse, error) {
	return &hawserv1.ListRulesResponse{Entries: []*hawserv1.RuleEntry{{Direction: "ingress", Verdict: "deny", Origin: fmt.Sprintf("demo/closed of %d", r.GetEndpointId())}}}, nil
}

// What an endpoint's policy has become is asked by what the endpoint is called.
func TestGetOfAnEndpoint(t *testing.T) {
	socket := played.Socket(t)
	played.Agent(t, socket, oneNode{})
	file := played.Context(t, "", "/nowhere", "", socket)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--endpoint", "7"}, session.Done, "demo/closed of 7"},
		{[]string{"--endpoint", "demo/echo"}, session.Done, "demo/closed of 7"},
		{[]string{"--endpoint", "east/demo/echo"}, session.Done, "demo/closed of 7"},
		{[]string{"--endpoint", "demo/web"}, session.No, `no endpoint "demo/web"; see: hawser endpoint list`},
		{[]string{"--endpoint", ""}, session.WrongUse, "is empty"},
		{[]string{"--endpoint", "echo", "open"}, session.WrongUse, "not both"},
		{[]string{"--endpoint", "echo", "-n", "demo"}, session.WrongUse, "write --endpoint demo/NAME"},
		{nil, session.WrongUse, "or --endpoint with"},
	} {
		s := &session.Session{Context: file, Timeout: 5 * time.Second, Output: printer.Table}
		out, err := run(t, s, append([]string{"get"}, c.args...)...)
		if err != nil {
			out = err.Error()
		}
		if session.ExitCode(err) != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%q: %v\n%s", c.args, err, out)
		}
	}
}

// Without agents the nodes' way to enforce policy is what they told the API server.
func TestEnforcementWithoutAgents(t *testing.T) {
	for _, scope := range []string{"local", "mesh"} {
		socket := played.Socket(t)
		played.APIServer(t, socket, cluster{scope: scope})
		s := &session.Session{Context: played.Context(t, "east", socket), Timeout: 5 * time.Second}
		k, err := learn(t.Context(), s, true)
		if err != nil {
			t.Fatal(err)
		}
		if k.addEnforcement(t.Context(), s); string(k.scope) != scope {
			t.Errorf("scope %q, want %q", k.scope, scope)
		}
	}
}
