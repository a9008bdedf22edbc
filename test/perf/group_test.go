// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// group accounts for one process: its CPU time and its memory, as the kernel
// counts them for a cgroup. Version 1 has a directory for each of the two.
type group struct {
	cpu, memory string
	v2          bool

	stop context.CancelFunc // of the sampler
	done chan struct{}
	peak float64 // MiB
}

// newGroup makes a cgroup that goes when the test ends, after the processes that
// are started later.
func newGroup(t *testing.T, name string) *group {
	t.Helper()
	name = fmt.Sprintf("hwperf-%d-%s-%d", os.Getpid(), name, time.Now().UnixNano()%1e9)
	g := &group{cpu: "/sys/fs/cgroup/cpuacct/" + name, memory: "/sys/fs/cgroup/memory/" + name}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.stat"); err != nil {
		g = &group{cpu: "/sys/fs/cgroup/" + name, memory: "/sys/fs/cgroup/" + name, v2: true}
	}
	t.Cleanup(func() {
		g.settle()
		for _, dir := range []string{g.cpu, g.memory} {
			for range 50 { // the kernel takes a moment to forget the processes
				if err := unix.Rmdir(dir); err == nil || os.IsNotExist(err) {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	})
	for _, dir := range []string{g.cpu, g.memory} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatalf("make cgroup: %v", err)
		}
	}
	return g
}

// command makes a command that moves into the group before it becomes the
// program.
func (g *group) command(name string, args ...string) *exec.Cmd {
	const enter = `for d in "$1" "$2"; do echo $$ >"$d/cgroup.procs" || exit 1; done; shift 2; exec "$@"`
	return exec.Command("sh", append([]string{"-c", enter, "sh", g.cpu, g.memory, name}, args...)...) //nolint:noctx,gosec // its starter ends it
}

// seconds of CPU time used so far.
func (g *group) seconds() float64 {
	if g.v2 {
		return field(g.cpu+"/cpu.stat", "usage_usec") / 1e6
	}
	b, _ := os.ReadFile(filepath.Join(g.cpu, "cpuacct.usage"))
	ns, _ := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
	return ns / 1e9
}

// resident is the anonymous memory now, in MiB; page cache, and with it files
// in memory, is not in it.
func (g *group) resident() float64 {
	name := "rss"
	if g.v2 {
		name = "anon"
	}
	return field(g.memory+"/memory.stat", name) / (1 << 20)
}

func field(file, name string) float64 {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			v, _ := strconv.ParseFloat(f[1], 64)
			return v
		}
	}
	return 0
}

// sample follows the memory until settle.
func (g *group) sample() {
	ctx, stop := context.WithCancel(context.Background())
	g.stop, g.done, g.peak = stop, make(chan struct{}), 0
	go func() {
		defer close(g.done)
		for ctx.Err() == nil {
			g.peak = max(g.peak, g.resident())
			time.Sleep(20 * time.Millisecond)
		}
	}()
}

// settle ends sample and returns the peak in MiB.
func (g *group) settle() float64 {
	if g.stop != nil {
		g.stop()
		<-g.done
		g.stop = nil
	}
	return g.peak
}
