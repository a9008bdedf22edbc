// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/kvstore"
)

// judgeNeighbours counts what is believed and what is refused of the clusters of
// a shared etcd. Each agent judges that for itself, by the same grant; this reads
// all that they publish.
func (s *Server) judgeNeighbours(ctx context.Context, peers []*hawserv1.PeerStatus) error {
	for _, p := range peers {
		v, ok, err := get[*keyspacev1.PeerView](ctx, s, kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView, p.GetName()))
		if err != nil {
			return err
		}
		if !ok {
			continue // left meanwhile
		}
		peer, err := s.neighbourPeer(v.msg)
		if err != nil {
			return err
		}
		if err := federation.Judged(ctx, s.kv, peer, p); err != nil {
			return err
		}
	}
	return nil
}
