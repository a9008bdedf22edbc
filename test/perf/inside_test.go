// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab/netns"
)

// insideEnv is set in the process that measures: the prefix of its namespaces.
const insideEnv = "HAWSER_PERF_INSIDE"

// Cluster ids of the clusters that are real; made-up ones count from 1.
const (
	nearID = 253
	farID  = 254
)

func near() world { return bigWorld("near", nearID) }
func far() world  { return bigWorld("far", farID) }

// hostOf is where a real cluster's API server is: outside of what nodes have of
// it by the made-up records.
func hostOf(w world) netip.Addr { return w.node(1010) }

// secondHost is for a second real cluster in the same namespace.
func secondHost() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 2}) }

// inside runs the test once more within a network namespace of its own, near,
// that a router connects with another one, far; it returns true there. What is
// measured leaves nothing on the host and hears nothing of it.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	if !flags.perf {
		newReport(t, "", "") // which says how to run it
	}
	prefix := fmt.Sprintf("/run/netns/hwperf-%d-", os.Getpid())
	fabric := prefix + "fabric"
	for _, p := range []string{prefix + "near", prefix + "far", fabric} {
		t.Cleanup(func() { removeNetns(t, p) })
	}
	gateway := func(w world) netip.Prefix { return netip.PrefixFrom(w.node(1009), 22) }
	if err := netns.CreateFabric(fabric, []netns.Bridge{{Name: "near", Address: gateway(near())}, {Name: "far", Address: gateway(far())}}, nil, 0); err != nil {
		t.Fatal(err)
	}
	for _, w := range []world{near(), far()} {
		if err := netns.Create(prefix + w.Name); err != nil {
			t.Fatal(err)
		}
		err := netns.Connect(fabric, netns.Port{Bridge: w.Name, Name: w.Name + "0", Netns: prefix + w.Name,
			Address: netip.PrefixFrom(hostOf(w), 22), Gateway: gateway(w).Addr(), MTU: 1500})
		if err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return strings.HasPrefix(a, "-test.testlogfile") })
	run := "^" + t.Name() + "$"
	if _, parts, ok := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); ok {
		run += "/" + parts
	}
	cmd := exec.CommandContext(t.Context(), self, append(args, "-test.run="+run)...)
	cmd.Env = append(os.Environ(), insideEnv+"="+prefix)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := nsthread.InNetns(prefix+"near", cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("inside: %v", err)
	}
	return false
}

// insidePath is the path of one of the namespaces.
func insidePath(name string) string { return filepath.Clean(os.Getenv(insideEnv) + name) }

// cut makes the router lose all packets between the two real clusters.
func cut(t *testing.T, lose bool) {
	t.Helper()
	fn := netns.Heal
	if lose {
		fn = netns.Cut
	}
	if err := fn(insidePath("fabric"), near().nodeCIDR(), far().nodeCIDR(), 0); err != nil {
		t.Fatal(err)
	}
}
