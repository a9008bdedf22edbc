// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// rotating is an API server that takes any step; once it has announced, the
// missing are missing, for so many answers.
type rotating struct {
	hawserv1.UnimplementedMeshServer
	mu      sync.Mutex
	phase   pki.Phase
	steps   []string
	left    []string
	missing []string
	answers int
}

func (f *rotating) CAStatus(context.Context, *hawserv1.CAStatusRequest) (*hawserv1.CAStatusReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &hawserv1.CAStatusReport{Phase: string(f.phase)}
	if f.phase != pki.PhaseNone && f.answers > 0 {
		f.answers--
		r.Waiting = f.missing
	}
	return r, nil
}

func (f *rotating) RotateCA(_ context.Context, r *hawserv1.RotateCARequest) (*hawserv1.CAStatusReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.phase, f.left = pki.Phase(r.GetTo()), r.GetLeaveNodes()
	f.steps = append(f.steps, r.GetTo())
	return &hawserv1.CAStatusReport{}, nil
}

// serve answers on a socket, and returns a context that names it.
func (f *rotating) serve(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	lis, err := net.Listen("unix", filepath.Join(dir, "api"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	hawserv1.RegisterMeshServer(srv, f)
	go func() { _ = srv.Serve(lis) }()
	t.Cleanup(srv.Stop)
	path := filepath.Join(dir, "context.yaml")
	text := fmt.Sprintf("name: c\nclusters: [{name: east, socket: '%s'}]\n", filepath.Join(dir, "api"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Peers that do not confirm are left behind, nodes only by name.
func TestWhoIsLeftBehind(t *testing.T) {
	const ever = 1 << 30
	all := []string{"announced", "switched", "none"}
	for name, c := range map[string]struct {
		missing    []string
		answers    int
		nodesWait  time.Duration
		requireAll bool
		leave      []string
		steps      []string
		says       string // its error
	}{
		"nobody is missing":             {steps: all},
		"a peer":                        {missing: []string{"peer west"}, answers: ever, steps: all},
		"a peer, all are required":      {missing: []string{"peer west"}, answers: ever, requireAll: true, steps: all[:1], says: "peer west not confirmed"},
		"nodes":                         {missing: []string{"node n1", "node n2", "peer west"}, answers: ever, steps: all[:1], says: "node n1, node n2 not confirmed"},
		"a node that is named":          {missing: []string{"node n1"}, answers: ever, leave: []string{"n1"}, steps: all},
		"another than is named":         {missing: []string{"node n1", "node n2"}, answers: ever, leave: []string{"n1"}, steps: all[:1], says: "node n2 not confirmed"},
		"a replica":                     {missing: []string{"API server r2"}, answers: ever, steps: all[:1], says: "API server r2 not confirmed"},
		"nodes that need longer a bit":  {missing: []string{"node n1"}, answers: 3, nodesWait: time.Minute, steps: all},
		"nodes, all required, no least": {missing: []string{"node n1"}, answers: ever, nodesWait: time.Minute, requireAll: true, steps: all[:1], says: "node n1 not confirmed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &rotating{phase: pki.PhaseNone, missing: c.missing, answers: c.answers}
			s := &session.Session{Context: f.serve(t), Timeout: 5 * time.Second}
			var out bytes.Buffer
			r := &rotation{s: s, out: &out, wait: time.Millisecond, nodesWait: c.nodesWait, requireAll: c.requireAll, leave: c.leave}
			_, err := r.run(t.Context())
			var answer *session.Error
			switch {
			case c.says == "" && err != nil:
				t.Errorf("it fails: %v", err)
			case c.says != "" && (!errors.As(err, &answer) || answer.Code != session.No || !strings.Contains(err.Error(), c.says)):
				t.Errorf("error %v, want %q", err, c.says)
			}
			if !slices.Equal(f.steps, c.steps) || !slices.Equal(f.left, c.leave) {
				t.Errorf("steps %v, nodes left %v; want %v, %v\n%s", f.steps, f.left, c.steps, c.leave, out.String())
			}
		})
	}
}
