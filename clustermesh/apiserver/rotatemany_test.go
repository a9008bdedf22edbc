// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// threeReplicas runs the API servers of a cluster with three members of etcd,
// each with its copy of the CA.
func threeReplicas(t *testing.T, log slog.Handler) (cfgs []Config, apis []hawserv1.MeshClient, stops []func()) {
	t.Helper()
	var members []etcd.Member
	for i := range 3 {
		members = append(members, etcd.Member{Name: fmt.Sprintf("r%d", i+1), Client: port(t), Peer: port(t)})
	}
	for i, m := range members {
		cfg := testConfig(t)
		cfg.Replica, cfg.Etcd.Members, cfg.ListenEtcd, cfg.Log = m.Name, members, m.Client, slog.New(log)
		cfgs = append(cfgs, cfg)
		if i == 0 {
			if err := MakeCA(cfg.DataDir, cfg.Cluster, time.Now()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.CopyFS(PKIDir(cfg.DataDir), os.DirFS(PKIDir(cfgs[0].DataDir))); err != nil {
			t.Fatal(err)
		}
	}
	for _, cfg := range cfgs {
		api, stop := serve(t, cfg)
		apis, stops = append(apis, api), append(stops, stop)
	}
	for _, api := range apis {
		answers(t, api)
	}
	return cfgs, apis, stops
}

// The CA of a cluster whose API server has three replicas is replaced while its
// etcd goes on: at no moment two of them are away.
func TestCAOfThreeReplicasIsReplaced(t *testing.T) {
	var away restarts
	cfgs, apis, stops := threeReplicas(t, &away)
	old := bundleOf(t, cfgs[0])
	var endpoints []string
	for _, m := range cfgs[0].Etcd.Members {
		endpoints = append(endpoints, m.Client.String())
	}
	kv := agentOf(t, cfgs[0], "n1", endpoints...)
	writes, failed, stop := keepWriting(t, kv)
	steps := []pki.Phase{pki.PhaseAnnounced, pki.PhaseSwitched, pki.PhaseNone}
	for i, to := range steps {
		if i == 0 {
			stops[2]() // nobody is left behind
		}
		ask(t, apis[i], to) // any replica is told
		if i == 0 {
			waitsFor(t, apis[1], "API server r3")
			if _, err := apis[1].RotateCA(t.Context(), &hawserv1.RotateCARequest{To: string(pki.PhaseSwitched), LeaveNodes: []string{"n1"}}); err == nil || !strings.Contains(err.Error(), "not confirmed by API server r3:") {
				t.Fatalf("a replica is left behind: %v", err)
			}
			apis[2], _ = serve(t, cfgs[2])
		}
		etcdtest.Eventually(t, 2*patience, "all confirm "+string(to), func() bool {
			r := statusOf(t, apis[2])
			return r.GetPhase() == string(to) && !slices.ContainsFunc(r.GetWaiting(), func(w string) bool { return strings.HasPrefix(w, "API server") })
		})
		if to == pki.PhaseSwitched { // the agent's certificate is of the CA that goes
			kv = agentOf(t, cfgs[1], "n1", endpoints...)
			stop()
			if n := failed.Load(); n > 0 || writes.Load() == 0 {
				t.Errorf("%d of %d writes failed", n, writes.Load())
			}
			writes, failed, stop = keepWriting(t, kv)
		}
	}
	stop()
	if n := failed.Load(); n > 0 || writes.Load() == 0 {
		t.Errorf("%d of %d writes failed", n, writes.Load())
	}
	if all, most := away.seen(); all != 6 || most != 1 {
		t.Errorf("%d times a replica began anew, up to %d at once; want twice each, one at a time", all, most)
	}
	next := bundleOf(t, cfgs[0])
	if len(next) != 1 || next[0] == old[0] {
		t.Fatal("the CA is the old one")
	}
	for _, cfg := range cfgs {
		if got := bundleOf(t, cfg); !slices.Equal(got, next) {
			t.Errorf("%s believes %d CAs", cfg.Replica, len(got))
		}
		if signer := signerOf(t, cfg.Etcd.Members[0].Client.String(), cfg); signer != next[0] {
			t.Errorf("%s shows a certificate of another CA", cfg.Replica)
		}
	}
	at, _, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.Local, "east", kvstore.KindTrust).String())
	if err != nil || at == nil {
		t.Fatal(at, err)
	}
	told, err := decode[*keyspacev1.TrustBundle](*at)
	if err != nil || len(told.msg.GetCertificates()) != 1 || string(told.msg.GetCertificates()[0]) != next[0] {
		t.Errorf("nodes are told of %d CAs: %v", len(told.msg.GetCertificates()), err)
	}
}

