// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/session"
)

// collect asks all programs of the context, or of --cluster, at once. Who does
// not answer is in the snapshot, too.
func collect(ctx context.Context, s *session.Session) ([]Snapshot, error) {
	c, err := clicontext.Load(s.Context)
	if err != nil {
		return nil, &session.Error{Code: session.CouldNotAsk, Err: err}
	}
	if s.Cluster != "" {
		if _, err := c.Cluster(s.Cluster); err != nil {
			return nil, &session.Error{Code: session.WrongUse, Err: err}
		}
	}
	var out []*Snapshot
	var wg sync.WaitGroup
	for _, cl := range c.Clusters {
		if s.Cluster != "" && cl.Name != s.Cluster {
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
		if snap.Cluster == "" { // this host's context does not know it
			snap.Cluster = snap.Status.GetCluster()
		}
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
	if snap.Status, snap.Err = client.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{}); snap.Err != nil {
		snap.Err = errors.New(session.Message(snap.Err))
		return
	}
	if r, err := client.MeshStatus(ctx, &hawserv1.MeshStatusRequest{}); err == nil {
		snap.Peers = r.GetPeers()
	}
	if r, err := client.ListNodes(ctx, &hawserv1.ListNodesRequest{}); err == nil {
		snap.Members = r.GetNodes()
	}
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
	if n.Status, n.Err = conns[0].Status(ctx, &hawserv1.StatusRequest{}); n.Err != nil {
		n.Err = errors.New(session.Message(n.Err))
		return n
	}
	if n.Name == "" {
		n.Name = n.Status.GetNode()
	}
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
