// SPDX-License-Identifier: Apache-2.0

package config

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/session"
)

func add(args ...string) error {
	cmd := New(&session.Session{})
	cmd.SetArgs(append([]string{"add-context", "prod", "--name", "east", "--address", "192.0.2.1:4244", "--tls-dir", "ada"}, args...))
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	return cmd.Execute()
}

// A context says how an etcd outside the API server is reached, or nothing of it.
func TestAddContextWithEtcd(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Chdir(home)
	load := func() clicontext.Cluster {
		t.Helper()
		c, err := clicontext.Load(filepath.Join(home, "hawser", "contexts", "prod.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		return c.Clusters[0]
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	if c := load(); c.Etcd != nil || c.TLSDir != filepath.Join(home, "ada") {
		t.Errorf("without: %+v", c)
	}
	if err := add("--etcd-endpoint", "https://192.0.2.9:2379"); session.ExitCode(err) != session.WrongUse || !strings.Contains(err.Error(), "tlsDir") {
		t.Errorf("half: %v", err)
	}
	if err := add("--etcd-endpoint", "https://192.0.2.9:2379", "--etcd-tls-dir", "etcd"); err != nil {
		t.Fatal(err)
	}
	if c := load(); c.Etcd == nil || *c.Etcd != (clicontext.Etcd{Endpoint: "https://192.0.2.9:2379", TLSDir: filepath.Join(home, "etcd")}) {
		t.Errorf("with: %+v", c.Etcd)
	}
}
