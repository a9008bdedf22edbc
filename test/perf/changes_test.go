// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/lab"
)

// Changes elsewhere: while paths are timed, addresses that nobody speaks to and the
// policy of a pod that says nothing change as often as the design promises for. In a
// lab they go the whole way: a process writes the cluster's records, as other nodes
// and the API server would, and the agents of both nodes bring them into the kernel.

const (
	churnAddresses = 300 // a second
	churnPolicies  = 100
	// idleApp is the label of the pods whose policy changes.
	idleApp = "idle"
)

// under says in a series' name what changed meanwhile.
func under() string {
	return fmt.Sprintf("under %d ipcache and %d policy changes/s", churnAddresses, churnPolicies)
}

// changes makes them in a lab of two nodes.
type changes struct {
	t     *testing.T
	l     *lab.Lab
	nodes []epochs
	made  int
}

// epochs are a node's counters of changes, in the kernel.
type epochs struct{ ips, rules *ebpf.Map }

// newChanges gives each node a pod whose policy is what changes.
func newChanges(t *testing.T, l *lab.Lab) *changes {
	t.Helper()
	c := &changes{t: t, l: l}
	cluster := l.Clusters()[0]
	for i, n := range cluster.Members {
		addPod(t, l, cluster.Name, lab.PodSpec{Name: fmt.Sprintf("idle%d", i+1), Node: n.Name, Labels: map[string]string{"app": idleApp}})
		c.nodes = append(c.nodes, epochsOf(t, n.PinPath))
	}
	return c
}

func epochsOf(t *testing.T, pins string) epochs {
	t.Helper()
	open := func(name string) *ebpf.Map {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pins, "maps", name), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	return epochs{open("ipcache_epochs"), open("rule_sets")}
}

// pace does f as often as policies change, from 0, until it says no. What is late is
// caught up with: the measured programs come first.
func pace(f func(n int) bool) {
	for n, start := 0, time.Now(); f(n); n++ {
		time.Sleep(time.Until(start.Add(time.Duration(n+1) * time.Second / churnPolicies)))
	}
}

// rate counts from now on. It adds to the report how many changes a second the kernel
// had since; too few fail the test: the numbers would be of a quieter machine.
func (e epochs) rate(t *testing.T) (count func(*report)) {
	t.Helper()
	const enough = 0.8
	start := time.Now()
	ips, rules := e.counted(t)
	return func(r *report) {
		t.Helper()
		took := time.Since(start).Seconds()
		ipsNow, rulesNow := e.counted(t)
		a, p := float64(ipsNow-ips)/took, float64(rulesNow-rules)/took
		if a < enough*churnAddresses || p < enough*churnPolicies {
			t.Errorf("%.0f changes of addresses and %.0f of policies a second reached the kernel: fewer than %d and %d", a, p, churnAddresses, churnPolicies)
		}
		r.append("changes of addresses that reached the kernel", "/s", "", a)
		r.append("changes of policies that reached the kernel", "/s", "", p)
	}
}

// counted is how often an address moved, and the number of the newest rule set.
func (e epochs) counted(t *testing.T) (ips, rules int) {
	t.Helper()
	for _, n := range values[uint32](t, e.ips) {
		ips += int(n)
	}
	for _, word := range values[uint64](t, e.rules) {
		rules = max(rules, int(maps.RulesFrom(word).Epoch))
	}
	return ips, rules
}

