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
	churnRate      = churnAddresses + churnPolicies
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
		c.nodes = append(c.nodes, epochs{pinnedMap(t, n, "ipcache_epochs"), pinnedMap(t, n, "rule_sets")})
	}
	return c
}

func pinnedMap(t *testing.T, n lab.Node, name string) *ebpf.Map {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(n.PinPath, "maps", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// counted is how often an address moved, and the number of the newest rule set.
func (e epochs) counted(t *testing.T) (ips, rules int) {
	t.Helper()
	var key, one uint32
	var word uint64
	all := e.ips.Iterate()
	for all.Next(&key, &one) {
		ips += int(one)
	}
	sets := e.rules.Iterate()
	for sets.Next(&key, &word) {
		rules = max(rules, int(maps.RulesFrom(word).Epoch))
	}
	if err := errors.Join(all.Err(), sets.Err()); err != nil {
		t.Fatal(err)
	}
	return ips, rules
}

// during runs f while things change, and adds to the report how many changes a
// second the kernel of the first node had. Too few fail the test: the numbers would
// be of a quieter machine.
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
	ips, rules := c.nodes[0].counted(c.t)
	start := time.Now()
	f()
	took := time.Since(start).Seconds()
	ipsAfter, rulesAfter := c.nodes[0].counted(c.t)
	if err := stop(); err != nil {
		c.t.Fatal(err)
	}
	c.ended(cmd, lines)
	const enough = 0.9
	a, p := float64(ipsAfter-ips)/took, float64(rulesAfter-rules)/took
	if a < enough*churnAddresses || p < enough*churnPolicies {
		c.t.Errorf("%.0f changes of addresses and %.0f of policies a second reached the kernel: fewer than %d and %d", a, p, churnAddresses, churnPolicies)
	}
	r.append("changes of addresses that reached the kernel", "/s", "", a)
	r.append("changes of policies that reached the kernel", "/s", "", p)
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
	n := r.From
	for start := time.Now(); ctx.Err() == nil; n++ {
		var ops []kvstore.Op
		put := func(rec record) {
			value, verr := kvstore.Encode(rec.key, rec.msg)
			err = errors.Join(err, verr)
			ops = append(ops, kvstore.Put(rec.key.String(), value))
		}
		for _, rec := range changedRecords(c, n) {
			put(rec)
		}
		if err == nil {
			_, err = kv.Txn(context.Background(), nil, ops, nil)
		}
		if err != nil {
			return err
		}
		if n == r.From+churnPolicies {
			fmt.Println("ready")
		}
		// Late ones catch up: the measured programs come first.
		select {
		case <-time.After(time.Until(start.Add(time.Duration(n+1-r.From) * time.Second / churnPolicies))):
		case <-ctx.Done():
		}
	}
	fmt.Println(n)
	return nil
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
