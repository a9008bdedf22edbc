// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
)

// laterNode enforces what is stored when it is asked once more.
type laterNode struct {
	hawserv1.UnimplementedNodeServer
	asked atomic.Int32
}

func (n *laterNode) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	r := &hawserv1.NodeStatusReport{Cluster: "east", Node: "n2", PoliciesSettled: true, PolicyScope: "local", PolicyMode: "default"}
	if n.asked.Add(1) > 1 {
		r.Policies = map[string]uint64{"demo/open": 1}
	}
	return r, nil
}

func (*laterNode) ListIPCache(context.Context, *hawserv1.ListIPCacheRequest) (*hawserv1.ListIPCacheResponse, error) {
	return &hawserv1.ListIPCacheResponse{Entries: []*hawserv1.IPCacheEntry{
		{Prefix: "10.1.0.5/32", Cluster: "east", Node: "n2", Workload: "demo/echo", Identity: 65540, Source: "endpoint"},
		{Prefix: "10.2.0.5/32", Cluster: "west", Node: "w1", Workload: "demo/client", Identity: 131080, Source: "ip"},
	}}, nil
}

func (*laterNode) ListEndpoints(context.Context, *hawserv1.ListEndpointsRequest) (*hawserv1.ListEndpointsResponse, error) {
	return &hawserv1.ListEndpointsResponse{}, nil
}

// stuckNode takes questions and answers none.
type stuckNode struct {
	hawserv1.UnimplementedNodeServer
}

func (stuckNode) Status(ctx context.Context, _ *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (stuckNode) ListIPCache(ctx context.Context, _ *hawserv1.ListIPCacheRequest) (*hawserv1.ListIPCacheResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (stuckNode) ListEndpoints(ctx context.Context, _ *hawserv1.ListEndpointsRequest) (*hawserv1.ListEndpointsResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// hungBeside is a session of a cluster whose first agent lives and never answers.
func hungBeside(t *testing.T, timeout time.Duration) *session.Session {
	t.Helper()
	api, agent, hung := played.Socket(t), played.Socket(t), played.Socket(t)
	played.APIServer(t, api, cluster{scope: "local"})
	played.Agent(t, agent, &laterNode{})
	played.Agent(t, hung, stuckNode{})
	return &session.Session{Context: played.Context(t, "east", api, "n1", hung, "n2", agent), Timeout: timeout, Output: printer.Table}
}

// What the kernel of a node enforces whose agent does not answer is not known, whatever
// it said before; the others are asked again until they are done.
func TestStatusOfASilentAgent(t *testing.T) {
	s := hungBeside(t, 2*time.Second)
	out, err := run(t, s, "status", "--wait")
	if session.ExitCode(err) != session.No || !strings.Contains(out, "n1    1 of 1    its agent does not answer") || !strings.Contains(out, "n2    1 of 1    –") {
		t.Errorf("%v\n%s", err, out)
	}
	s.Output, s.Timeout = printer.YAML, time.Second
	out, _ = run(t, s, "status")
	if want := "- enforced: 1\n  node: n1\n  silent: true\n  stored: 1\n- enforced: 1\n  node: n2\n  silent: false\n  stored: 1\n"; out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

// The agent is asked as long as there is time, though no other answers.
func TestStatusOfNobodyElse(t *testing.T) {
	s := hungBeside(t, time.Second)
	s.Node = "n1"
	if _, err := run(t, s, "status", "--wait"); session.ExitCode(err) != session.CouldNotAsk || !strings.Contains(err.Error(), `node "n1": its agent does not answer`) {
		t.Error(err)
	}
}

// Commands that ask agents several times answer beside one that does not.
func TestTraceAndDryRunBesideASilentAgent(t *testing.T) {
	s := hungBeside(t, 3*time.Second)
	out, err := run(t, s, "trace", "--src", "west/demo/client", "--dst", "demo/echo", "--dport", "80")
	if err != nil || !strings.Contains(out, "ingress at east/demo/echo") {
		t.Errorf("trace: %v\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte(closed), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, s, "apply", "--dry-run", "-f", file); err != nil || !strings.Contains(out, "app=client,mesh:cluster=west") {
		t.Errorf("dry run: %v\n%s", err, out)
	}
}
