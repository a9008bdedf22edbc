// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/lab"
	"github.com/hawser-mesh/hawser/lab/netns"
)

// What is put into a cluster to see how programs grow.
const (
	manyIdentities = 1000
	manyIPs        = 10000
)

// TestPerfStart measures how long programs take to serve and how much memory
// they keep.
func TestPerfStart(t *testing.T) {
	r := newReport(t, "start", "starting programs, one at a time unless it says lab up; memory is resident size; maps are small, as a lab has them, unless it says full")
	for range min(flags.rounds, 3) {
		t.Run("lab up", func(t *testing.T) { labUp(t, r) })
	}
	loads(t, r)
	for _, with := range []string{"", ", full maps"} {
		spec := lab.NewSpec(labName("s"+strconv.Itoa(len(with))), 1, 2)
		if with != "" {
			spec.Agent = map[string]string{"map-sizes": "default"}
		}
		s, l := hawserShapeOf(t, spec)
		startServer(t, "serve", s.server, 0, netip.AddrPortFrom(s.addr, onePort))
		restarts(t, r, l, s, with)
		memory(t, r, l, with)
	}
	r.finish(t)
}

// labUp times a whole lab and its steps.
func labUp(t *testing.T, r *report) {
	start := time.Now()
	startLab(t, lab.NewSpec(labName("u"), 2, 2), lab.Options{Demo: true, Progress: func(p lab.Progress) {
		if p.Over && !strings.Contains(p.Step, "→") {
			r.append("lab up --demo, step "+p.Step, "s", "", p.Elapsed.Seconds())
		}
	}})
	r.append("lab up --demo, 2 clusters × 2 nodes", "s", "< 20 s", time.Since(start).Seconds())
}

