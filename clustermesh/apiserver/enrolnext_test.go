// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// lossy is a replica that does what it is asked, or not, and answers with code.
type lossy struct {
	hawserv1.UnimplementedEnrolmentServer
	does  hawserv1.EnrolmentServer // nil: nothing
	code  codes.Code
	asked atomic.Int64
}

func (l *lossy) Enrol(ctx context.Context, r *hawserv1.EnrolRequest) (*hawserv1.EnrolResponse, error) {
	l.asked.Add(1)
	if l.does != nil {
		if _, err := l.does.Enrol(ctx, r); err != nil {
			return nil, err
		}
	}
	return nil, status.Error(l.code, "this replica is of no use")
}

func (l *lossy) Renew(ctx context.Context, r *hawserv1.RenewRequest) (*hawserv1.RenewResponse, error) {
	l.asked.Add(1)
	if l.does != nil {
		if _, err := l.does.Renew(ctx, r); err != nil {
			return nil, err
		}
	}
	return nil, status.Error(l.code, "this replica is of no use")
}

// serve has a replica of s listen until the test ends.
func (l *lossy) serve(t *testing.T, s *Server) (endpoint string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(s.creds.apiTLS())))
	hawserv1.RegisterEnrolmentServer(g, l)
	go func() { _ = g.Serve(lis) }()
	t.Cleanup(g.Stop)
	return lis.Addr().String()
}

// inviteBy is a token that names the endpoints.
func inviteBy(t *testing.T, s *Server, node string, endpoints ...string) string {
	t.Helper()
	tok := parseToken(t, inviteNode(t, s, node))
	tok.Endpoints = endpoints
	return tok.String()
}

// knows has a node that is enrolled remember other endpoints.
func knows(t *testing.T, n *enrol.Node, endpoints ...string) {
	t.Helper()
	state, err := enrol.Load(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	state.APIEndpoints = endpoints
	raw, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "enrolment.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A node asks the next API server when one accepts its connection and is of no
// use, even if that one has done what it was asked; it does not when it is refused.
func TestNodeAsksTheNextReplica(t *testing.T) {
	s := startPort(t)
	works := s.cfg.ListenAPI.String()
	for name, l := range map[string]*lossy{
		"unavailable": {code: codes.Unavailable},
		"answer-lost": {code: codes.Unavailable, does: s.enrol},
	} {
		n, broken := newNode(t), l.serve(t, s)
		state, err := n.Join(t.Context(), inviteBy(t, s, name, broken, works))
		if err != nil || state.Node != name || l.asked.Load() != 1 {
			t.Errorf("%s: %v, asked %d times", name, err, l.asked.Load())
			continue
		}
		if err := mayWrite(t, etcdAs(t, s, n), name); err != nil {
			t.Errorf("%s: its certificate is of no use: %v", name, err)
		}
		knows(t, n, broken, works)
		if err := (&enrol.Renewer{Node: *n}).Renew(t.Context()); err != nil || l.asked.Load() != 2 {
			t.Errorf("%s: renew: %v, asked %d times", name, err, l.asked.Load())
		}
	}
	refusing, never := &lossy{code: codes.PermissionDenied}, &lossy{code: codes.Unavailable}
	_, err := newNode(t).Join(t.Context(), inviteBy(t, s, "n3", refusing.serve(t, s), never.serve(t, s)))
	wantRefusal(t, err, "of no use")
	if never.asked.Load() != 0 {
		t.Error("who was refused asked elsewhere")
	}
	_, err = newNode(t).Join(t.Context(), inviteBy(t, s, "n4", never.serve(t, s)))
	if err == nil || strings.Contains(err.Error(), "reachable from this host") || !strings.Contains(err.Error(), "of no use") {
		t.Errorf("of one that answers it says: %v", err)
	}
}

// late lets something happen before a node loses its access.
type late struct {
	enrol.Access
	first func()
}

func (l late) ExpelNode(ctx context.Context, user string) error {
	l.first()
	return l.Access.ExpelNode(ctx, user)
}

// An agent that runs puts its records back while its node is forgotten; none of
// them stays.
func TestForgottenNodeLeavesNothing(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	kv, log := etcdAs(t, s, n), slog.New(slog.DiscardHandler)
	record, ip := s.nodeKey("n1"), kvstore.NewKey(kvstore.State, "east", kvstore.KindIP, "10.1.1.5/32")
	w, err := store.NewWriter(store.WriterConfig{Client: kv, Prefixes: []string{record.String(), ip.String()}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r, err := store.NewReader(store.ReaderConfig{Client: kv, Prefix: kvstore.Prefix(kvstore.State, "east"), Apply: w.Observe, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		w.Set(record, &keyspacev1.Node{Cluster: "east", Name: "n1"}),
		w.Set(ip, &keyspacev1.IPEntry{Prefix: ip.Names[0], Identity: 65537, Node: "n1", TunnelAddress: "192.168.1.5"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- w.Run(ctx) }()
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended; <-ended })
	there := func(k kvstore.Key) bool {
		kv, _, err := s.kv.Get(t.Context(), k.String())
		return err == nil && kv != nil
	}
	both := func() bool { return there(record) && there(ip) }
	etcdtest.Eventually(t, patience, "the agent has published", both)
	if err := r.WaitRevision(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	back := false
	s.enrol.Access = late{s.enrol.Access, func() {
		deadline := time.Now().Add(patience)
		for !both() && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		back = both()
	}}
	if _, err := s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n1", Force: true}); err != nil {
		t.Fatal(err)
	}
	if !back {
		t.Fatal("the agent has not put its records back meanwhile")
	}
	if there(record) || there(ip) {
		t.Errorf("of a forgotten node there is: record %v, address %v", there(record), there(ip))
	}
}