// values are those of an array, read at once.
func values[V any](t *testing.T, m *ebpf.Map) []V {
	t.Helper()
	keys, out := make([]uint32, m.MaxEntries()), make([]V, m.MaxEntries())
	n, err := m.BatchLookup(&ebpf.MapBatchCursor{}, keys, out, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return out[:n]
}

// during runs f while things change, and counts what reaches the first node.
func (c *changes) during(r *report, f func()) {
	c.t.Helper()
	cluster := c.l.Clusters()[0]
	cmd := command(c.t, role{Mode: "change", Cluster: &cluster, From: c.made})
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = c.l.Start(cluster.Name+"/ctl", cmd)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	over := false
	stop := func() error {
		over = true
		return cmd.Process.Signal(syscall.SIGTERM)
	}
	defer func() {
		if !over { // f failed
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		c.t.Fatalf("changes: %q, %v", line, err)
	}
	count := c.nodes[0].rate(c.t)
	f()
	count(r)
	if err := stop(); err != nil {
		c.t.Fatal(err)
	}
	c.ended(cmd, lines)
}

// ended waits for the process, and until the nodes have what it wrote.
func (c *changes) ended(cmd *exec.Cmd, lines *bufio.Reader) {
	c.t.Helper()
	rest, err := io.ReadAll(lines)
	if err = errors.Join(err, cmd.Wait()); err != nil {
		c.t.Fatalf("changes: %v: %s", err, rest)
	}
	if _, err := fmt.Sscan(string(rest), &c.made); err != nil {
		c.t.Fatalf("changes: %q: %v", rest, err)
	}
	var last []int
	etcdtest.Eventually(c.t, within, "the nodes have all changes", func() bool {
		var now []int
		for _, n := range c.nodes {
			ips, rules := n.counted(c.t)
			now = append(now, ips, rules)
		}
		same := len(last) > 0
		for i := range last {
			same = same && last[i] == now[i]
		}
		last = now
		if !same {
			time.Sleep(100 * time.Millisecond)
		}
		return same
	})
}

// idlePolicy is the n-th version of the policy of the pods that say nothing.
func idlePolicy(n int) string {
	return fmt.Sprintf(`apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: idle, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: %s}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "%d", protocol: TCP}]}]
`, idleApp, 1000+n%50_000)
}

// changeRecords is the whole of a process in the cluster's control namespace: it writes
// until it is told to end, and then says where it was.
func changeRecords(r role) error {
	c := *r.Cluster
	const name = "tls"
	tls, err := pki.FilesIn(c.AdminTLS, name).ClientTLS(&pki.ID{Cluster: c.Name, Role: pki.RoleAPIServer})
	if err != nil {
		return err
	}
	kv, err := etcd.NewClient(etcd.ClientConfig{Endpoints: []string{c.EtcdEndpoint()}, TLS: tls})
	if err != nil {
		return err
	}
	defer kv.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fail := error(nil)
	next := r.From
	pace(func(n int) bool {
		if ctx.Err() != nil {
			return false
		}
		if fail = writeAll(kv, changedRecords(c, next)); fail != nil {
			return false
		}
		next++
		if n == churnPolicies {
			fmt.Println("ready")
		}
		return true
	})
	fmt.Println(next)
	return fail
}

func writeAll(kv kvstore.Client, records []record) error {
	var ops []kvstore.Op
	for _, rec := range records {
		value, err := kvstore.Encode(rec.key, rec.msg)
		if err != nil {
			return err
		}
		ops = append(ops, kvstore.Put(rec.key.String(), value))
	}
	_, err := kv.Txn(context.Background(), nil, ops, nil)
	return err
}

// changedRecords are what changes together: addresses of one other identity, and
// the policy.
func changedRecords(c lab.Cluster, n int) (out []record) {
	const each = churnAddresses / churnPolicies
	for i := range each {
		at := n*each + i
		k, m := ipRecord(c.Name, c.ID, at%manyIPs, c.Members[1].Address)
		m.Identity = identityNumber(c.ID, (at+at/manyIPs)%manyIdentities)
		out = append(out, record{k, m})
	}
	source := idlePolicy(n)
	return append(out, record{kvstore.NewKey(kvstore.Local, c.Name, kvstore.KindPolicy, "default", "idle"), &keyspacev1.PolicyObject{
		Kind: "CiliumNetworkPolicy", Namespace: "default", Name: "idle", Source: strings.TrimSpace(source),
		Revision: uint64(n + 1), UpdatedAt: time.Now().UnixNano(),
	}})
}
