// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hawser-mesh/hawser/lab"
)

// suite is what all scripts share.
type suite struct {
	bin  lab.Binaries
	own  string // the agent of this build; bin.Agent is a link to it or to another
	dir  string // of the programs and of the labs' CLI contexts
	labs map[string]*world
	// nextPort makes each probe's source port another.
	nextPort atomic.Uint32
}

func TestMain(m *testing.M) {
	if os.Getenv(toolEnv) != "" {
		os.Exit(runTool(os.Args[1:]))
	}
	os.Exit(run(m))
}

// run removes what is left of test runs that died, before, and its own labs,
// after, also when it is interrupted.
func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	removeDeadLabs()
	o, err := newOwner()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer o.remove()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		o.remove()
		os.Exit(1)
	}()
	return m.Run()
}

func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: labs are made of network namespaces, cgroups and eBPF programs")
	}
	s := newSuite(t)
	runScripts(t, s)
}

// newSuite builds the programs, or takes those of the directory that HAWSER_BIN
// names (the Makefile does).
func newSuite(t *testing.T) *suite {
	t.Helper()
	s := &suite{dir: t.TempDir(), labs: map[string]*world{}}
	dir := os.Getenv("HAWSER_BIN")
	if dir == "" {
		dir = filepath.Join(s.dir, "bin")
		args := []string{"build", "-o", dir + "/"}
		for _, p := range []string{"hawser", "hawser-agent", "hawser-apiserver", "hawser-cni"} {
			args = append(args, "../../cmd/"+p)
		}
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the programs: %v\n%s", err, out)
		}
	}
	s.bin = lab.BinariesIn(dir)
	if err := s.upgradeable(); err != nil {
		t.Fatal(err)
	}
	return s
}

// down removes a lab; the test's context may have ended.
func down(name string) error {
	_, err := lab.Down(context.Background(), name)
	return err
}
