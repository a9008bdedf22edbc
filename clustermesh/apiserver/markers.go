// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
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
// under this incarnation, or after a minute. Markers that somebody removes or
// changes it puts back, until the context ends.
func (s *Server) keepMarkers(ctx context.Context) error {
	k := &markerKeeper{s: s, changed: make(chan struct{}, 1)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return k.follow(ctx) })
	g.Go(func() error { return s.repeatOr(ctx, "compare markers", ownRecordEvery, k.changed, k.compare) })
	g.Go(func() error {
		k.say(ctx, kvstore.KindCluster, kvstore.KindPolicy, kvstore.KindService, kvstore.KindServiceID)
		if s.awaitStatus(ctx) {
			k.say(ctx, kvstore.KindIdentity, kvstore.KindNode, kvstore.KindIP, kvstore.KindVTEP, kvstore.KindSlice)
		}
		return nil
	})
	return g.Wait()
}

// awaitStatus waits until every present node has published its status, or for a
// minute; it returns false when the context ends.
func (s *Server) awaitStatus(ctx context.Context) bool {
	deadline := time.Now().Add(markerPatience)
	tick := time.NewTicker(markerPoll)
	defer tick.Stop()
	for {
		waiting, err := s.nodesWithoutStatus(ctx)
		if err == nil && (len(waiting) == 0 || time.Now().After(deadline)) {
			if len(waiting) > 0 {
				s.log.Warn("present nodes have published no status; going on without them", "nodes", waiting)
			}
			return true
		}
		if err != nil {
			s.log.Warn("look for the nodes' status", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// markerKeeper watches over the markers that were written.
type markerKeeper struct {
	s       *Server
	changed chan struct{} // capacity 1: somebody wrote a marker

	mu   sync.Mutex
	said []kvstore.Kind
}

// say marks kinds, and keeps their markers from then on.
func (k *markerKeeper) say(ctx context.Context, kinds ...kvstore.Kind) {
	k.s.markUntilDone(ctx, kinds...)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.said = append(k.said, kinds...)
	wake(k.changed) // what was done to them before this counted for nothing
}

// follow wakes compare whenever a marker is written or removed.
func (k *markerKeeper) follow(ctx context.Context) error {
	r, err := store.NewReader(store.ReaderConfig{
		Client: k.s.kv, Prefix: k.s.ownMarkers(), Log: k.s.log,
		Apply: func(b store.Batch) {
			if len(b.Changes)+len(b.Unreadable) > 0 {
				wake(k.changed)
			}
		},
	})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// compare puts back what is not as it was said.
func (k *markerKeeper) compare(ctx context.Context) error {
	k.mu.Lock()
	said := slices.Clone(k.said)
	k.mu.Unlock()
	if len(said) == 0 {
		return nil
	}
	return k.s.mark(ctx, k.s.putBack, said...)
}

func (s *Server) ownMarkers() string {
	return kvstore.KindPrefix(kvstore.Local, s.cfg.Cluster, kvstore.KindSynced) + s.cfg.Cluster + "/"
}

// markUntilDone marks, and tries again while the store fails, until the context
// ends.
func (s *Server) markUntilDone(ctx context.Context, kinds ...kvstore.Kind) {
	for ctx.Err() == nil {
		err := s.mark(ctx, nil, kinds...)
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

// mark declares kinds of this cluster complete, and tells changed, unless it is
// nil, what was not so. Each marker names the revision that readers must have
// reached to see all of the kind. Where the store has been named anew meanwhile
// nothing is written: then the markers are gone for a reason.
func (s *Server) mark(ctx context.Context, changed func(key kvstore.Key, was string), kinds ...kvstore.Kind) error {
	page, err := s.kv.List(ctx, s.ownMarkers(), "", 0, 0)
	if err != nil {
		return fmt.Errorf("write markers: %w", err)
	}
	have := map[string]kvstore.KV{}
	for _, kv := range page.KVs {
		have[kv.Key] = kv
	}
	for _, k := range kinds {
		key := kvstore.SyncedKey(s.cfg.Cluster, s.cfg.Cluster, k)
		old, found := have[key.String()]
		was, cmp := wasMissing, kvstore.Absent(key.String())
		if found {
			was, cmp = wasChanged, kvstore.AtRevision(key.String(), old.ModRevision)
			rec, err := kvstore.Decode(key, old.Value)
			if err != nil {
				was = wasUnreadable
			}
			if m, ok := rec.(*keyspacev1.Synced); ok && m.GetIncarnation() == s.incarnation && m.GetState() == keyspacev1.Synced_STATE_COMPLETE {
				continue
			}
		}
		op, err := put(key, &keyspacev1.Synced{Incarnation: s.incarnation, Revision: page.Revision, State: keyspacev1.Synced_STATE_COMPLETE})
		if err != nil {
			return err
		}
		r, err := s.kv.Txn(ctx, []kvstore.Cmp{cmp, s.sameHistory()}, []kvstore.Op{op}, nil)
		switch {
		case err != nil:
			return fmt.Errorf("write marker %s: %w", key, err)
		case !r.Succeeded:
			return fmt.Errorf("write marker %s: somebody else wrote it, or the store was named anew", key)
		case changed != nil:
			changed(key, was)
		}
	}
	return nil
}

// sameHistory holds while the store has the incarnation that this API server read.
func (s *Server) sameHistory() kvstore.Cmp {
	key := kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindIncarnation)
	return kvstore.Cmp{Key: key.String(), Target: kvstore.CmpValue, Value: []byte(s.incarnation)}
}