// restarts watches by their logs how many replicas begin anew at once.
type restarts struct {
	mu             sync.Mutex
	all, now, most int
}

func (r *restarts) Enabled(context.Context, slog.Level) bool { return true }
func (r *restarts) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *restarts) WithGroup(string) slog.Handler            { return r }

func (r *restarts) Handle(_ context.Context, line slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch line.Message {
	case "API server starts anew":
		r.all, r.now = r.all+1, r.now+1
		r.most = max(r.most, r.now)
	case "API server is ready":
		r.now = max(0, r.now-1)
	}
	return nil
}

func (r *restarts) seen() (all, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all, r.most
}

func ask(t *testing.T, api hawserv1.MeshClient, to pki.Phase) {
	t.Helper()
	etcdtest.Eventually(t, patience, "step to "+string(to), func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := api.RotateCA(ctx, &hawserv1.RotateCARequest{To: string(to), LeaveNodes: []string{"n1"}}) // which writes, and never confirms
		return err == nil
	})
}

// waitsFor polls until a replica alone has not confirmed.
func waitsFor(t *testing.T, api hawserv1.MeshClient, replica string) {
	t.Helper()
	etcdtest.Eventually(t, patience, "only "+replica+" is waited for", func() bool {
		var waiting []string
		for _, w := range statusOf(t, api).GetWaiting() {
			if strings.HasPrefix(w, "API server") {
				waiting = append(waiting, w)
			}
		}
		return slices.Equal(waiting, []string{replica})
	})
}

func statusOf(t *testing.T, api hawserv1.MeshClient) *hawserv1.CAStatusReport {
	t.Helper()
	var r *hawserv1.CAStatusReport
	etcdtest.Eventually(t, patience, "CA status", func() (ok bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var err error
		r, err = api.CAStatus(ctx, &hawserv1.CAStatusRequest{})
		return err == nil
	})
	return r
}

// keepWriting has an agent write its own record, one write after the other, each
// tried for as long as an agent's writer would keep it.
func keepWriting(t *testing.T, kv *etcd.Client) (writes, failed *atomic.Int64, stop func()) {
	t.Helper()
	writes, failed = &atomic.Int64{}, &atomic.Int64{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var longest time.Duration
	key := kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, "n1")
	go func() {
		defer close(done)
		for n := 0; ctx.Err() == nil; n++ {
			value, err := kvstore.Encode(key, &keyspacev1.Node{Name: "n1", Cluster: "east", Version: fmt.Sprint(n)})
			begun := time.Now()
			for end := begun.Add(patience); err == nil || time.Now().Before(end); {
				if _, err = kv.Txn(ctx, nil, []kvstore.Op{kvstore.Put(key.String(), value)}, nil); err == nil || ctx.Err() != nil {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			if err != nil && ctx.Err() == nil {
				failed.Add(1)
				t.Logf("write %d: %v", n, err)
			}
			writes.Add(1)
			if took := time.Since(begun); took > longest {
				longest = took
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	stop = func() { cancel(); <-done; t.Logf("%d writes, the longest took %s", writes.Load(), longest) }
	t.Cleanup(func() { cancel(); <-done })
	return writes, failed, stop
}

// bundleOf is what a replica believes on its disk, the signing CA first.
func bundleOf(t *testing.T, cfg Config) []string {
	t.Helper()
	ca, err := pki.LoadCA(PKIDir(cfg.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range ca.Bundle() {
		out = append(out, string(c.Raw))
	}
	return out
}

// signerOf is the CA of what a member of etcd shows now, among those that a
// replica believes.
func signerOf(t *testing.T, endpoint string, cfg Config) string {
	t.Helper()
	cert, err := pki.FilesIn(PKIDir(cfg.DataDir), "apiserver").Certificate()
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}}).DialContext(t.Context(), "tcp", endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	leaf := c.(*tls.Conn).ConnectionState().PeerCertificates[0]
	bundle, err := pki.ReadBundle(filepath.Join(PKIDir(cfg.DataDir), pki.CACertFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, ca := range bundle {
		if pki.SignedBy(leaf, ca) {
			return string(ca.Raw)
		}
	}
	return ""
}
