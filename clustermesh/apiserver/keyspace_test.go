// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/internal/testutil/ports"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const patience = time.Minute

func port(t *testing.T) netip.AddrPort {
	t.Helper()
	return ports.Free(t)
}

// serve runs an API server until the test ends or it is stopped.
func serve(t *testing.T, cfg Config) (api hawserv1.MeshClient, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("API server ended with %v", err)
		}
	})
	t.Cleanup(stop)
	conn, err := grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	api = hawserv1.NewMeshClient(conn)
	return api, stop
}

func answers(t *testing.T, api hawserv1.MeshClient) *hawserv1.ClusterStatusReport {
	t.Helper()
	var r *hawserv1.ClusterStatusReport
	etcdtest.Eventually(t, patience, "API server answers", func() (ok bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var err error
		r, err = api.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
		return err == nil
	})
	return r
}

// agentOf connects to the etcd of an API server as a node's agent.
func agentOf(t *testing.T, cfg Config, node string, endpoints ...string) *etcd.Client {
	t.Helper()
	dir := t.TempDir()
	if err := Issue(cfg.DataDir, pki.RoleAgent, node, dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	tls, err := pki.FilesIn(dir, "tls").ClientTLS(&pki.ID{Cluster: cfg.Cluster, Role: pki.RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	c, err := etcd.NewClient(etcd.ClientConfig{Endpoints: endpoints, TLS: tls})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func policies(t *testing.T, api hawserv1.MeshClient) string {
	t.Helper()
	r, err := api.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range r.GetPolicies() {
		names = append(names, p.GetName())
	}
	return strings.Join(names, " ")
}

func backup(t *testing.T, api hawserv1.MeshClient) []byte {
	t.Helper()
	stream, err := api.Backup(t.Context(), &hawserv1.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for {
		c, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c.GetData()...)
	}
}

func restore(t *testing.T, api hawserv1.MeshClient, data []byte) (*hawserv1.RestoreResponse, error) {
	t.Helper()
	stream, err := api.Restore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := min(len(data), chunkBytes)
		if err := stream.Send(&hawserv1.RestoreChunk{Data: data[:n]}); err != nil {
			break
		}
		data = data[n:]
	}
	return stream.CloseAndRecv()
}

func vtepOf(i int) (kvstore.Key, *keyspacev1.VTEP) {
	p := fmt.Sprintf("10.1.%d.0/24", i)
	return kvstore.NewKey(kvstore.State, "east", kvstore.KindVTEP, p), &keyspacev1.VTEP{Prefix: p, TunnelAddress: "192.168.1.10", Node: "n1"}
}

// node is what of an agent writes and reads keys.
type node struct {
	mu     sync.Mutex
	seen   map[string]bool
	gone   int
	reader *store.Reader
	writer *store.Writer
}

func startNode(t *testing.T, c *etcd.Client) *node {
	t.Helper()
	n := &node{seen: map[string]bool{}}
	var err error
	n.reader, err = store.NewReader(store.ReaderConfig{
		Client: c, Prefix: kvstore.SubtreePrefix(kvstore.State), Markers: store.SyncedMarkers{Client: c, Own: "east"},
		Apply: func(b store.Batch) {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, ch := range b.Changes {
				n.seen[ch.Key.String()] = !ch.Deleted
				if ch.Deleted {
					n.gone++
				}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n.writer, err = store.NewWriter(store.WriterConfig{Client: c, Prefixes: []string{kvstore.KindPrefix(kvstore.State, "east", kvstore.KindVTEP)}}); err != nil {
		t.Fatal(err)
	}
	presence, err := store.NewPresence(store.PresenceConfig{Client: c, Cluster: "east", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []func(context.Context) error{n.reader.Run, n.writer.Run, presence.Run} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { _ = run(ctx); close(done) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	return n
}

func (n *node) has(k kvstore.Key) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[k.String()]
}

func (n *node) deletions() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

// After an older backup is restored an agent believes nothing to be gone before
// every present node has published again, and what nodes publish comes back.
func TestRestoreKeepsAgentsViews(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd, cfg.ListenFederation = port(t), port(t)
	api, _ := serve(t, cfg)
	before := answers(t, api)
	c := agentOf(t, cfg, "n1", cfg.ListenEtcd.String())
	// The backup shall say that all was complete in its time.
	etcdtest.Eventually(t, patience, "markers are written", func() bool {
		_, ok, err := store.SyncedMarkers{Client: c, Own: "east"}.Complete(t.Context(), "east", kvstore.KindVTEP)
		return err == nil && ok
	})
	agent := startNode(t, c)
	old, oldRecord := vtepOf(1)
	if err := agent.writer.Set(old, oldRecord); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: rule}); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, patience, "the first record is read", func() bool { return agent.has(old) })
	data := backup(t, api)

	later, laterRecord := vtepOf(2) // the agent's own
	if err := agent.writer.Set(later, laterRecord); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: strings.Replace(rule, "l3-rule", "later", 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ApplyService(t.Context(), &hawserv1.ApplyServiceRequest{Source: manifest("echo", `hawser.io/global: "true"`)}); err != nil {
		t.Fatal(err)
	}
	// Another node's, which is slow to come back.
	stray, strayRecord := vtepOf(3)
	value, err := kvstore.Encode(stray, strayRecord)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agentOf(t, cfg, "n2", cfg.ListenEtcd.String()).Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(stray.String(), value)}, nil); err != nil {
		t.Fatal(err)
	}
	service := kvstore.NewKey(kvstore.State, "east", kvstore.KindService, "demo", "echo")
	etcdtest.Eventually(t, patience, "the later records are read", func() bool { return agent.has(later) && agent.has(service) && agent.has(stray) })
	gone := agent.deletions()

	r, err := restore(t, api, data)
	if err != nil {
		t.Fatal(err)
	}
	var after *hawserv1.ClusterStatusReport
	etcdtest.Eventually(t, patience, "the API server serves the restored store", func() bool {
		after, err = api.ClusterStatus(t.Context(), &hawserv1.ClusterStatusRequest{})
		return err == nil && after.GetIncarnation() == r.GetIncarnation()
	})
	if r.GetIncarnation() == before.GetIncarnation() {
		t.Error("the incarnation is the former one")
	}
	if got := policies(t, api); got != "l3-rule" {
		t.Errorf("policies after the restore: %q", got)
	}
	// The agent's own record is published again, without its asking.
	etcdtest.Eventually(t, patience, "the agent's record is back in the store", func() bool {
		kv, _, err := c.Get(t.Context(), later.String())
		return err == nil && kv != nil
	})
	etcdtest.Eventually(t, patience, "the agent reads the restored store", func() bool {
		s := agent.reader.Status()
		return s.Connected && s.Lists > 1
	})
	// It says so: freed numbers and the markers of kinds with many writers wait for it.
	etcdtest.Eventually(t, patience, "the agent knows the new incarnation", func() bool {
		return agent.reader.Status().Incarnation == r.GetIncarnation()
	})
	// Its services are the API server's, which has none now and says so at once:
	// that deletion is believed. Nothing else is.
	etcdtest.Eventually(t, patience, "the service is gone", func() bool { return !agent.has(service) })
	const thawed = time.Second // the backup's own markers would have had it deleted by then
	for end := time.Now().Add(thawed); time.Now().Before(end) && agent.has(stray); time.Sleep(thawed / 20) {
	}
	if !agent.has(later) || !agent.has(old) || !agent.has(stray) || agent.deletions() > gone+2 { // the service and its number
		t.Errorf("view: old %v, later %v, %d deletions", agent.has(old), agent.has(later), agent.deletions()-gone)
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.DataDir, "restore-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if kept, _ := filepath.Glob(filepath.Join(cfg.DataDir, "etcd.before-restore-*")); len(kept) != 1 {
		t.Errorf("the former data is not kept: %v", kept)
	}
}

func TestRestoreRefusesBadSnapshots(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd, cfg.ListenFederation = port(t), port(t)
	api, _ := serve(t, cfg)
	before := answers(t, api)
	good := backup(t, api)
	other := testConfig(t)
	other.Cluster = "other"
	other.ListenEtcd, other.ListenFederation = port(t), port(t)
	otherAPI, _ := serve(t, other)
	answers(t, otherAPI)
	for what, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing": {nil, "not a snapshot"}, "cut short": {good[:len(good)/2], "snapshot"},
		"another cluster's": {backup(t, otherAPI), "holds no cluster east"},
	} {
		_, err := restore(t, api, c.data)
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), cfg.DataDir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if now := answers(t, api); now.GetIncarnation() != before.GetIncarnation() || now.GetStartedAt() != before.GetStartedAt() {
		t.Error("a refused restore changed something")
	}
}

// Whoever imports keys names the store anew; the API server notices.
func TestAnotherIncarnationStartsAnew(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd, cfg.ListenFederation = port(t), port(t)
	api, _ := serve(t, cfg)
	before := answers(t, api)
	root, err := pki.FilesIn(PKIDir(cfg.DataDir), "root").ClientTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := etcd.NewClient(etcd.ClientConfig{Endpoints: []string{cfg.ListenEtcd.String()}, TLS: root})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	marked := func(incarnation string) bool {
		m := store.SyncedMarkers{Client: c, Own: "east"}
		at, err := m.Incarnation(t.Context())
		_, ok, cerr := m.Complete(t.Context(), "east", kvstore.KindVTEP)
		return err == nil && cerr == nil && ok && at == incarnation
	}
	etcdtest.Eventually(t, patience, "markers are written", func() bool { return marked(before.GetIncarnation()) })
	// The server may begin anew, with its etcd, before the answer is sent: then
	// only the server knows the new one.
	fresh, unanswered := store.Reincarnate(t.Context(), c, "east")
	etcdtest.Eventually(t, patience, "the API server has the new incarnation", func() bool {
		r, err := api.ClusterStatus(t.Context(), &hawserv1.ClusterStatusRequest{})
		if err == nil && unanswered != nil && r.GetIncarnation() != before.GetIncarnation() {
			fresh = r.GetIncarnation()
		}
		return err == nil && r.GetIncarnation() == fresh
	})
	etcdtest.Eventually(t, patience, "markers are written anew", func() bool { return marked(fresh) })
}

func TestFullEtcdIsToldAndDoesNotStopTheServer(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd, cfg.ListenFederation = port(t), port(t)
	cfg.Etcd.Quota = 16 << 20
	api, stop := serve(t, cfg)
	answers(t, api)
	c := agentOf(t, cfg, "n1", cfg.ListenEtcd.String())
	value := make([]byte, 1<<19)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.State, "east")+fmt.Sprintf("nodes/x%d", i), value)}, nil)
	}
	if !errors.Is(err, kvstore.ErrNoSpace) || !strings.Contains(err.Error(), "hawser status") {
		t.Fatalf("the quota has no effect, or its error no cure: %v", err)
	}
	full := func() bool {
		for _, p := range answers(t, api).GetProblems() {
			if p.GetObject() == "etcd" && strings.Contains(p.GetProblem(), "full") && strings.Contains(p.GetFix(), "--etcd-quota") {
				return true
			}
		}
		return false
	}
	if !full() {
		t.Error("status does not say that etcd is full")
	}
	stop()
	cfg.Socket += "2"
	cfg.Etcd.Quota = 64 << 20 // the cure that the message names
	api, _ = serve(t, cfg)
	if answers(t, api); full() {
		t.Error("a larger quota does not end it")
	}
	if _, err := api.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: rule}); err != nil {
		t.Errorf("after the cure: %v", err)
	}
}

func TestFullEtcdDoesNotKeepTheServerFromStarting(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd, cfg.ListenFederation = port(t), port(t)
	api, stop := serve(t, cfg)
	answers(t, api)
	c := agentOf(t, cfg, "n1", cfg.ListenEtcd.String())
	value := make([]byte, 1<<19)
	for i := range 40 {
		if _, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.State, "east")+fmt.Sprintf("nodes/x%d", i), value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	cfg.Socket, cfg.Etcd.Quota = cfg.Socket+"2", 16<<20
	cfg.AdvertiseFederation = []string{"192.0.2.9:4243"} // so that there is something to write
	api, _ = serve(t, cfg)
	etcdtest.Eventually(t, patience, "it answers and tells", func() bool {
		for _, p := range answers(t, api).GetProblems() {
			if p.GetObject() == "etcd" {
				return true
			}
		}
		_, _ = c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.State, "east")+"nodes/y", nil)}, nil) // raises the alarm
		return false
	})
}
