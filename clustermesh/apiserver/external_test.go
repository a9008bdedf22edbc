// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// external is a configuration on an etcd of its own process.
func external(t *testing.T, e *etcdtest.Etcd, cluster string) Config {
	t.Helper()
	cfg := testConfig(t)
	cfg.Cluster = cluster
	cfg.ListenFederation = port(t)
	cfg.ListenEtcd = netip.AddrPort{}
	dir := t.TempDir()
	leaf, err := e.CA.Issue(pki.Request{Role: pki.RoleAPIServer, Cluster: cluster}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Save(dir, "tls"); err != nil {
		t.Fatal(err)
	}
	cfg.Etcd.Endpoints, cfg.Etcd.TLSDir = e.Endpoints(), dir
	return cfg
}

func TestExternalEtcd(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.External)
	cfg := external(t, e, "east")
	early := cfg
	early.Socket += "0"
	if err := Run(t.Context(), early); err == nil || !strings.Contains(err.Error(), "etcd-access --cluster east") {
		t.Errorf("without users and roles: %v", err)
	}
	if err := etcd.SetupAccess(t.Context(), e.Root(t), "east", false); err != nil {
		t.Fatal(err)
	}
	api, _ := serve(t, cfg)
	r := answers(t, api)
	if r.GetEtcdMode() != "external" || len(r.GetEtcdMembers()) != 1 || r.GetKeys() == 0 || len(r.GetProblems()) != 0 {
		t.Errorf("status %v", r)
	}
	if _, err := api.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: rule}); err != nil {
		t.Fatal(err)
	}
	stream, err := api.Backup(t.Context(), &hawserv1.BackupRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "etcdctl snapshot save") {
		t.Errorf("backup: %v", err)
	}
	if _, err := restore(t, api, []byte("x")); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--restored") {
		t.Errorf("restore: %v", err)
	}
	// It goes away for a while, and comes back empty.
	e.Stop()
	e.Wipe(t)
	e.Restart(t)
	if err := etcd.SetupAccess(t.Context(), e.Root(t), "east", false); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, patience, "the API server begins anew", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		now, err := api.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
		return err == nil && now.GetIncarnation() != r.GetIncarnation() && now.GetKeys() > 0
	})
}

func TestThreeReplicas(t *testing.T) {
	base := testConfig(t)
	var members []etcd.Member
	for i := range 3 {
		members = append(members, etcd.Member{Name: fmt.Sprintf("r%d", i), Client: port(t), Peer: port(t)})
	}
	var cfgs []Config
	ca := t.TempDir()
	if err := MakeCA(ca, "east", time.Now()); err != nil {
		t.Fatal(err)
	}
	for i, m := range members {
		c := base
		c.Replica, c.ListenEtcd, c.ListenFederation = m.Name, m.Client, port(t)
		c.DataDir, c.Socket = filepath.Join(t.TempDir(), m.Name), fmt.Sprintf("%s%d", base.Socket, i)
		c.Etcd.Members = members
		if i == 0 {
			if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "hawser-apiserver ca") {
				t.Errorf("without the common CA: %v", err)
			}
		}
		if err := os.CopyFS(filepath.Join(c.DataDir, "pki"), os.DirFS(PKIDir(ca))); err != nil {
			t.Fatal(err)
		}
		cfgs = append(cfgs, c)
	}
	apis, stops := make([]hawserv1.MeshClient, 3), make([]func(), 3)
	for i, c := range cfgs {
		apis[i], stops[i] = serve(t, c)
	}
	incarnation := ""
	for _, api := range apis {
		r := answers(t, api)
		if incarnation == "" {
			incarnation = r.GetIncarnation()
		}
		if r.GetIncarnation() != incarnation || len(r.GetEtcdMembers()) != 3 {
			t.Errorf("status %v", r)
		}
	}
	if _, err := restore(t, apis[0], []byte("x")); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "member replace") {
		t.Errorf("restore of three members: %v", err)
	}
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.Client.String())
	}
	agent := startNode(t, agentOf(t, cfgs[0], "n1", endpoints...))
	first, record := vtepOf(1)
	if err := agent.writer.Set(first, record); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, patience, "the agent reads and writes", func() bool { return agent.has(first) })
	// One replica after the other goes away; the agent goes on with the others.
	for i := range 3 {
		stops[i]()
		k, record := vtepOf(10 + i)
		if err := agent.writer.Set(k, record); err != nil {
			t.Fatal(err)
		}
		etcdtest.Eventually(t, patience, fmt.Sprintf("the agent goes on without %s", members[i].Name), func() bool { return agent.has(k) })
		apis[i], stops[i] = serve(t, cfgs[i])
		if r := answers(t, apis[i]); r.GetIncarnation() != incarnation {
			t.Errorf("replica %d came back with another history", i)
		}
	}
	if n := agent.deletions(); n != 0 {
		t.Errorf("the agent was told of %d deletions", n)
	}

	// From a backup: the first alone, then the others join it.
	data := backup(t, apis[0])
	file := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, stop := range stops {
		stop()
	}
	if _, err := RestoreOffline(t.Context(), cfgs[0], file); err != nil {
		t.Fatal(err)
	}
	apis[0], _ = serve(t, cfgs[0])
	if r := answers(t, apis[0]); r.GetIncarnation() == incarnation {
		t.Error("a restore kept the incarnation")
	}
	for i := 1; i < 3; i++ {
		if _, err := ReplaceMember(t.Context(), cfgs[i]); err != nil {
			t.Fatal(err)
		}
		apis[i], _ = serve(t, cfgs[i])
		answers(t, apis[i])
	}
	etcdtest.Eventually(t, patience, "three members and the agent's keys", func() bool {
		r := answers(t, apis[0])
		return len(r.GetEtcdMembers()) == 3 && len(r.GetProblems()) == 0 && agent.reader.Status().Connected
	})
	if !agent.has(first) || agent.deletions() != 0 {
		t.Errorf("the agent lost keys: %d deletions", agent.deletions())
	}
}
