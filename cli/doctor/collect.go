// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
)

// collect asks all programs of the context, or of --cluster, at once. Who does
// not answer is in the snapshot, too.
func collect(ctx context.Context, s *session.Session) ([]Snapshot, error) {
	c, err := s.Load()
	if err != nil {
		return nil, err
	}
	if s.Cluster != "" {
		if _, err := c.Cluster(s.Cluster); err != nil {
			return nil, &session.Error{Code: session.WrongUse, Err: err}
		}
	}
	var out []*Snapshot
	var wg sync.WaitGroup
	for _, cl := range c.Clusters {
		if !cl.Is(s.Cluster) {
			continue
		}
		snap := &Snapshot{Cluster: cl.Name, Now: time.Now(), Nodes: make([]Node, len(cl.Nodes))}
		out = append(out, snap)
		one := *s
		one.Cluster = cl.Name
		wg.Go(func() { askAPIServer(ctx, &one, snap) })
		for i, n := range cl.Nodes {
			each := one
			each.Node = n.Name
			wg.Go(func() { snap.Nodes[i] = askNode(ctx, &each, n.Name) })
		}
	}
	wg.Wait()
	result := make([]Snapshot, len(out))
	for i, snap := range out {
		result[i] = *snap
	}
	return result, nil
}

func askAPIServer(ctx context.Context, s *session.Session, snap *Snapshot) {
	client, conn, err := s.Mesh()
	if err != nil {
		snap.Err = err
		return
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	asked := time.Now()
	if snap.Status, snap.Err = client.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{}); snap.Err != nil {
		snap.Err = errors.New(session.Message(snap.Err))
		return
	}
	snap.Clock = clockOf(snap.Status.GetNow(), asked, time.Now())
	if r, err := client.MeshStatus(ctx, &hawserv1.MeshStatusRequest{}); err == nil {
		snap.Peers = r.GetPeers()
	}
	if r, err := client.ListGrants(ctx, &hawserv1.ListGrantsRequest{}); err == nil {
		snap.Grants = r.GetGrants()
	}
	snap.Preflights = askPreflights(ctx, client, snap.Peers)
	if r, err := client.ListNodes(ctx, &hawserv1.ListNodesRequest{}); err == nil {
		snap.Members = r.GetNodes()
	}
}

// askPreflights has the API server look at each of its peers again, all at once.
func askPreflights(ctx context.Context, client hawserv1.MeshClient, peers []*hawserv1.PeerStatus) map[string]*hawserv1.JoinResponse {
	var mu sync.Mutex
	out := map[string]*hawserv1.JoinResponse{}
	var wg sync.WaitGroup
	for _, p := range peers {
		wg.Go(func() {
			r, err := client.Join(ctx, &hawserv1.JoinRequest{Peer: p.GetName(), PreflightOnly: true})
			if err != nil { // as on a shared etcd, where there is no handshake
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[p.GetName()] = r
		})
	}
	wg.Wait()
	return out
}

// clockOf compares a program's clock with ours: it was read at some time between
// asking and the answer.
func clockOf(now int64, asked, answered time.Time) *Clock {
	if now == 0 {
		return nil
	}
	half := answered.Sub(asked) / 2
	return &Clock{Offset: time.Unix(0, now).Sub(asked.Add(half).Round(0)), Unsure: half}
}

func askNode(ctx context.Context, s *session.Session, name string) Node {
	n := Node{Name: name}
	conns, err := s.Nodes()
	if err != nil {
		n.Err = err
		return n
	}
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	asked := time.Now()
	if n.Status, n.Err = conns[0].Status(ctx, &hawserv1.StatusRequest{}); n.Err != nil {
		n.Err = errors.New(session.Message(n.Err))
		return n
	}
	n.Clock = clockOf(n.Status.GetNow(), asked, time.Now())
	if r, err := conns[0].ListMaps(ctx, &hawserv1.ListMapsRequest{}); err == nil {
		n.Maps = r.GetMaps()
	}
	if r, err := conns[0].ListPaths(ctx, &hawserv1.ListPathsRequest{}); err == nil {
		n.Paths = r.GetPaths()
	}
	if r, err := conns[0].ListDrops(ctx, &hawserv1.ListDropsRequest{}); err == nil {
		n.Drops = r.GetDrops()
	}
	return n
}
