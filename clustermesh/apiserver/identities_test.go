// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

func web(app string) labels.Set {
	return labels.New(labels.Label{Source: labels.Kubernetes, Key: "app", Value: app},
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"})
}

// listed is how `hawser identity list` shows a number.
func listed(t *testing.T, s *Server, n identity.Number) *hawserv1.IdentityInfo {
	t.Helper()
	r, err := s.ListIdentities(t.Context(), &hawserv1.ListIdentitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range r.GetIdentities() {
		if i.GetNumber() == uint32(n) {
			return i
		}
	}
	return nil
}

// TestIdentityStates follows a number from its use to its return, with the
// leader of a running server doing the work.
func TestIdentityStates(t *testing.T) {
	cfg := testConfig(t)
	cfg.ExpireAfter = time.Second
	s := start(t, cfg)
	first, last, err := s.identityRange()
	if err != nil {
		t.Fatal(err)
	}
	a, err := allocator.New(allocator.Config{Cluster: "east", First: first, Last: last, Node: "n1", Client: s.kv, Cache: allocator.NewIndex("east")})
	if err != nil {
		t.Fatal(err)
	}
	n, err := a.Allocate(t.Context(), web("web"))
	if err != nil {
		t.Fatal(err)
	}
	if i := listed(t, s, n); i.GetState() != identityUsed || len(i.GetNodes()) != 1 {
		t.Errorf("in use: %v", i)
	}
	if i := listed(t, s, identity.Host); i.GetState() != identityReserved {
		t.Errorf("host: %v", i)
	}
	if err := a.Release(t.Context(), web("web")); err != nil {
		t.Fatal(err)
	}
	if i := listed(t, s, n); i.GetState() != identityUnused || len(i.GetLabels()) != 2 {
		t.Errorf("not in use: %v", i)
	}

	// A peer that has not heard of it yet, and a node.
	view := &keyspacev1.PeerView{Peer: "west", Connected: true, Since: 1, Acknowledged: &keyspacev1.Position{Incarnation: s.incarnation, Revision: 1}}
	report := &keyspacev1.NodeStatus{Node: "n1", Incarnation: s.incarnation, Seen: map[string]int64{string(kvstore.KindIdentity): 1}}
	viewKey := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPeerView, "west")
	reportKey := kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, "n1")
	if _, err := s.putIfChanged(t.Context(), viewKey, view); err != nil {
		t.Fatal(err)
	}
	if _, err := s.putIfChanged(t.Context(), reportKey, report); err != nil {
		t.Fatal(err)
	}
	if _, err := s.putIfChanged(t.Context(), kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, "n1"), &keyspacev1.Node{Cluster: "east", Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	// What a node left that is none any more is waited for by nobody.
	left := kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, "gone")
	if _, err := s.putIfChanged(t.Context(), left, &keyspacev1.NodeStatus{Node: "gone", Incarnation: "another"}); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	led := make(chan error, 1)
	go func() { led <- s.lead(ctx) }()
	defer func() {
		cancel()
		if err := <-led; err != nil {
			t.Error(err)
		}
	}()
	etcdtest.Eventually(t, 30*time.Second, "retired, and time over", func() bool {
		i := listed(t, s, n)
		return i.GetState() == identityRetired && i.GetSince() > 0 && i.GetWaitsFor() == "node n1, peer west"
	})
	_, rev, err := s.kv.Get(t.Context(), viewKey.String())
	if err != nil {
		t.Fatal(err)
	}
	view.Acknowledged.Revision = rev
	if _, err := s.putIfChanged(t.Context(), viewKey, view); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, patience, "waits for the node alone", func() bool { return listed(t, s, n).GetWaitsFor() == "node n1" })
	report.Seen[string(kvstore.KindIdentity)] = rev
	if _, err := s.putIfChanged(t.Context(), reportKey, report); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, 30*time.Second, "free", func() bool { return listed(t, s, n) == nil })
}

func TestStatusTellsOfFewIdentities(t *testing.T) {
	s := start(t, testConfig(t))
	problem := func(last identity.Number) string {
		p, _, err := s.identityProblem(t.Context(), 1<<16, last)
		if err != nil {
			t.Fatal(err)
		}
		return p.GetProblem()
	}
	for _, n := range []uint32{65537, 65538, 65539} {
		key := kvstore.NewKey(kvstore.Local, "east", kvstore.KindRetired, kvstore.NumberName(n))
		if _, err := s.putIfChanged(t.Context(), key, &keyspacev1.IdentityRef{Number: n}); err != nil {
			t.Fatal(err)
		}
	}
	for last, want := range map[identity.Number]string{
		1<<16 + 3:   "all 3 numbers are used up",
		1<<16 + 100: "",
	} {
		if got := problem(last); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%d numbers, 3 of them retired: %q, want %q", last-1<<16, got, want)
		}
	}
	if got := problem(1<<16 + 4); got != "" {
		t.Errorf("a quarter is free: %q", got)
	}
}
