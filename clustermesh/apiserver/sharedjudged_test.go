// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"sync/atomic"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// slowAt is a store that lists one prefix only when it is let to.
type slowAt struct {
	kvstore.Client
	prefix string
	let    chan struct{}
	lists  atomic.Int32
}

func (s *slowAt) List(ctx context.Context, prefix, after string, limit, rev int64) (kvstore.Page, error) {
	if prefix == s.prefix {
		s.lists.Add(1)
		select {
		case <-s.let:
		case <-ctx.Done():
			return kvstore.Page{}, ctx.Err()
		}
	}
	return s.Client.List(ctx, prefix, after, limit, rev)
}

// The metrics of a shared etcd do not wait until all is read that its other
// clusters publish, and have that read once a minute at the most.
func TestMetricsDoNotJudgeTheNeighbours(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.External)
	other, stopWest := serve(t, on(t, e, "west", 2))
	answers(t, other)
	stopWest()
	s := start(t, on(t, e, "east", 1))
	if err := s.neighbours(t.Context()); err != nil {
		t.Fatal(err)
	}
	slow := &slowAt{Client: s.kv, prefix: kvstore.Prefix(kvstore.State, "west"), let: make(chan struct{})}
	s.kv = slow
	scrape := func() map[string]float64 {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out := map[string]float64{}
		err := s.metricsSource()(ctx, func(name string, v float64, labels ...string) {
			if len(labels) > 0 && labels[0] == "west" {
				out[name] += v
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.keepJudging(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for range 3 { // while it is being read
		if m := scrape(); m["hawser_federation_connected"] != 1 || m["hawser_federation_keys"] != 0 {
			t.Errorf("before anything was judged: %v", m)
		}
	}
	etcdtest.Eventually(t, patience, "what west publishes is read", func() bool { return slow.lists.Load() > 0 })
	close(slow.let)
	etcdtest.Eventually(t, patience, "its keys are counted", func() bool { return scrape()["hawser_federation_keys"] > 0 })
	if n := slow.lists.Load(); n != 1 {
		t.Errorf("it was read %d times for the metrics", n)
	}
	// Who asks for the status is told what is there now.
	r, err := s.MeshStatus(t.Context(), &hawserv1.MeshStatusRequest{})
	if err != nil || r.GetPeers()[0].GetKeys() == 0 || slow.lists.Load() != 2 {
		t.Errorf("status after %d reads: %v, %v", slow.lists.Load(), r, err)
	}
}
