// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab"
)

// newName is a lab name of this test process's own.
func newName(t *testing.T, letter string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces, mounts and cgroups")
	}
	name := letter + strconv.Itoa(os.Getpid())
	t.Cleanup(func() { down(t, name) })
	return name
}

func down(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := lab.Down(ctx, name); err != nil {
		t.Error(err)
	}
}

func testSpec(name string) lab.Spec {
	s := lab.NewSpec(name, 2, 1)
	s.Clusters[0].Pods = []lab.PodSpec{{Name: "client", Namespace: "demo", Labels: map[string]string{"app": "client"}}}
	s.Clusters[1].Pods = []lab.PodSpec{{Name: "client"}}
	return s
}

// hostState is what a lab may not change: read as text.
func hostState(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, path := range []string{"/etc/hosts", "/etc/resolv.conf"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out[path] = string(text)
	}
	for _, args := range []string{"route show table all", "rule", "link show", "address show"} {
		// Counters and lifetimes are not shown by these.
		raw, err := exec.Command("ip", strings.Fields("-o "+args)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		out["ip "+args] = string(raw)
	}
	for _, root := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6/conf", "/proc/sys/net/core"} {
		_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				v, _ := os.ReadFile(p)
				out[p] = string(v)
			}
			return nil
		})
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	var lasting []string
	for line := range strings.Lines(string(mounts)) {
		// Tests of other packages come and go in these places meanwhile; what
		// this lab leaves there is looked for by name.
		if !strings.Contains(line, "/run/netns") && !strings.Contains(line, "/run/hawser-lab/") && !strings.Contains(line, " "+os.TempDir()+"/") {
			lasting = append(lasting, line)
		}
	}
	out["mounts"] = strings.Join(lasting, "")
	host, _ := os.Hostname()
	out["host name"] = host
	return out
}

func sameHost(t *testing.T, before, after map[string]string) {
	t.Helper()
	for k, v := range before {
		if after[k] != v {
			t.Errorf("%s of the host changed:\n%s\nwas:\n%s", k, after[k], v)
		}
	}
}

