// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// lostNeighbour notes that nothing is left of a cluster. What it was granted
// stays: whoever publishes by its name again is judged by that, and its ranges
// and its id are nobody else's, until an operator releases them.
func (s *Server) lostNeighbour(ctx context.Context, v stored[*keyspacev1.PeerView]) error {
	if !v.msg.GetConnected() {
		return nil
	}
	view := proto.CloneOf(v.msg)
	view.Connected, view.Since = false, time.Now().UnixNano()
	ok, err := s.putView(ctx, view, v.kv.ModRevision, s.unmark(view.GetPeer()))
	if ok {
		s.log.Info("cluster left the shared etcd; its grant is kept", "peer", view.GetPeer(), "release", "hawser mesh leave "+view.GetPeer())
	}
	return err
}

// unmark removes the markers of a cluster.
func (s *Server) unmark(name string) kvstore.Op {
	op := kvstore.Delete(kvstore.KindPrefix(kvstore.Local, s.cfg.Cluster, kvstore.KindSynced) + name + "/")
	op.Prefix = true
	return op
}

// releaseNeighbour ends what a cluster of the shared etcd was granted, when
// nothing of it is left there.
func (s *Server) releaseNeighbour(ctx context.Context, name string) error {
	key := kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView, name)
	_, ok, err := get[*keyspacev1.PeerView](ctx, s, key)
	if err != nil {
		return apiError(err)
	}
	if !ok {
		return status.Errorf(codes.NotFound, "leave %s: %v", name, peering.ErrNoPeer)
	}
	left, err := s.client.Count(ctx, kvstore.Prefix(kvstore.State, name))
	if err != nil {
		return apiError(err)
	}
	if left > 0 {
		return status.Errorf(codes.FailedPrecondition, "leave %[1]s: cluster %[2]s shares its etcd; the clusters that keep their keys there have no peering to end. "+
			"%[1]s goes when its API servers and agents are stopped and its keys removed: hawser kvstore del state/%[1]s/ --prefix --write --cluster %[1]s; "+
			"what it was granted is kept until then, and ends by: hawser mesh leave %[1]s", name, s.cfg.Cluster)
	}
	_, err = s.kv.Txn(ctx, nil, []kvstore.Op{kvstore.Delete(key.String()), s.unmark(name)}, nil)
	return apiError(err)
}
