// SPDX-License-Identifier: Apache-2.0

package etcdtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/testutil/ports"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// module is etcd's server, which this module requires: its program is built
// from there.
const module = "go.etcd.io/etcd/server/v3"

// process is an etcd that is a program of its own.
type process struct {
	argv    []string
	command func(name string, args ...string) *exec.Cmd
	cmd     *exec.Cmd
	out     bytes.Buffer
	e       *Etcd
}

// Process is how a test runs an etcd that is a program of its own.
type Process struct {
	// DataDir is where the data goes; empty: into memory, where there is such
	// a directory.
	DataDir string
	// Fsync waits for the disk, as etcd does where nobody tells it not to.
	Fsync bool
	// GRPCOnly keeps HTTP off the port, as the operator's guide says.
	GRPCOnly bool
	// Command makes the command, not started; nil means exec.Command.
	Command func(name string, args ...string) *exec.Cmd
}

func startExternal(tb testing.TB) *Etcd {
	tb.Helper()
	beside(tb)
	return StartProcess(tb, Process{})
}

// StartProcess runs an etcd of kind External until the test ends.
func StartProcess(tb testing.TB, p Process) *Etcd {
	tb.Helper()
	e := base(tb, External)
	if p.DataDir != "" {
		e.Config.DataDir = p.DataDir
	}
	if p.Command == nil {
		p.Command = exec.Command //nolint:noctx // stop ends it
	}
	url := "https://" + e.Config.Listen.String()
	e.process = &process{e: e, command: p.Command, argv: []string{
		program(tb),
		"--name", "member", "--data-dir", e.Config.DataDir,
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", fmt.Sprintf("http://%s", ports.Free(tb)),
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "member=http://127.0.0.1:2380",
		"--cert-file", e.Config.TLS.Cert, "--key-file", e.Config.TLS.Key, "--trusted-ca-file", e.Config.TLS.CA, "--client-cert-auth",
		"--log-level", "error",
	}}
	if p.GRPCOnly {
		e.process.argv = append(e.process.argv, "--listen-client-http-urls", fmt.Sprintf("http://%s", ports.Free(tb)))
	}
	if !p.Fsync {
		e.process.argv = append(e.process.argv, "--unsafe-no-fsync")
	}
	e.process.start(tb)
	tb.Cleanup(e.process.stop)
	return e
}

// start runs the process and sets up access to it, as an operator does.
func (p *process) start(tb testing.TB) {
	tb.Helper()
	p.out.Reset()
	p.cmd = p.command(p.argv[0], p.argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		tb.Fatalf("start etcd: %v", err)
	}
	root := p.e.Root(tb)
	var err error
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if err = etcd.SetupAccess(tb.Context(), root, p.e.Cluster, false); err == nil {
			return
		}
	}
	p.stop()
	tb.Fatalf("set up etcd: %v\n%s", err, p.out.String())
}

func (p *process) stop() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// program builds etcd's program, once for all test processes: in the user's
// cache, by version.
func program(tb testing.TB) string {
	tb.Helper()
	path, err := built()
	if err != nil {
		tb.Fatalf("build an etcd to test with: %v", err)
	}
	return path
}

var built = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // once a process
	version, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", module).Output() //nolint:noctx // at once
	if err != nil {
		return "", fmt.Errorf("find %s: %w", module, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "hawser-test", "etcd-"+string(bytes.TrimSpace(version)))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	if out, err := exec.Command("go", "build", "-o", tmp, module).CombinedOutput(); err != nil { //nolint:noctx // a few seconds
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, os.Rename(tmp, path)
})
