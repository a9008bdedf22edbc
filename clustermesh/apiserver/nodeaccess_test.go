// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// etcdAs connects to etcd with what a node stored when it enrolled.
func etcdAs(t *testing.T, s *Server, n *enrol.Node) *etcd.Client {
	t.Helper()
	cfg, err := pki.FilesIn(n.Dir, "tls").ClientTLS(&pki.ID{Cluster: s.cfg.Cluster, Role: pki.RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	kv, err := etcd.NewClient(etcd.ClientConfig{Endpoints: s.etcd.Endpoints(), TLS: cfg, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kv.Close() })
	return kv
}

// watching opens a watch and a lease as an agent does, and tells when each ended.
func watching(t *testing.T, kv *etcd.Client) (watch <-chan error, lease <-chan struct{}) {
	t.Helper()
	_, rev, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster).String())
	if err != nil {
		t.Fatal(err)
	}
	ended, begun := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		ended <- kv.Watch(t.Context(), kvstore.SubtreePrefix(kvstore.State), rev, func(kvstore.WatchBatch) error {
			select {
			case begun <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	<-begun // the watch starts at a revision that exists
	_, alive, err := kv.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	return ended, alive
}

func mayWrite(t *testing.T, kv *etcd.Client, node string) error {
	t.Helper()
	_, err := kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, node).String(), nil)}, nil)
	return err
}

// A node that is forgotten is cut off at once: its calls are refused, and its
// open watch ends. Others go on.
func TestForgottenNodeIsCutOff(t *testing.T) {
	s := startPort(t)
	n1, n2 := newNode(t), newNode(t)
	for name, n := range map[string]*enrol.Node{"n1": n1, "n2": n2} {
		if _, err := n.Join(t.Context(), inviteNode(t, s, name)); err != nil {
			t.Fatal(err)
		}
	}
	gone, stays := etcdAs(t, s, n1), etcdAs(t, s, n2)
	ended, _ := watching(t, gone)
	goesOn, _ := watching(t, stays)
	if err := errors.Join(mayWrite(t, gone, "n1"), mayWrite(t, stays, "n2")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n1", Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := mayWrite(t, gone, "n1"); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("a forgotten node writes: %v", err)
	}
	if _, _, err := gone.Get(t.Context(), kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster).String()); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("a forgotten node reads: %v", err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("its watch ended without an error")
		}
	case <-time.After(patience):
		t.Error("its open watch goes on")
	}
	// Its connection is of no use to it, either.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := gone.Watch(ctx, kvstore.SubtreePrefix(kvstore.State), 1, func(kvstore.WatchBatch) error { return nil })
	if !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("it watches again: %v", err)
	}
	select {
	case err := <-goesOn:
		t.Errorf("the other node's watch ended: %v", err)
	default:
	}
	if err := mayWrite(t, stays, "n2"); err != nil {
		t.Errorf("the other node: %v", err)
	}
}

// Inviting a node again takes etcd from the key that had its name: the cure for
// a certificate that is used elsewhere.
func TestNewKeyExpelsTheOldOne(t *testing.T) {
	s := startPort(t)
	first := newNode(t)
	if _, err := first.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	thief := newNode(t)
	if err := os.CopyFS(thief.Dir, os.DirFS(first.Dir)); err != nil {
		t.Fatal(err)
	}
	stolen := etcdAs(t, s, thief)
	if err := mayWrite(t, stolen, "n1"); err != nil {
		t.Fatalf("a copy is as good as the original until then: %v", err)
	}
	ended, _ := watching(t, stolen)
	if err := os.RemoveAll(first.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	if err := mayWrite(t, etcdAs(t, s, first), "n1"); err != nil {
		t.Errorf("the node with its new key: %v", err)
	}
	if err := mayWrite(t, stolen, "n1"); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("the stolen key: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the thief's watch goes on")
	}
	wantRefusal(t, (&enrol.Renewer{Node: *thief}).Renew(t.Context()), "enrolled again with another key")
}

