// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// played are programs that answer as a snapshot has it.
type played struct{ Snapshot }

type (
	playedMesh struct {
		hawserv1.UnimplementedMeshServer
		*played
	}
	playedNode struct {
		hawserv1.UnimplementedNodeServer
		*played
	}
)

func (p *playedMesh) ClusterStatus(context.Context, *hawserv1.ClusterStatusRequest) (*hawserv1.ClusterStatusReport, error) {
	p.Status.Now = time.Now().UnixNano()
	return p.Status, nil
}

func (p *playedMesh) MeshStatus(context.Context, *hawserv1.MeshStatusRequest) (*hawserv1.MeshStatusResponse, error) {
	return &hawserv1.MeshStatusResponse{Peers: p.Peers}, nil
}

func (p *playedMesh) ListNodes(context.Context, *hawserv1.ListNodesRequest) (*hawserv1.ListNodesResponse, error) {
	return &hawserv1.ListNodesResponse{Nodes: p.Members}, nil
}

func (p *playedMesh) Join(_ context.Context, r *hawserv1.JoinRequest) (*hawserv1.JoinResponse, error) {
	if !r.GetPreflightOnly() {
		return nil, errors.New("the doctor joins")
	}
	return p.Preflights[r.GetPeer()], nil
}

func (p *playedNode) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	p.Nodes[0].Status.Now = time.Now().UnixNano()
	return p.Nodes[0].Status, nil
}

func (p *playedNode) ListPaths(context.Context, *hawserv1.ListPathsRequest) (*hawserv1.ListPathsResponse, error) {
	return &hawserv1.ListPathsResponse{Paths: p.Nodes[0].Paths}, nil
}

// serve answers on a socket each, and returns a context that names them.
func (p *played) serve(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"api", "node"} {
		lis, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer()
		if name == "api" {
			hawserv1.RegisterMeshServer(srv, &playedMesh{played: p})
		} else {
			hawserv1.RegisterNodeServer(srv, &playedNode{played: p})
		}
		go func() { _ = srv.Serve(lis) }()
		t.Cleanup(srv.Stop)
	}
	return writeContext(t, filepath.Join(dir, "api"), filepath.Join(dir, "node"))
}

func writeContext(t *testing.T, api, node string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.yaml")
	text := fmt.Sprintf("name: x\nclusters: [{name: east, socket: %s, nodes: [{name: n1, socket: %s}]}]\n", api, node)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// examineBy runs the command and returns its exit code and what it printed.
func examineBy(t *testing.T, file string, f printer.Format) (code int, out string) {
	t.Helper()
	s := &session.Session{Context: file, Output: f, Timeout: 5 * time.Second}
	cmd := New(s)
	cmd.SetArgs(nil)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var b bytes.Buffer
	cmd.SetOut(&b)
	return session.ExitCode(cmd.ExecuteContext(t.Context())), b.String()
}

// The exit code and the JSON say the same, for scripts: 0 when nothing is worse
// than a warning, 1 for a problem, 3 when nobody answers.
func TestCommand(t *testing.T) {
	year := time.Now().Add(365 * 24 * time.Hour).UnixNano()
	for name, c := range map[string]struct {
		fault func(*Snapshot)
		code  int
		worst Severity
		says  string
	}{
		"well":    {func(*Snapshot) {}, 0, OK, "answers"},
		"warning": {func(s *Snapshot) { s.Peers[0].Refused, s.Peers[0].RefusedNow = map[string]uint64{"range": 3}, 3 }, 0, Warning, "3 range"},
		"problem": {func(s *Snapshot) {
			s.Nodes[0].Paths = []*hawserv1.NodePath{{Cluster: "west", Node: "w1", Address: "192.0.2.7", Path: "down"}}
		}, session.No, Problem, "nothing gets through the tunnel"},
	} {
		p := &played{Snapshot: healthy()}
		p.Status.CaExpiresAt, p.Peers[0].CertificateExpiresAt, p.Nodes[0].Status.CertificateExpiresAt = year, year, year
		c.fault(&p.Snapshot)
		file := p.serve(t)
		code, out := examineBy(t, file, printer.JSON)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d", name, code, c.code)
		}
		var r Report
		d := json.NewDecoder(strings.NewReader(out))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatalf("%s: %v in %s", name, err, out)
		}
		worst := map[Severity]bool{}
		for _, f := range r.Findings {
			worst[f.Severity] = true
			if f.Check == "" || f.Object == "" || f.Cause == "" || f.Severity != OK && f.Next == "" {
				t.Errorf("%s: incomplete: %+v", name, f)
			}
		}
		if worst[Problem] != (c.worst == Problem) || worst[Warning] != (c.worst == Warning) || len(r.Ports) != 6 {
			t.Errorf("%s: %s", name, out)
		}
		if _, table := examineBy(t, file, printer.Table); !strings.Contains(table, c.says) || !strings.Contains(table, "These must get through") {
			t.Errorf("%s: %s", name, table)
		}
	}
	if code, out := examineBy(t, writeContext(t, "/nowhere/a", "/nowhere/n"), printer.JSON); code != session.CouldNotAsk || !strings.Contains(out, "there is no socket") || strings.Contains(out, "null") {
		t.Errorf("nobody is there: exit code %d: %s", code, out)
	}
}