// loads times loading all programs into fresh pins, and adopting them, on a thread
// that others do not disturb.
func loads(t *testing.T, r *report) {
	t.Helper()
	ns := filepath.Join("/run/netns", fmt.Sprintf("hwperf-%d-load", os.Getpid()))
	t.Cleanup(func() { removeNetns(t, ns) })
	if err := netns.Create(ns); err != nil {
		t.Fatal(err)
	}
	fs := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	open := func(pin string, sizes loader.MapSizes) (took, cpu float64) {
		err := nsthread.InNetns(ns, func() error {
			if err := undisturbed(); err != nil {
				return err
			}
			start, before := time.Now(), threadCPU()
			d, err := loader.Open(loader.Config{
				PinPath: filepath.Join(fs, pin), BPFFS: fs, UnderlayDevice: "eth0",
				NodeAddr: netip.MustParseAddr("192.0.2.1"), MapSizes: sizes,
			}, slog.New(slog.NewTextHandler(io.Discard, nil)))
			took, cpu = time.Since(start).Seconds(), threadCPU()-before
			if err != nil {
				return err
			}
			return d.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		return took, cpu
	}
	err := nsthread.InNetns(ns, func() error {
		var errs []error
		for name, peer := range map[string]string{"eth0": "wire", "hawser_host": "hawser_net"} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			errs = append(errs, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range flags.rounds {
		for name, sizes := range map[string]loader.MapSizes{"small maps": loader.SmallMaps(), "full maps": {}} {
			pin := fmt.Sprintf("%d-%d", i, sizes.IPCache)
			took, cpu := open(pin, sizes)
			r.append("load all programs, "+name, "s", "< 1 s", took)
			r.append("load all programs, "+name+", CPU", "s", "", cpu)
			took, _ = open(pin, sizes)
			r.append("adopt all programs, "+name, "s", "", took)
			if err := nsthread.InNetns(ns, func() error { return loader.Cleanup(filepath.Join(fs, pin)) }); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// restarts times the programs of a lab from exec to a good answer; a pod of the
// agent's node asks another node's pod all the while.
func restarts(t *testing.T, r *report, l *lab.Lab, s shape, with string) {
	t.Helper()
	c := l.Clusters()[0]
	node := c.Members[0]
	ctx := t.Context()
	restart := func(kind lab.Program, who, row, what, goal string, before func() error) {
		if err := l.Stop(ctx, kind, who); err != nil {
			t.Fatal(err)
		}
		if before != nil {
			if err := before(); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		first := make(chan time.Duration, 1)
		if before != nil {
			go func() { first <- firstAnswer(t, s, start) }()
		}
		if err := l.Restart(ctx, kind, who); err != nil {
			t.Fatal(err)
		}
		r.append(what+with, "s", goal, time.Since(start).Seconds())
		r.append(what+with+", CPU", "s", "", processCPU(pidOf(t, l, row)))
		if before != nil {
			r.append("agent start to the first connection between pods, cold"+with, "s", "< 1 s", (<-first).Seconds())
		}
	}
	unpin := func() error {
		return nsthread.InNetns(node.Netns, func() error { return loader.Cleanup(node.PinPath) })
	}
	for range flags.rounds {
		restart(lab.AgentProgram, node.Name, node.Name, "agent start to ready, adopting", "< 1 s", nil)
		restart(lab.AgentProgram, node.Name, node.Name, "agent start to ready, cold", "< 1 s", unpin)
		if with == "" {
			restart(lab.APIServerProgram, c.Name, c.Name+"/ctl", "API server start to ready, with its data", "", nil)
		}
	}
}

// firstAnswer is how long after start a pod's connection to another node's pod is
// answered: asked anew so often that TCP's own pause does not count.
func firstAnswer(t *testing.T, s shape, start time.Time) time.Duration {
	d := &net.Dialer{Timeout: 20 * time.Millisecond}
	for end := start.Add(within); time.Now().Before(end); {
		if answered(t.Context(), s.client, netip.AddrPortFrom(s.addr, onePort), d) {
			return time.Since(start)
		}
	}
	t.Errorf("no connection between pods within %s", within)
	return within
}

// pidOf is the process of a row of `hawser lab status`.
func pidOf(t *testing.T, l *lab.Lab, row string) int {
	t.Helper()
	for _, s := range l.Status(t.Context()).Rows {
		if s.Name == row {
			return s.PID
		}
	}
	t.Fatalf("no process of %s", row)
	return 0
}

// inject is the whole of a process in the cluster's control namespace: it writes
// records as another node's agent would, through the admin's credentials.
func inject(r role) error {
	c := *r.Cluster
	const name = "tls"
	tls, err := pki.FilesIn(c.AdminTLS, name).ClientTLS(&pki.ID{Cluster: c.Name, Role: pki.RoleAPIServer})
	if err != nil {
		return err
	}
	return injectAt(context.Background(), recordsOf(r), etcd.ClientConfig{Endpoints: []string{c.EtcdEndpoint()}, TLS: tls})
}

// record is a key of the keyspace and its value.
type record struct {
	key kvstore.Key
	msg proto.Message
}

// recordsOf are what an injecting role writes: services, or identities and
// addresses.
func recordsOf(r role) iter.Seq[record] {
	return func(yield func(record) bool) {
		for n := range r.Count {
			for _, rec := range serviceRecords(*r.Cluster, r.From+n) {
				if !yield(rec) {
					return
				}
			}
		}
		for n := range manyIdentities {
			k, m := identityRecord(r.Cluster.Name, r.Cluster.ID, n)
			if r.Count > 0 || !yield(record{k, m}) {
				return
			}
		}
		for n := range manyIPs {
			k, m := ipRecord(r.Cluster.Name, r.Cluster.ID, n, r.Cluster.Members[1].Address)
			if !yield(record{k, m}) {
				return
			}
		}
	}
}

func injectAt(ctx context.Context, records iter.Seq[record], cfg etcd.ClientConfig) error {
	kv, err := etcd.NewClient(cfg)
	if err != nil {
		return err
	}
	defer kv.Close()
	var ops []kvstore.Op
	put := func(k kvstore.Key, m proto.Message) error {
		value, err := kvstore.Encode(k, m)
		if err != nil {
			return err
		}
		if ops = append(ops, kvstore.Put(k.String(), value)); len(ops) < kvstore.MaxTxnOps {
			return nil
		}
		_, err = kv.Txn(ctx, nil, ops, nil)
		ops = nil
		return err
	}
	for r := range records {
		if err := put(r.key, r.msg); err != nil {
			return err
		}
	}
	_, err = kv.Txn(ctx, nil, ops, nil)
	return err
}

// identityRecord is the n-th made-up identity of a cluster.
func identityRecord(cluster string, id uint32, n int) (kvstore.Key, *keyspacev1.Identity) {
	number := identityNumber(id, n)
	text := []string{
		"k8s:app=app-" + strconv.Itoa(n), "k8s:tier=" + strconv.Itoa(n%3), "k8s:team=" + strconv.Itoa(n%17),
		labels.Mesh + ":" + labels.ClusterKey + "=" + cluster, labels.Mesh + ":" + labels.NamespaceKey + "=ns-" + strconv.Itoa(n%20),
	}
	ls, err := labels.ParseSet(text, labels.CNI)
	if err == nil {
		text = ls.Strings()
	}
	return kvstore.NewKey(kvstore.State, cluster, kvstore.KindIdentity, kvstore.NumberName(number)),
		&keyspacev1.Identity{Number: number, Labels: text}
}

// identityNumber leaves room below for those that were really allocated.
func identityNumber(id uint32, n int) uint32 { return id<<16 + 256 + uint32(n) }

// ipRecord is the n-th made-up address, from 10.<id>.20.0 upward.
func ipRecord(cluster string, id uint32, n int, tunnel netip.Addr) (kvstore.Key, *keyspacev1.IPEntry) {
	const first = 20
	prefix := fmt.Sprintf("10.%d.%d.%d/32", id, first+n/250, n%250+1)
	return kvstore.NewKey(kvstore.State, cluster, kvstore.KindIP, prefix), &keyspacev1.IPEntry{
		Prefix: prefix, Identity: identityNumber(id, n%manyIdentities), Node: "made-up", TunnelAddress: tunnel.String(),
		Namespace: "ns-" + strconv.Itoa(n%20), Workload: "pod-" + strconv.Itoa(n), UpdatedAt: time.Now().UnixNano(),
	}
}
