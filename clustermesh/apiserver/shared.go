// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// sharedPoll is how often the clusters of a shared etcd are looked at.
const sharedPoll = time.Second

// sharedKinds are marked complete for the clusters of a shared etcd.
func sharedKinds() []kvstore.Kind {
	return []kvstore.Kind{
		kvstore.KindCluster, kvstore.KindIdentity, kvstore.KindNode, kvstore.KindIP, kvstore.KindVTEP,
		kvstore.KindServiceID, kvstore.KindService, kvstore.KindSlice,
	}
}

// keepNeighbours tells the own agents of the other clusters in a shared etcd, by
// a PeerView each with what they are granted, and the markers of their kinds,
// until the context ends. There is nothing to copy: agents read the others' keys
// where they are, and judge them by the grant.
func (s *Server) keepNeighbours(ctx context.Context) error {
	t := time.NewTicker(sharedPoll)
	defer t.Stop()
	for {
		if err := s.neighbours(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("look at the clusters of the shared etcd", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (s *Server) neighbours(ctx context.Context) error {
	views, err := list[*keyspacev1.PeerView](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView)
	if err != nil {
		return err
	}
	known := map[string]stored[*keyspacev1.PeerView]{}
	for _, v := range views {
		known[v.msg.GetPeer()] = v
	}
	names, err := s.clusters(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names[1:] { // the first is ours
		errs = append(errs, s.neighbour(ctx, name, known))
	}
	for name, v := range known {
		if !slices.Contains(names, name) {
			errs = append(errs, s.lostNeighbour(ctx, v))
		}
	}
	return errors.Join(errs...)
}

// neighbour admits one cluster, or keeps what it was granted when it was.
func (s *Server) neighbour(ctx context.Context, name string, known map[string]stored[*keyspacev1.PeerView]) error {
	r, ok, err := get[*keyspacev1.Cluster](ctx, s, kvstore.NewKey(kvstore.State, name, kvstore.KindCluster))
	if err != nil || !ok {
		return err // not published yet, or not readable: as long as that is so nothing changes
	}
	old, seen := known[name]
	if seen {
		err = sameNeighbour(r.msg, old.msg)
	} else {
		err = s.admissible(r.msg, known)
	}
	if s.refuse(name, err); err != nil {
		return nil
	}
	if seen && old.msg.GetConnected() {
		return s.markNeighbour(ctx, name, true)
	}
	view := proto.CloneOf(old.msg) // of one that comes back, with what it was granted
	if !seen {
		grant, err := peering.GrantFor(r.msg)
		if err != nil {
			return err // admissible has accepted it
		}
		view = &keyspacev1.PeerView{
			Peer: name, ClusterId: r.msg.GetId(), Data: dataFresh,
			PodCidrs: grant.GetPodCidrs(), NodeCidrs: grant.GetNodeCidrs(), Grant: grant,
		}
	}
	view.Connected, view.Since = true, time.Now().UnixNano()
	ok, err = s.putView(ctx, view, old.kv.ModRevision)
	if err != nil || !ok {
		return err
	}
	known[name] = stored[*keyspacev1.PeerView]{msg: view}
	return s.markNeighbour(ctx, name, false)
}

// putView writes the PeerView of a cluster, and what else there is, unless
// somebody wrote it since it was read at rev (0: it did not exist), such as an
// operator who changed the grant. It reports whether it did.
func (s *Server) putView(ctx context.Context, v *keyspacev1.PeerView, rev int64, also ...kvstore.Op) (bool, error) {
	key := kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView, v.GetPeer())
	op, err := put(key, v)
	if err != nil {
		return false, err
	}
	unchanged := kvstore.Absent(key.String())
	if rev != 0 {
		unchanged = kvstore.AtRevision(key.String(), rev)
	}
	res, err := s.kv.Txn(ctx, []kvstore.Cmp{unchanged}, append(also, op), nil)
	return err == nil && res.Succeeded, err
}

// sameNeighbour says why a cluster is not the one that was admitted by its name.
func sameNeighbour(c *keyspacev1.Cluster, v *keyspacev1.PeerView) error {
	if c.GetId() != v.GetClusterId() {
		return fmt.Errorf("cluster %s of the shared etcd is not the one that was admitted: its id is %d, what is granted is for %d",
			c.GetName(), c.GetId(), v.GetClusterId())
	}
	return nil
}

// refusals are the clusters of a shared etcd that are not believed, and why.
type refusals struct {
	mu  sync.Mutex
	why map[string]string
}

// refuse notes why a cluster is not admitted, and says so once; nil admits it.
func (s *Server) refuse(name string, why error) {
	s.unwanted.mu.Lock()
	defer s.unwanted.mu.Unlock()
	if why == nil {
		delete(s.unwanted.why, name)
		return
	}
	if s.unwanted.why[name] != why.Error() {
		s.log.Error("cluster of the shared etcd is not believed", "peer", name, "error", why)
	}
	if s.unwanted.why == nil {
		s.unwanted.why = map[string]string{}
	}
	s.unwanted.why[name] = why.Error()
}

// refusedProblems are the refusals for status.
func (s *Server) refusedProblems() []*hawserv1.Problem {
	s.unwanted.mu.Lock()
	defer s.unwanted.mu.Unlock()
	var out []*hawserv1.Problem
	for name, why := range s.unwanted.why {
		out = append(out, &hawserv1.Problem{
			Object: "cluster " + name, Problem: why,
			Fix: "nothing of it is used here; give it other ranges or another id and start it with a new name, or move it to an etcd of its own",
		})
	}
	return out
}

// admissible says why a cluster may not be believed beside the others, those
// included that are gone at the moment.
func (s *Server) admissible(c *keyspacev1.Cluster, known map[string]stored[*keyspacev1.PeerView]) error {
	if c.GetMesh().GetClusterBits() != s.cfg.ClusterBits {
		return fmt.Errorf("cluster %s of the shared etcd is not admitted: it has %d cluster bits, this one %d",
			c.GetName(), c.GetMesh().GetClusterBits(), s.cfg.ClusterBits)
	}
	if c.GetId() == s.cfg.ClusterID {
		return fmt.Errorf("cluster %s of the shared etcd is not admitted: its id %d is this cluster's", c.GetName(), c.GetId())
	}
	var others []*keyspacev1.Peer
	for _, v := range known {
		if v.msg.GetClusterId() == c.GetId() {
			return fmt.Errorf("cluster %s of the shared etcd is not admitted: its id %d is that of %s", c.GetName(), c.GetId(), v.msg.GetPeer())
		}
		p, err := s.neighbourPeer(v.msg)
		if err != nil {
			return err
		}
		others = append(others, p)
	}
	if _, err := peering.GrantFor(c); err != nil {
		return err
	}
	if err := peering.CheckRanges(s.cfg.record(), others, c); err != nil {
		return fmt.Errorf("cluster %s of the shared etcd is not admitted: %w", c.GetName(), err)
	}
	return nil
}

// markNeighbour marks the kinds of a cluster. In another history of the store one
// that was known before gets the time in which its nodes publish again: its own
// markers are not ours to read.
func (s *Server) markNeighbour(ctx context.Context, name string, seen bool) error {
	first := kvstore.SyncedKey(s.cfg.Cluster, name, kvstore.KindCluster)
	m, ok, err := get[*keyspacev1.Synced](ctx, s, first)
	if err != nil {
		return err
	}
	current := ok && m.msg.GetIncarnation() == s.incarnation
	if !current && seen && time.Since(s.started) < markerPatience {
		return nil
	}
	_, rev, err := s.kv.Get(ctx, first.String())
	if err != nil {
		return err
	}
	for _, k := range sharedKinds() {
		key := kvstore.SyncedKey(s.cfg.Cluster, name, k)
		old, ok, err := get[*keyspacev1.Synced](ctx, s, key)
		if err != nil {
			return err
		}
		if ok && old.msg.GetIncarnation() == s.incarnation {
			continue
		}
		if _, err := s.putIfChanged(ctx, key, &keyspacev1.Synced{
			Incarnation: s.incarnation, Revision: rev, State: keyspacev1.Synced_STATE_COMPLETE,
		}); err != nil {
			return err
		}
	}
	return nil
}

// neighbourStatus is the status of the clusters of a shared etcd, but for what
// judgeNeighbours fills in.
func (s *Server) neighbourStatus(ctx context.Context) ([]*hawserv1.PeerStatus, error) {
	views, err := list[*keyspacev1.PeerView](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView)
	if err != nil {
		return nil, err
	}
	var out []*hawserv1.PeerStatus
	for _, v := range views {
		p := &hawserv1.PeerStatus{
			Name: v.msg.GetPeer(), ClusterId: v.msg.GetClusterId(), State: peerConnected, Since: v.msg.GetSince(),
			Address: "the same etcd", Data: v.msg.GetData(), LastSync: "shared etcd",
		}
		if !v.msg.GetConnected() {
			p.State, p.LastError = peerGone, "nothing of it is left in the etcd; what it was granted is kept until: hawser mesh leave "+p.GetName()
		}
		markers, err := list[*keyspacev1.Synced](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindSynced)
		if err != nil {
			return nil, err
		}
		for _, m := range markers {
			if m.key.Names[0] == p.GetName() && m.msg.GetIncarnation() == s.incarnation {
				p.SyncedKinds = append(p.SyncedKinds, m.key.Names[1])
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// refuseShared is why what peers have is not for clusters of a shared etcd.
func (s *Server) refuseShared(what string) error {
	if !s.cfg.Etcd.Shared {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition, "%s: cluster %s shares its etcd; the clusters that keep their keys there see each other, "+
		"and none of them may write another's mirror there", what, s.cfg.Cluster)
}

// everything is a position that all who read the same store have reached.
func (s *Server) everything() *keyspacev1.Position {
	return &keyspacev1.Position{Incarnation: s.incarnation, Revision: math.MaxInt64}
}
