// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/kvstore"
)

// balky is etcd's access that fails, and is overtaken, as a test says.
type balky struct {
	enrol.Access

	mu     sync.Mutex
	passes int    // expulsions until the one that fails; below 0 none does
	before func() // called once, before the next admission
}

func (b *balky) failAfter(passes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.passes = passes
}

func (b *balky) beforeAdmission(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = f
}

func (b *balky) ExpelNode(ctx context.Context, user string) error {
	b.mu.Lock()
	b.passes--
	fails := b.passes == -1
	b.mu.Unlock()
	if fails {
		return errors.New("etcd has no leader")
	}
	return b.Access.ExpelNode(ctx, user)
}

func (b *balky) AdmitNode(ctx context.Context, cluster, node, user string) error {
	b.mu.Lock()
	f := b.before
	b.before = nil
	b.mu.Unlock()
	if f != nil {
		f()
	}
	return b.Access.AdmitNode(ctx, cluster, node, user)
}

// balk has a server go through a balky access.
func balk(s *Server) *balky {
	b := &balky{Access: s.enrol.Access, passes: -1}
	s.enrol.Access = b
	return b
}

// joined is a node that has enrolled, and its etcd user.
func joined(t *testing.T, s *Server, name string) (*enrol.Node, string) {
	t.Helper()
	before := usersOf(t, s)
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, name)); err != nil {
		t.Fatal(err)
	}
	for _, u := range usersOf(t, s) {
		if !slices.Contains(before, u) {
			return n, u
		}
	}
	t.Fatalf("node %s has no user", name)
	return nil, ""
}

func usersOf(t *testing.T, s *Server) []string {
	t.Helper()
	users, err := s.etcd.Root().NodeUsers(t.Context(), s.cfg.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	return users
}

func forget(t *testing.T, s *Server, node string) error {
	t.Helper()
	_, err := s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: node, Force: true})
	return err
}

// Forgetting a node is told to have failed when etcd does not take its user away,
// and done again it does.
func TestForgettingIsFinishedByARepetition(t *testing.T) {
	s := startPort(t)
	b := balk(s)
	_, stays := joined(t, s, "n0")
	joined(t, s, "n1")
	b.failAfter(0)
	wantRefusal(t, forget(t, s, "n1"), "etcd has no leader")
	if err := forget(t, s, "n1"); err != nil {
		t.Error(err)
	}
	if got := usersOf(t, s); !slices.Equal(got, []string{stays}) {
		t.Errorf("users %v, want %v", got, stays)
	}

	// Its enrolment is gone, but a renewal that was under way has admitted it again.
	_, user := joined(t, s, "n2")
	b.failAfter(1)
	wantRefusal(t, forget(t, s, "n2"), "etcd has no leader")
	if err := b.AdmitNode(t.Context(), "east", "n2", user); err != nil {
		t.Fatal(err)
	}
	if err := forget(t, s, "n2"); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	if got := usersOf(t, s); !slices.Equal(got, []string{stays}) {
		t.Errorf("users %v, want %v", got, stays)
	}

	// The gossip keys are replaced by the repetition, too.
	joined(t, s, "n3")
	key := kvstore.NewKey(kvstore.Private, "east", kvstore.KindGossipKeys).String()
	store := func(value []byte) {
		t.Helper()
		if _, err := s.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key, value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	store([]byte("damaged"))
	wantRefusal(t, forget(t, s, "n3"), "try again")
	store(nil)
	if err := forget(t, s, "n3"); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	keys := &keyspacev1.GossipKeys{}
	kv, _, err := s.kv.Get(t.Context(), key)
	if err != nil || kv == nil || proto.Unmarshal(kv.Value, keys) != nil || keys.GetReplaceBefore() == 0 {
		t.Errorf("the gossip keys stay: %v, %v", keys, err)
	}
}

// A join that fails as the former key is to lose etcd is repeated with the same
// token, and then that key has lost it.
func TestFormerKeyIsExpelledByARepeatedJoin(t *testing.T) {
	s := startPort(t)
	b := balk(s)
	n, _ := joined(t, s, "n1")
	thief := newNode(t)
	if err := os.CopyFS(thief.Dir, os.DirFS(n.Dir)); err != nil {
		t.Fatal(err)
	}
	stolen := etcdAs(t, s, thief)
	if err := os.RemoveAll(n.Dir); err != nil {
		t.Fatal(err)
	}
	for passes := range 2 { // before the name goes to the new key, and after
		text := inviteNode(t, s, "n1")
		b.failAfter(passes)
		_, err := n.Join(t.Context(), text)
		wantRefusal(t, err, "etcd has no leader")
		if _, err := n.Join(t.Context(), text); err != nil {
			t.Fatal(err)
		}
		if err := mayWrite(t, stolen, "n1"); !errors.Is(err, kvstore.ErrDenied) {
			t.Errorf("the stolen key: %v", err)
		}
		if err := mayWrite(t, etcdAs(t, s, n), "n1"); err != nil {
			t.Errorf("the node with its new key: %v", err)
		}
		if got := usersOf(t, s); len(got) != 1 {
			t.Errorf("users %v, want that of the new key alone", got)
		}
		if err := os.RemoveAll(n.Dir); err != nil {
			t.Fatal(err)
		}
	}
}

// Who admits a node by an enrolment that it read before the node was forgotten,
// or its name given away, takes that back.
func TestLateAdmissionIsTakenBack(t *testing.T) {
	s := startPort(t)
	b := balk(s)
	restart := func(*enrol.Node) error {
		d := s.enrol.Deps
		return enrol.NewService(d).Reconcile(t.Context())
	}
	renew := func(n *enrol.Node) error { return (&enrol.Renewer{Node: *n}).Renew(t.Context()) }
	for what, late := range map[string]func(*enrol.Node) error{"another API server starts": restart, "a renewal": renew} {
		n, _ := joined(t, s, "n1")
		b.beforeAdmission(func() {
			if err := forget(t, s, "n1"); err != nil {
				t.Error(err)
			}
		})
		if err := late(n); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := usersOf(t, s); len(got) != 0 {
			t.Errorf("%s while the node is forgotten: users %v", what, got)
		}
		n, former := joined(t, s, "n2")
		b.beforeAdmission(func() {
			if _, err := newNode(t).Join(t.Context(), inviteNode(t, s, "n2")); err != nil {
				t.Error(err)
			}
		})
		if err := late(n); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := usersOf(t, s); len(got) != 1 || got[0] == former {
			t.Errorf("%s while the name goes to another key: users %v, want another than %s", what, got, former)
		}
		if err := forget(t, s, "n2"); err != nil {
			t.Fatal(err)
		}
	}
}
