// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// countCopies fills in how many keys there are of the peers of whose streams this
// API server has none: it knows only what it copied itself, and what was copied
// before it started, or by another one, is in use all the same.
func (s *Server) countCopies(ctx context.Context, peers []*hawserv1.PeerStatus) error {
	for _, p := range peers {
		if p.GetState() == peerConnected && p.GetReplica() == s.cfg.Replica {
			continue
		}
		all, err := s.client.Count(ctx, kvstore.Prefix(kvstore.State, p.GetName()))
		if err != nil {
			return err
		}
		p.Keys, p.KeysByKind = uint64(all), map[string]uint64{}
		if all == 0 {
			continue
		}
		for _, k := range kvstore.PublicKinds {
			n, err := s.client.Count(ctx, kvstore.KindPrefix(kvstore.State, p.GetName(), k))
			if err != nil {
				return err
			}
			if n > 0 {
				p.KeysByKind[string(k)] = uint64(n)
			}
		}
	}
	return nil
}
