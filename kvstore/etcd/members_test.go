// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

func TestMembersSurviveOneOfThem(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.Members)
	api := e.APIServer(t)
	key := kvstore.Prefix(kvstore.State, e.Cluster) + "nodes/n"
	for i := range e.Servers {
		put(t, api, key, fmt.Sprint(i))
		e.Servers[i].Close()
		etcdtest.Eventually(t, 20*time.Second, "the others serve", func() bool {
			_, err := api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, []byte("while down"))}, nil)
			return err == nil
		})
		st, err := e.Servers[(i+1)%3].Stats(t.Context())
		if err != nil || len(st.Problems(true)) != 1 || !strings.Contains(st.Problems(true)[0].Object, e.Configs[i].Listen.String()) {
			t.Errorf("stats with member %d down: %+v, %v", i, st, err)
		}
		if e.Servers[i], err = etcd.Start(t.Context(), e.Configs[i]); err != nil {
			t.Fatalf("restart member %d: %v", i, err)
		}
	}
	if _, err := e.Agent(t, "n1").Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.Private, e.Cluster)+"x", nil)}, nil); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("access control: %v", err)
	}
}

// A member whose data is gone must not begin anew by itself: it is told how to
// join, and does.
func TestReplaceMember(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.Members)
	api := e.APIServer(t)
	key := kvstore.Prefix(kvstore.State, e.Cluster) + "nodes/n"
	put(t, api, key, "x")
	const lost = 1
	cfg := e.Configs[lost]
	if _, err := etcd.ReplaceMember(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("replace of a running member: %v", err)
	}
	e.Servers[lost].Close()
	if err := os.RemoveAll(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "member replace") {
		t.Fatalf("a member without its data started: %v", err)
	}
	if _, err := etcd.ReplaceMember(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	put(t, api, key, "while it is away")
	s, err := etcd.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.Servers[lost] = s
	st, err := s.Stats(t.Context())
	if err != nil || len(st.Members) != 3 || len(st.Problems(true)) != 0 {
		t.Fatalf("after the replacement: %+v, %v", st, err)
	}
	for _, m := range st.Members {
		if m.Learner {
			t.Errorf("%+v has no vote", m)
		}
	}
	// It counts: with another one gone there is still a majority.
	e.Servers[0].Close()
	etcdtest.Eventually(t, 20*time.Second, "a majority with the new member", func() bool {
		kv, _, err := e.ClientAt(t, cfg.Listen.String(), pki.RoleAPIServer, "").Get(t.Context(), key)
		return err == nil && kv != nil && string(kv.Value) == "while it is away"
	})
}

// An agent holds a certificate of the same CA. It must not become a peer.
func TestOnlyMembersArePeers(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.Members)
	addr := e.Configs[0].Members[0].Peer.String()
	try := func(files pki.Files) error {
		cfg, err := files.ClientTLS(nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, cfg)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprintf(c, "GET /members HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1)) // TLS 1.3 refuses with the first read
		return err
	}
	for _, r := range []pki.Request{{Role: pki.RoleAgent, Name: "n1"}, {Role: pki.RoleAPIServer}} {
		files, err := e.Files(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := try(files); err == nil {
			t.Errorf("role %s is accepted as a peer", r.Role)
		}
	}
	if err := try(e.Configs[1].Peer); err != nil {
		t.Errorf("a member is refused: %v", err)
	}
	// Nor is a peer's certificate a user of etcd.
	if _, _, err := e.Client(t, pki.RoleEtcdPeer, "").Get(t.Context(), kvstore.Root); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("a peer's certificate reads keys: %v", err)
	}
}

func TestMembersConfigNamesProblems(t *testing.T) {
	m, err := etcd.ParseMember("r0=10.0.0.1:2379/10.0.0.1:2380")
	if err != nil || m.String() != "r0=10.0.0.1:2379/10.0.0.1:2380" {
		t.Fatalf("%v, %v", m, err)
	}
	for _, bad := range []string{"", "r0", "r0=10.0.0.1:2379", "=10.0.0.1:2379/10.0.0.1:2380", "r0=a/b"} {
		if _, err := etcd.ParseMember(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	cfg := etcd.ServerConfig{Cluster: "east", Name: "r9", DataDir: "x", Members: []etcd.Member{m, m}, QuotaBytes: -1}
	_, err = etcd.Start(t.Context(), cfg)
	for _, want := range []string{"2 members", "taken by another", `named "r9"`, "peer certificate", "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}

func TestGrantsInASharedEtcd(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.External)
	for _, c := range []string{e.Cluster, "other"} {
		if err := etcd.SetupAccess(t.Context(), e.Root(t), c, true); err != nil {
			t.Fatal(err)
		}
	}
	api, agent := e.APIServer(t), e.Agent(t, "n1")
	own, other := e.Cluster, "other"
	for what, c := range map[string]struct {
		client *etcd.Client
		key    string
		write  bool
		ok     bool
	}{
		"own state":                  {api, kvstore.Prefix(kvstore.State, own) + "cluster", true, true},
		"another's state":            {api, kvstore.Prefix(kvstore.State, other) + "cluster", true, false},
		"reading another's state":    {api, kvstore.Prefix(kvstore.State, other) + "cluster", false, true},
		"another's local":            {api, kvstore.Prefix(kvstore.Local, other) + "x", false, false},
		"another's private":          {api, kvstore.Prefix(kvstore.Private, other) + "x", false, false},
		"agent: own nodes":           {agent, kvstore.Prefix(kvstore.State, own) + "nodes/n1", true, true},
		"agent: another's nodes":     {agent, kvstore.Prefix(kvstore.State, other) + "nodes/n1", true, false},
		"agent: reading another's":   {agent, kvstore.Prefix(kvstore.State, other) + "nodes/n1", false, true},
		"agent: another's local":     {agent, kvstore.Prefix(kvstore.Local, other) + "x", false, false},
		"agent: own cluster record":  {agent, kvstore.Prefix(kvstore.State, own) + "cluster", true, false},
		"agent: own services record": {agent, kvstore.Prefix(kvstore.State, own) + "services/a/b", true, false},
	} {
		op := kvstore.Read(c.key)
		if c.write {
			op = kvstore.Put(c.key, nil)
		}
		_, err := c.client.Txn(t.Context(), nil, []kvstore.Op{op}, nil)
		if c.ok && err != nil || !c.ok && !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("%s (write %v): %v, want allowed %v", what, c.write, err, c.ok)
		}
	}
	if g := etcd.Grants("east", true); len(g) == 0 || g[0].User != "east-admin" {
		t.Errorf("grants %v", g)
	}
}