// A node's certificate serves that node: under another node's name its holder
// writes no record, no status and no presence. What nodes share is open to all
// of them (docs/threat-model.md).
func TestNodeWritesUnderItsOwnName(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	kv := etcdAs(t, s, n)
	key := func(sub kvstore.Subtree, kind kvstore.Kind, names ...string) string {
		return kvstore.NewKey(sub, "east", kind, names...).String()
	}
	for k, may := range map[string]bool{
		key(kvstore.State, kvstore.KindNode, "n1"):            true,
		key(kvstore.Local, kvstore.KindPresence, "n1"):        true,
		key(kvstore.Local, kvstore.KindStatus, "n1"):          true,
		key(kvstore.State, kvstore.KindNode, "n2"):            false,
		key(kvstore.State, kvstore.KindNode, "n11"):           false,
		key(kvstore.Local, kvstore.KindPresence, "n2"):        false,
		key(kvstore.Local, kvstore.KindStatus, "n2"):          false,
		key(kvstore.State, kvstore.KindIP, "10.1.1.5/32"):     true,
		key(kvstore.State, kvstore.KindVTEP, "10.1.1.0/24"):   true,
		key(kvstore.State, kvstore.KindIdentity, "65537"):     true,
		key(kvstore.State, kvstore.KindSlice, "d", "s", "n1"): true,
		key(kvstore.Local, kvstore.KindRef, "65537", "n1"):    true,
		key(kvstore.State, kvstore.KindService, "d", "s"):     false,
		key(kvstore.Local, kvstore.KindPolicy, "_", "p"):      false,
		key(kvstore.Private, kvstore.KindEnrolment, "n1"):     false,
		kvstore.Prefix(kvstore.State, "west") + "nodes/n1":    false,
	} {
		_, err := kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k, nil)}, nil)
		if may && err != nil || !may && !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("%s: %v, want allowed %v", k, err, may)
		}
		if !may && err != nil && !strings.Contains(err.Error(), k) {
			t.Errorf("the error does not name the key: %v", err)
		}
	}
	if _, err := kv.List(t.Context(), kvstore.SubtreePrefix(kvstore.State), "", 10, 0); err != nil {
		t.Errorf("list state/: %v", err)
	}
	if _, err := kv.List(t.Context(), kvstore.Prefix(kvstore.Local, "east"), "", 10, 0); err != nil {
		t.Errorf("list local/: %v", err)
	}
}

// etcd's users follow the enrolments when the API server starts: after a restored
// backup, or a crash between the two.
func TestUsersFollowEnrolments(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenAPI = cfg.ListenEtcd
	s := startPort(t, func(c *Config) { *c = cfg })
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	root := s.etcd.Root()
	users, err := root.NodeUsers(t.Context(), "east")
	if err != nil || len(users) != 1 || len(users[0]) > 64 || !strings.HasPrefix(users[0], "east-agent:") {
		t.Fatalf("users %v, %v", users, err)
	}
	// One is missing, one is too many, one is another cluster's.
	ghost, foreign := etcd.NodeUser("east", [32]byte{1}), etcd.NodeUser("east-agent", [32]byte{1})
	for _, err := range []error{
		root.ExpelNode(t.Context(), users[0]), root.AdmitNode(t.Context(), "east", "ghost", ghost), addForeign(t, root, foreign),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	kv := etcdAs(t, s, n)
	if err := mayWrite(t, kv, "n1"); !errors.Is(err, kvstore.ErrDenied) {
		t.Errorf("without its user: %v", err)
	}
	if err := s.enrol.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := root.NodeUsers(t.Context(), "east"); err != nil || len(now) != 1 || now[0] != users[0] {
		t.Errorf("users %v, %v; want %v", now, err, users)
	}
	if now, err := root.NodeUsers(t.Context(), "east-agent"); err != nil || len(now) != 1 {
		t.Errorf("another cluster's users: %v, %v", now, err)
	}
	etcdtest.Eventually(t, patience, "the node writes again", func() bool { return mayWrite(t, kv, "n1") == nil })
	// Its record cannot be read: it may go on all the same.
	key := kvstore.NewKey(kvstore.Private, "east", kvstore.KindEnrolment, "n1").String()
	if _, err := s.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, []byte("damaged"))}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.enrol.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := root.NodeUsers(t.Context(), "east"); err != nil || len(now) != 1 || now[0] != users[0] {
		t.Errorf("with an unreadable enrolment: users %v, %v; want %v", now, err, users)
	}
}

func addForeign(t *testing.T, root *etcd.Client, user string) error {
	t.Helper()
	return root.AdmitNode(t.Context(), "east-agent", "n1", user)
}

// While nodes come and go, the calls of the others are not refused: etcd tells
// them to try again, and the client does.
func TestOthersDoNotNoticeNewNodes(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	kv := etcdAs(t, s, n)
	ctx, stop := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for ctx.Err() == nil {
			if err := mayWrite(t, kv, "n1"); err != nil && ctx.Err() == nil {
				failed <- err
				return
			}
		}
	}()
	root := s.etcd.Root()
	for i := range 300 {
		u := etcd.NodeUser("east", [32]byte{byte(i), byte(i >> 8), 1})
		if err := errors.Join(root.AdmitNode(t.Context(), "east", "other", u), root.ExpelNode(t.Context(), u)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	for err := range failed {
		t.Errorf("a write failed: %v", err)
	}
}

// A host whose clock is an hour off is told so; it stores nothing, and joins with
// the same token once its clock is right.
func TestNodeWithAWrongClock(t *testing.T) {
	s := startPort(t)
	text := inviteNode(t, s, "n1")
	n := newNode(t)
	for off, want := range map[time.Duration]string{time.Hour: "set the clock", -time.Hour: "this host's clock says"} {
		wrong := *n
		wrong.Now = func() time.Time { return time.Now().Add(off) }
		_, err := wrong.Join(t.Context(), text)
		wantRefusal(t, err, want)
		if _, err := os.Stat(filepath.Join(n.Dir, "tls.crt")); !os.IsNotExist(err) {
			t.Errorf("%v off: a certificate was stored: %v", off, err)
		}
	}
	if _, err := n.Join(t.Context(), text); err != nil {
		t.Errorf("with the right clock: %v", err)
	}
}