// listenIn answers on a TCP address inside a namespace until the test ends.
func listenIn(t *testing.T, netns, addr string) {
	t.Helper()
	err := nsthread.InNetns(netns, func() error {
		lis, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { lis.Close() })
		go func() {
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dialIn connects from inside a namespace.
func dialIn(netns, addr string) error {
	return nsthread.InNetns(netns, func() error {
		c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
}

func TestNetwork(t *testing.T) {
	before := hostState(t)
	name := newName(t, "n")
	for range 2 { // the second must find nothing of the first
		l, err := lab.Up(t.Context(), lab.NewSpec(name, 2, 2), lab.Options{NetworkOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		checkNetwork(t, l)
		down(t, name)
		sameHost(t, before, hostState(t))
	}
}

func checkNetwork(t *testing.T, l *lab.Lab) {
	east, west := l.Clusters()[0], l.Clusters()[1]
	e1, e2, w1 := east.Members[0], east.Members[1], west.Members[0]
	for _, c := range []lab.Cluster{east, west} {
		listenIn(t, c.Netns, c.Control.String()+":2379")
		listenIn(t, c.Netns, c.Control.String()+":4243")
		for _, n := range c.Members {
			listenIn(t, n.Netns, n.Address.String()+":7000")
		}
	}
	reach := func(from, to string, want bool, why string) {
		t.Helper()
		err := dialIn(from, to)
		// On a busy machine an answer may be late.
		for deadline := time.Now().Add(10 * time.Second); want && err != nil && time.Now().Before(deadline); {
			err = dialIn(from, to)
		}
		if (err == nil) != want {
			t.Errorf("%s → %s: %v, reachable should be %v: %s", filepath.Base(from), to, err, want, why)
		}
	}
	reach(e1.Netns, e2.Address.String()+":7000", true, "nodes of a cluster")
	reach(e1.Netns, w1.Address.String()+":7000", true, "nodes of two clusters, through the fabric")
	reach(e1.Netns, east.Control.String()+":2379", true, "the own cluster's etcd")
	reach(w1.Netns, east.Control.String()+":2379", false, "an agent may not reach a foreign etcd")
	reach(west.Netns, east.Control.String()+":2379", false, "nor may an API server")
	reach(west.Netns, east.Control.String()+":4243", true, "API servers talk to each other")

	must(t, l.Cut(lab.ControlNetwork, "east", "west"))
	must(t, l.Cut(lab.ControlNetwork, "west", "east")) // again, the other way round: no change
	reach(west.Netns, east.Control.String()+":4243", false, "cut")
	reach(east.Netns, west.Control.String()+":4243", false, "cut in both directions")
	reach(e1.Netns, w1.Address.String()+":7000", true, "nodes are not concerned")
	must(t, l.Heal(lab.ControlNetwork, "east", "west"))
	must(t, l.Heal(lab.ControlNetwork, "east", "west"))
	reach(west.Netns, east.Control.String()+":4243", true, "healed")

	must(t, l.Cut(lab.FabricNetwork, "east", "west"))
	reach(e1.Netns, w1.Address.String()+":7000", false, "cut")
	reach(e1.Netns, e2.Address.String()+":7000", true, "inside a cluster nothing is cut")
	must(t, l.Heal(lab.FabricNetwork, "west", "east"))
	reach(e1.Netns, w1.Address.String()+":7000", true, "healed")
	if err := l.Cut(lab.FabricNetwork, "east", "nowhere"); err == nil || !strings.Contains(err.Error(), "west") {
		t.Errorf("cutting an unknown cluster: %v; should name those there are", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLab(t *testing.T) {
	before := hostState(t)
	name := newName(t, "l")
	l, err := lab.Up(t.Context(), testSpec(name), lab.Options{Binaries: programs(t)})
	must(t, err)
	wantState(t, l, "ready")
	if _, err := lab.Up(t.Context(), testSpec(name), lab.Options{Binaries: programs(t)}); !errors.Is(err, lab.ErrExists) {
		t.Errorf("a second lab of the same name: %v, want ErrExists", err)
	}
	out := run(t, name, 0, "east/client", "sh", "-c", "cat /etc/hosts /etc/resolv.conf; hostname; cat /proc/self/cgroup; ip -o address show dev eth0; echo $$ to stderr >&2")
	for _, want := range []string{"nameserver 172.30.1.11\nsearch demo.mesh mesh\n", "10.1.1.2 client", "\nclient\n", "/hawser-lab-" + name + "/east-1/client\n", "inet 10.1.1.2/32"} {
		if !strings.Contains(out, want) {
			t.Errorf("in the pod %q is missing:\n%s", want, out)
		}
	}
	run(t, name, 7, "east/client", "sh", "-c", "exit 7")
	run(t, name, 0, "west-1", "ip", "route", "get", "172.30.1.11")
	if out := run(t, name, 1, "east/nobody", "true"); !strings.Contains(out, "client") {
		t.Errorf("unknown pod: %q should name those there are", out)
	}

	p, err := lab.AddPod(t.Context(), name, "west", lab.PodSpec{Name: "more", Command: []string{"sleep", "100"}})
	must(t, err)
	run(t, name, 0, "west/more", "true")
	if _, err := lab.AddPod(t.Context(), name, "west", lab.PodSpec{Name: "more"}); err == nil {
		t.Error("a second pod of the same name was added")
	}
	must(t, lab.DeletePod(t.Context(), name, "west", "more"))
	if _, err := os.Stat(p.Place.Netns); !os.IsNotExist(err) {
		t.Errorf("namespace of a deleted pod: %v", err)
	}

	l, err = lab.Open(name)
	must(t, err)
	must(t, l.Kill(t.Context(), lab.AgentProgram, "east-1"))
	wantState(t, l, "damaged")
	must(t, l.Restart(t.Context(), lab.AgentProgram, "east-1"))
	must(t, l.Restart(t.Context(), lab.APIServerProgram, "west"))
	wantState(t, l, "ready")
	down(t, name)
	sameHost(t, before, hostState(t))
}

// TestSettingsOfAgents sets a flag for all agents, for those of a cluster, and for one
// at its restart, which keeps it.
func TestSettingsOfAgents(t *testing.T) {
	spec := testSpec(newName(t, "g"))
	spec.Agent = map[string]string{"zone": "all"}
	spec.Clusters[1].Agent = map[string]string{"zone": "west"}
	spec.Clusters[0].Nodes = 2
	l, err := lab.Up(t.Context(), spec, lab.Options{Binaries: programs(t)})
	must(t, err)
	told := func(c, n int) string {
		t.Helper()
		conn, err := grpc.NewClient("unix://"+l.Clusters()[c].Members[n].Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(t, err)
		defer conn.Close()
		s, err := hawserv1.NewNodeClient(conn).Status(t.Context(), &hawserv1.StatusRequest{})
		must(t, err)
		return s.GetVersion()
	}
	if e, w := told(0, 0), told(1, 0); e != "all" || w != "west" {
		t.Errorf("agents were told %q and %q", e, w)
	}
	for _, zone := range []string{"one", "other"} {
		must(t, l.RestartWith(t.Context(), lab.AgentProgram, "east-1", map[string]string{"zone": zone}))
		if got := told(0, 0); got != zone {
			t.Errorf("restarted with %q, told %q", zone, got)
		}
	}
	must(t, l.Restart(t.Context(), lab.AgentProgram, "east-1"))
	if one, two := told(0, 0), told(0, 1); one != "other" || two != "all" {
		t.Errorf("restarted as it was: %q; its neighbour %q", one, two)
	}
	if err := l.RestartWith(t.Context(), lab.AgentProgram, "east-1", map[string]string{"--zone": "x"}); err == nil || !strings.Contains(err.Error(), `"--zone" is not`) {
		t.Errorf("no flag's name: %v", err)
	}
	spec.Clusters[1].Agent = map[string]string{"-x": ""}
	if _, err := spec.Complete(); err == nil || !strings.Contains(err.Error(), `agent of cluster west: "-x" is not`) {
		t.Errorf("no flag's name in a cluster: %v", err)
	}
	down(t, spec.Name)
}

func wantState(t *testing.T, l *lab.Lab, want string) {
	t.Helper()
	if st := l.Status(t.Context()); st.State != want {
		t.Errorf("the lab is %s, want %s: %+v", st.State, want, st)
	}
}

// run executes a command in a target by way of a process of its own, which Exec
// replaces, and checks its exit code.
func run(t *testing.T, name string, code int, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "LAB_TEST_DO=exec", "LAB_TEST_NAME="+name)
	out, err := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("%v: exit code %d (%v), want %d:\n%s", args, got, err, code, out)
	}
	return string(out)
}

func TestExecPassesSignals(t *testing.T) {
	name := newName(t, "s")
	_, err := lab.Up(t.Context(), lab.NewSpec(name, 1, 1), lab.Options{NetworkOnly: true})
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, "east-1", "sh", "-c", "trap 'exit 42' TERM; echo up; while :; do sleep 0.01; done")
	cmd.Env = append(os.Environ(), "LAB_TEST_DO=exec", "LAB_TEST_NAME="+name)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 42 {
		t.Errorf("exit code %d, want the trap's 42", code)
	}
}

// TestKilledAtEveryStep ends `lab up` before each of its changes in turn and
// removes the rest, every other time without the record.
func TestKilledAtEveryStep(t *testing.T) {
	before := hostState(t)
	name := newName(t, "k")
	bin := programs(t)
	self, err := os.Executable()
	must(t, err)
	var steps int
	for n := 1; ; n++ {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "LAB_TEST_DO=up", "LAB_TEST_NAME="+name,
			"LAB_TEST_BIN="+filepath.Dir(bin.Hawser), "LAB_TEST_KILL="+strconv.Itoa(n))
		out, err := cmd.CombinedOutput()
		if n%2 == 0 {
			_ = os.Remove(filepath.Join(lab.RunDir, name, "state.json"))
		}
		down(t, name)
		if left := traces(t, name); left != "" || t.Failed() {
			t.Fatalf("killed before change %d (%s): left behind: %s", n, strings.TrimSpace(string(out)), left)
		}
		if err == nil {
			steps = n - 1
			break
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("lab up to be killed before change %d: %v\n%s", n, err, out)
		}
	}
	const few = 20
	if steps < few {
		t.Errorf("only %d steps were tried", steps)
	}
	t.Logf("%d steps", steps)
	sameHost(t, before, hostState(t))
}

// traces looks for a lab with other means than the lab's own.
func traces(t *testing.T, name string) string {
	t.Helper()
	script := fmt.Sprintf(`
ls -d /run/hawser-lab/%[1]s /run/hawser-lab/.%[1]s.lock 2>/dev/null
ls /run/netns 2>/dev/null | grep '^hwl-%[1]s-'
grep -e 'hwl-%[1]s-' -e 'hawser-lab/%[1]s' /proc/self/mounts
find /sys/fs/cgroup -maxdepth 2 -name 'hawser-lab-%[1]s'
ps -eo pid,stat,args | grep -e 'hawser-lab/%[1]s/' | grep -v grep
true`, name)
	out, err := exec.Command("sh", "-c", script).Output()
	must(t, err)
	return string(out)
}

func TestDownFindsForeignProcesses(t *testing.T) {
	name := newName(t, "f")
	l, err := lab.Up(t.Context(), lab.NewSpec(name, 1, 1), lab.Options{NetworkOnly: true})
	must(t, err)
	// As `nsenter --net=` would: in the namespace, but in none of its cgroups.
	var cmd *exec.Cmd
	must(t, nsthread.InNetns(l.Clusters()[0].Members[0].Netns, func() error {
		cmd = exec.Command("sleep", "1000")
		return cmd.Start()
	}))
	down(t, name)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("a process in a node's namespace outlived the lab: %v", err)
	}
}

func TestFailureNamesProcessAndLog(t *testing.T) {
	name := newName(t, "e")
	t.Setenv("LAB_TEST_BREAK_APISERVER", "1")
	_, err := lab.Up(t.Context(), testSpec(name), lab.Options{Binaries: programs(t)})
	var pe *lab.ProcessError
	if !errors.As(err, &pe) || !strings.Contains(err.Error(), "disk is on fire") || !strings.HasSuffix(pe.Process, "-apiserver") {
		t.Errorf("the error names neither the program nor its last words: %v", err)
	}
}

func TestSpecProblemsAreAllTold(t *testing.T) {
	s := lab.Spec{Name: "Bad-Name", Clusters: []lab.ClusterSpec{
		{Name: "east", ID: 1, Pods: []lab.PodSpec{{Name: "x", Node: "east-9"}, {Name: "ctl"}}},
		{Name: "east", ID: 1, Nodes: 1000},
	}}
	_, err := s.Complete()
	for _, want := range []string{"Bad-Name", "name is taken", "id 1 is taken", "east-9", "pod ctl", "1000 nodes", "overlaps"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %q: %v", want, err)
		}
	}
}

func TestSpecClusterBitsAndSettings(t *testing.T) {
	s := lab.Spec{Name: "x", ClusterBits: 10, Clusters: []lab.ClusterSpec{{ID: 300}, {ID: 1023}}, APIServer: map[string]string{"expire-after": "1h"}}
	s, err := s.Complete()
	must(t, err)
	if c := s.Clusters[0]; c.PodCIDR.String() != "10.44.0.0/16" || s.Clusters[1].NodeCIDR.String() != "172.30.255.0/24" {
		t.Errorf("%+v", s)
	}
	s.ClusterBits, s.Agent = 9, map[string]string{"--x": ""}
	if _, err := s.Complete(); err == nil || !strings.Contains(err.Error(), "id 1023 is above 511") || !strings.Contains(err.Error(), `"--x" is not`) {
		t.Errorf("9 cluster bits: %v", err)
	}
	if _, err := (lab.Spec{Clusters: []lab.ClusterSpec{{ID: 256}}}).Complete(); err == nil || !strings.Contains(err.Error(), "above 255") {
		t.Errorf("8 cluster bits: %v", err)
	}
	// Ranges of ids that differ by 256 would be the same.
	if _, err := (lab.Spec{ClusterBits: 9, Clusters: []lab.ClusterSpec{{ID: 1}, {ID: 257}}}).Complete(); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("ids 1 and 257: %v", err)
	}
}

func TestSpecFileIsStrict(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.yaml")
	must(t, os.WriteFile(path, []byte("name: x\nclusters:\n- nodes: 3\n  pods:\n  - {name: a, labels: {app: b}}\n- {name: far, id: 7, podCIDR: 10.77.0.0/16}\n"), 0o644))
	s, err := lab.LoadSpec(path)
	must(t, err)
	s, err = s.Complete()
	must(t, err)
	if e, f := s.Clusters[0], s.Clusters[1]; e.Name != "east" || e.Pods[0].Node != "east-1" || e.PodCIDR.String() != "10.1.0.0/16" ||
		f.PodCIDR.String() != "10.77.0.0/16" || f.NodeCIDR.String() != "172.30.7.0/24" || f.Nodes != 2 {
		t.Errorf("%+v", s)
	}
	must(t, os.WriteFile(path, []byte("clusters:\n- node: 3\n"), 0o644))
	if _, err := lab.LoadSpec(path); err == nil || !strings.Contains(err.Error(), "node") {
		t.Errorf("an unknown field was accepted: %v", err)
	}
}

func TestRangesOfALabFile(t *testing.T) {
	for text, says := range map[string]string{
		"serviceCIDR: 172.31.9.0/32": "serviceCIDR 172.31.9.0/32: an IPv4 range of at least a /29",
		"serviceCIDR: fd00::/64":     "serviceCIDR fd00::/64: an IPv4 range",
		"serviceCIDR: 172.31.9.1/24": "172.31.9.0/24 has none",
		"podCIDR: 10.9.0.0/24":       "at least a /16",
		"podCIDR: 10.9.1.0/16":       "10.9.0.0/16 has none",
		"podCIDR: fd00::/8":          "podCIDR fd00::/8: an IPv4 range",
		"nodeCIDR: 172.30.9.0/25":    "at least a /24",
		"nodeCIDR: 172.30.9.7/24":    "172.30.9.0/24 has none",
		"serviceCIDR: 172.31.9.0/29": "",
	} {
		path := filepath.Join(t.TempDir(), "lab.yaml")
		must(t, os.WriteFile(path, []byte("clusters:\n- "+text+"\n"), 0o644))
		s, err := lab.LoadSpec(path)
		must(t, err)
		_, err = s.Complete()
		if (err == nil) != (says == "") || err != nil && (!strings.Contains(err.Error(), says) || strings.Count(err.Error(), "\n") != 1) {
			t.Errorf("%s: %v, want only %q", text, err, says)
		}
	}
	if _, err := lab.NewSpec("x", lab.MaxClusters, lab.MaxNodes).Complete(); err != nil {
		t.Errorf("the largest lab: %v", err)
	}
}
