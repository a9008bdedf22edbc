// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	// markerPatience is how long kinds with many writers wait for nodes that
	// hold a presence lease and have not said that they published everything.
	markerPatience = 60 * time.Second
	markerPoll     = 200 * time.Millisecond
)

// keepMarkers writes this cluster's own markers: which kinds a reader finds
// complete. What the API server writes alone is complete at once; what the
// agents write is complete when every present node has published its status
// under this incarnation, or after a minute.
func (s *Server) keepMarkers(ctx context.Context) error {
	s.markUntilDone(ctx, kvstore.KindCluster, kvstore.KindPolicy, kvstore.KindService, kvstore.KindServiceID)
	deadline := time.Now().Add(markerPatience)
	tick := time.NewTicker(markerPoll)
	defer tick.Stop()
	for {
		waiting, err := s.nodesWithoutStatus(ctx)
		if err == nil && (len(waiting) == 0 || time.Now().After(deadline)) {
			if len(waiting) > 0 {
				s.log.Warn("present nodes have published no status; going on without them", "nodes", waiting)
			}
			break
		}
		if err != nil {
			s.log.Warn("look for the nodes' status", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	s.markUntilDone(ctx, kvstore.KindIdentity, kvstore.KindNode, kvstore.KindIP, kvstore.KindVTEP, kvstore.KindSlice)
	return nil
}

// markUntilDone marks, and tries again while the store fails, until the context
// ends.
func (s *Server) markUntilDone(ctx context.Context, kinds ...kvstore.Kind) {
	for ctx.Err() == nil {
		err := s.mark(ctx, kinds...)
		if err == nil {
			return
		}
		s.log.Warn("write markers, trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(markerPoll):
		}
	}
}

func (s *Server) nodesWithoutStatus(ctx context.Context) ([]string, error) {
	present, err := list[*keyspacev1.Presence](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPresence)
	if err != nil {
		return nil, err
	}
	reports, err := list[*keyspacev1.NodeStatus](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindStatus)
	if err != nil {
		return nil, err
	}
	done := map[string]bool{}
	for _, r := range reports {
		done[r.msg.GetNode()] = r.msg.GetIncarnation() == s.incarnation
	}
	var waiting []string
	for _, p := range present {
		if !done[p.msg.GetNode()] {
			waiting = append(waiting, p.msg.GetNode())
		}
	}
	return waiting, nil
}

// mark declares kinds of this cluster complete. Each marker names the revision
// that readers must have reached to see all of the kind.
func (s *Server) mark(ctx context.Context, kinds ...kvstore.Kind) error {
	_, rev, err := s.kv.Get(ctx, kvstore.NewKey(kvstore.State, s.cfg.Cluster, kvstore.KindCluster).String())
	if err != nil {
		return fmt.Errorf("write markers: %w", err)
	}
	for _, k := range kinds {
		key := kvstore.SyncedKey(s.cfg.Cluster, s.cfg.Cluster, k)
		old, found, err := get[*keyspacev1.Synced](ctx, s, key)
		if err != nil {
			return fmt.Errorf("write marker %s: %w", key, err)
		}
		if found && old.msg.GetIncarnation() == s.incarnation && old.msg.GetState() == keyspacev1.Synced_STATE_COMPLETE {
			continue
		}
		if _, err := s.putIfChanged(ctx, key, &keyspacev1.Synced{
			Incarnation: s.incarnation, Revision: rev, State: keyspacev1.Synced_STATE_COMPLETE,
		}); err != nil {
			return fmt.Errorf("write marker %s: %w", key, err)
		}
	}
	return nil
}
