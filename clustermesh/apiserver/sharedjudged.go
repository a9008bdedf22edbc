// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/kvstore"
)

// judgedEvery is how often at most the clusters of a shared etcd are judged for
// the metrics: it reads all that they publish.
const judgedEvery = time.Minute

// judgements are what was last counted of the clusters of a shared etcd.
type judgements struct {
	wanted chan struct{} // capacity 1: somebody read the last ones

	mu   sync.Mutex
	last map[string]*hawserv1.PeerStatus // immutable; by name
}

func (j *judgements) note(p *hawserv1.PeerStatus) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last[p.GetName()] = &hawserv1.PeerStatus{
		Keys: p.GetKeys(), KeysByKind: p.GetKeysByKind(), Refused: p.GetRefused(), LastRefused: p.GetLastRefused(), RefusedNow: p.GetRefusedNow(),
	}
}

// tell fills in what was last counted, and has it counted anew.
func (j *judgements) tell(_ context.Context, peers []*hawserv1.PeerStatus) error {
	select {
	case j.wanted <- struct{}{}:
	default:
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, p := range peers {
		if l := j.last[p.GetName()]; l != nil {
			p.Keys, p.KeysByKind, p.Refused, p.LastRefused, p.RefusedNow = l.GetKeys(), l.GetKeysByKind(), l.GetRefused(), l.GetLastRefused(), l.GetRefusedNow()
		}
	}
	return nil
}

// keepJudging judges the clusters of a shared etcd for the metrics, while these are
// read, until the context ends.
func (s *Server) keepJudging(ctx context.Context) error {
	if !s.cfg.Etcd.Shared {
		return nil
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.judged.wanted:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		peers, err := s.neighbourStatus(ctx)
		if err == nil {
			err = s.judgeNeighbours(ctx, peers)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("judge the clusters of the shared etcd", "error", err)
		}
		pause.Reset(judgedEvery)
	}
}

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
		s.judged.note(p)
	}
	return nil
}
