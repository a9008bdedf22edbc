// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/lab"
)

// rss is the resident size of a lab's program in MiB.
func rss(t *testing.T, l *lab.Lab, row string) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pidOf(t, l, row)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	t.Fatalf("no resident size of %s", row)
	return 0
}

// kernelMemory is what the kernel keeps for the maps and programs that a process has
// open, in MiB.
func kernelMemory(t *testing.T, pid int) (mib float64) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		b, _ := os.ReadFile(file) // it may be closed meanwhile
		var id string
		var size float64
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			switch {
			case len(f) != 2:
			case f[0] == "map_id:" || f[0] == "prog_id:":
				id = line
			case f[0] == "memlock:":
				size, _ = strconv.ParseFloat(f[1], 64)
			}
		}
		if id != "" && !seen[id] {
			seen[id] = true
			mib += size / (1 << 20)
		}
	}
	return mib
}

// memory compares an idle cluster with one that knows many identities and
// addresses.
func memory(t *testing.T, r *report, l *lab.Lab, with string) {
	t.Helper()
	c := l.Clusters()[0]
	restartAll := func() {
		for kind, who := range map[lab.Program]string{lab.APIServerProgram: c.Name, lab.AgentProgram: c.Members[0].Name} {
			if err := l.Restart(t.Context(), kind, who); err != nil {
				t.Fatal(err)
			}
		}
	}
	show := func(state string) {
		r.add("RSS of agent, "+state+with, "MiB", "", []float64{rss(t, l, c.Members[0].Name)})
		r.add("maps and programs of the agent in the kernel, "+state+with, "MiB", "", []float64{kernelMemory(t, pidOf(t, l, c.Members[0].Name))})
		r.add("RSS of API server with etcd, "+state+with, "MiB", "", []float64{rss(t, l, c.Name+"/ctl")})
	}
	restartAll()
	show("idle")
	start := time.Now()
	writer := command(t, role{Mode: "inject", Cluster: &c})
	if err := errors.Join(l.Start(c.Name+"/ctl", writer), writer.Wait()); err != nil {
		t.Fatalf("write records: %v", err)
	}
	r.add(fmt.Sprintf("writing %d identities, %d ips", manyIdentities, manyIPs)+with, "s", "", []float64{time.Since(start).Seconds()})
	node := hawserv1.NewNodeClient(onSocket(t, c.Members[0].Socket))
	etcdtest.Eventually(t, within, "the agent knows all addresses", func() bool {
		got, err := node.ListMaps(t.Context(), &hawserv1.ListMapsRequest{})
		for _, m := range got.GetMaps() {
			if m.GetName() == "ipcache" && m.GetEntries() >= manyIPs {
				return err == nil
			}
		}
		return false
	})
	r.add("from the first write until all are in the kernel's map"+with, "s", "", []float64{time.Since(start).Seconds()})
	show("after 1,000 identities and 10,000 ips")
	restart := time.Now()
	if err := l.Restart(t.Context(), lab.AgentProgram, c.Members[0].Name); err != nil {
		t.Fatal(err)
	}
	r.add("agent stop, start to ready with them"+with, "s", "", []float64{time.Since(restart).Seconds()})
	show("restarted with them")
}
