// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/kvstore"
)

// leftEvery is how often what peers without a record left is looked for.
const leftEvery = time.Minute

// lead runs the cluster's controllers whenever this API server is the one that
// was elected to, until the context ends.
func (s *Server) lead(ctx context.Context) error {
	return election.Lead(ctx, election.Config{
		Client: s.kv, Cluster: s.cfg.Cluster, Office: []string{"controllers"}, Replica: s.cfg.Replica, Log: s.log,
	}, func(ctx context.Context, t *election.Term) error {
		ids, err := s.newCollector(t.Fence())
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return ids.Run(ctx) })
		look := s.cfg.departedAfter() / looksWithin
		departed := &undertaker{s: s, fence: t.Fence(), now: time.Now, sees: s.watchman.witnesses}
		orphans := &orphanage{s: s, fence: t.Fence(), now: time.Now, sees: s.watchman.witnesses}
		ranges := &registrar{s: s, fence: t.Fence(), decided: newDecisions()}
		g.Go(func() error { return ranges.decided.run(ctx, s) })
		g.Go(func() error { return ranges.run(ctx) })
		g.Go(func() error { return s.keepClusterRecord(ctx, t.Fence()) })
		g.Go(func() error { return s.leadDeclared(ctx, t.Fence()) })
		vips := &vipKeeper{s: s, fence: t.Fence(), now: time.Now}
		g.Go(func() error { return s.repeat(ctx, "compare service addresses", vipsEvery, vips.step) })
		g.Go(func() error { return s.repeat(ctx, "look for departed nodes", min(sweepEvery, look), departed.step) })
		g.Go(func() error { return s.repeat(ctx, "look for orphaned keys", min(orphansEvery, look), orphans.step) })
		if s.watchman.gossip != nil {
			g.Go(func() error { return s.watchman.keepKeys(ctx, t) })
			g.Go(func() error { return s.watchman.keepHealth(ctx, t) })
		}
		if s.cfg.Etcd.Shared {
			g.Go(func() error { return s.keepNeighbours(ctx) })
		} else {
			g.Go(func() error {
				return s.repeat(ctx, "withdraw what is left of peers without a record", leftEvery, s.mesh.WithdrawLeft)
			})
		}
		return g.Wait()
	})
}

// repeat calls step at once and in each interval until the context ends. Its
// errors are logged.
func (s *Server) repeat(ctx context.Context, what string, every time.Duration, step func(context.Context) error) error {
	return s.repeatOr(ctx, what, every, nil, step)
}

// repeatOr is repeat that calls step whenever it is woken, too.
func (s *Server) repeatOr(ctx context.Context, what string, every time.Duration, woken <-chan struct{}, step func(context.Context) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := step(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn(what, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-woken:
		}
	}
}

func (s *Server) newCollector(fence []kvstore.Cmp) (*collector.Collector, error) {
	first, last, err := s.identityRange()
	if err != nil {
		return nil, err
	}
	return collector.New(collector.Config{
		Cluster: s.cfg.Cluster, First: first, Last: last, Client: s.kv, Fence: fence,
		Interval: s.cfg.IdentityGCInterval, Gate: s.retirement, Log: s.log,
	})
}

func (s *Server) identityRange() (first, last identity.Number, err error) {
	space, err := identity.NewSpace(s.cfg.ClusterBits)
	if err != nil {
		return 0, 0, err
	}
	first, last = space.Range(s.cfg.ClusterID)
	return first, last, nil
}

// retirement is what retired numbers wait for at the moment.
func (s *Server) retirement(ctx context.Context) (collector.Gate, error) {
	g := collector.Gate{
		Incarnation: s.incarnation, ExpireAfter: s.cfg.ExpireAfter, AtLeast: s.cfg.IdentityGCInterval, Now: time.Now(),
	}
	views, err := list[*keyspacev1.PeerView](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView)
	if err != nil {
		return g, err
	}
	for _, v := range views {
		// Where this replica holds the stream it knows better.
		if pos, ok := s.mesh.Acknowledged(v.msg.GetPeer()); ok {
			v.msg.Acknowledged = pos
		}
		if s.cfg.Etcd.Shared {
			v.msg.Acknowledged = s.everything()
		}
		g.Peers = append(g.Peers, v.msg)
	}
	g.CutOff = s.cut.note(g.Peers, g.Now)
	g.Nodes, err = s.nodeStatus(ctx)
	return g, err
}

// nodeStatus is what the cluster's nodes have said of themselves. One that is
// cut off, or whose agent is down, counts: it may still send packets by what it
// knew. What a node left behind that is none any more (no record of it below
// nodes/) does not.
func (s *Server) nodeStatus(ctx context.Context) ([]*keyspacev1.NodeStatus, error) {
	reports, err := list[*keyspacev1.NodeStatus](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindStatus)
	if err != nil {
		return nil, err
	}
	nodes, err := list[*keyspacev1.Node](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindNode)
	if err != nil {
		return nil, err
	}
	exists := map[string]bool{}
	for _, n := range nodes {
		exists[n.msg.GetName()] = true
	}
	var out []*keyspacev1.NodeStatus
	for _, r := range reports {
		if exists[r.msg.GetNode()] {
			out = append(out, r.msg)
		}
	}
	return out, nil
}
