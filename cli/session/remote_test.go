// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/apitest"
)

func TestRemoteAPIServer(t *testing.T) {
	cfg := apitest.Run(t)
	dir := t.TempDir()
	for role, name := range map[pki.Role]string{pki.RoleAdmin: "ada", pki.RoleAgent: "n1"} {
		if err := apiserver.Issue(cfg.DataDir, role, name, filepath.Join(dir, string(role)), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		cluster, tls string
		says         string // in the error; empty: it answers
		code         int
	}{
		"administrator":   {"east", "admin", "", Done},
		"agent":           {"east", "agent", "only role admin", No},
		"another cluster": {"west", "admin", "want spiffe://west/apiserver", CouldNotAsk},
		"no certificate":  {"east", "none", "hawser-apiserver issue", CouldNotAsk},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.yaml")
			text := fmt.Sprintf("name: c\nclusters: [{name: %s, address: '%s', tlsDir: %s}]\n", c.cluster, cfg.ListenAPI, filepath.Join(dir, c.tls))
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s := &Session{Context: path, Timeout: 10 * time.Second}
			err := ask(t, s)
			if got := ExitCode(err); got != c.code {
				t.Errorf("exit code %d, want %d: %v", got, c.code, err)
			}
			if c.says != "" && (err == nil || !strings.Contains(Message(err), c.says)) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
			if _, err := s.Nodes(); err == nil || !strings.Contains(err.Error(), "on that node itself") {
				t.Errorf("agents of a remote context: %v", err)
			}
		})
	}
}

func ask(t *testing.T, s *Session) error {
	t.Helper()
	client, conn, err := s.Mesh()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := s.Deadline(t.Context())
	defer cancel()
	r, err := client.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
	if err == nil && r.GetCluster() != "east" {
		t.Errorf("answer %v", r)
	}
	return err
}
