// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// ListGrants shows what peers may publish here.
func (s *Server) ListGrants(ctx context.Context, _ *hawserv1.ListGrantsRequest) (*hawserv1.ListGrantsResponse, error) {
	out := &hawserv1.ListGrantsResponse{}
	if s.cfg.Etcd.Shared {
		views, err := list[*keyspacev1.PeerView](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView)
		if err != nil {
			return nil, apiError(err)
		}
		for _, v := range views {
			p, err := s.neighbourPeer(v.msg)
			if err != nil {
				return nil, apiError(err)
			}
			out.Grants = append(out.Grants, s.peerGrant(p))
		}
		return out, nil
	}
	peers, bad, err := s.mesh.Peers(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	for _, p := range peers {
		out.Grants = append(out.Grants, s.peerGrant(p))
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		out.Grants = append(out.Grants, &hawserv1.PeerGrant{Peer: name, Problem: bad[name].Error()})
	}
	return out, nil
}

// ChangeGrant widens or narrows what a peer may publish here.
func (s *Server) ChangeGrant(ctx context.Context, r *hawserv1.ChangeGrantRequest) (*hawserv1.ChangeGrantResponse, error) {
	c := peering.GrantChange{
		AddPods: r.GetAddPodCidrs(), RemovePods: r.GetRemovePodCidrs(), AddNodes: r.GetAddNodeCidrs(), RemoveNodes: r.GetRemoveNodeCidrs(),
		AddServices: r.GetAddServiceCidrs(), RemoveServices: r.GetRemoveServiceCidrs(), Explain: r.Explain, Diff: r.Diff,
		MaxNodes: r.MaxNodes, MaxIdentities: r.MaxIdentities, MaxIPs: r.MaxIps, MaxServices: r.MaxServices, MaxBackends: r.MaxBackends,
	}
	switch {
	case r.GetAllNamespaces() && len(r.GetNamespaces()) > 0:
		return nil, status.Error(codes.InvalidArgument, "all namespaces and a list of them exclude each other")
	case r.GetAllNamespaces():
		c.Namespaces = []string{}
	case len(r.GetNamespaces()) > 0:
		c.Namespaces = r.GetNamespaces()
	}
	change := s.mesh.ChangeGrant
	if s.cfg.Etcd.Shared {
		change = s.changeNeighbour
	}
	p, changed, err := change(ctx, r.GetPeer(), c)
	if errors.Is(err, peering.ErrNoPeer) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &hawserv1.ChangeGrantResponse{Grant: s.peerGrant(p), Changed: changed}, nil
}

func (s *Server) peerGrant(p *keyspacev1.Peer) *hawserv1.PeerGrant {
	out := grantOf(p.GetName(), p.GetClusterId(), p.GetGrant())
	if s.cfg.Etcd.Shared {
		return out
	}
	for _, st := range s.mesh.Status() {
		if st.GetName() == p.GetName() {
			out.Refused = st.GetRefused()
		}
	}
	return out
}

// grantOf is a grant of a cluster as the API shows it.
func grantOf(cluster string, id uint32, g *keyspacev1.Grant) *hawserv1.PeerGrant {
	return &hawserv1.PeerGrant{
		Peer: cluster, ClusterId: id, PodCidrs: g.GetPodCidrs(), NodeCidrs: g.GetNodeCidrs(),
		IdentityMin: g.GetIdentityMin(), IdentityMax: g.GetIdentityMax(), MaxNodes: g.GetMaxNodes(), MaxIdentities: g.GetMaxIdentities(),
		MaxIps: g.GetMaxIps(), MaxServices: g.GetMaxServices(), MaxBackends: g.GetMaxBackends(), Namespaces: g.GetNamespaces(),
		ServiceCidrs: g.GetServiceCidrs(), Explain: g.GetExplain(), Diff: peering.MayDiff(g),
	}
}

// neighbourPeer is a cluster of a shared etcd as a peer with its grant.
func (s *Server) neighbourPeer(v *keyspacev1.PeerView) (*keyspacev1.Peer, error) {
	if g := v.GetGrant(); g != nil {
		return &keyspacev1.Peer{Name: v.GetPeer(), ClusterId: v.GetClusterId(), Grant: g}, nil
	}
	g, err := peering.GrantFor(&keyspacev1.Cluster{
		Name: v.GetPeer(), Id: v.GetClusterId(), PodCidrs: v.GetPodCidrs(), NodeCidrs: v.GetNodeCidrs(),
		Mesh: &keyspacev1.MeshParameters{ClusterBits: s.cfg.ClusterBits},
	})
	if g != nil {
		g.ServiceCidrsPinned = false // an earlier version pinned the other ranges only
	}
	return &keyspacev1.Peer{Name: v.GetPeer(), ClusterId: v.GetClusterId(), Grant: g}, err
}

// changeNeighbour is ChangeGrant of a cluster in the shared etcd: its PeerView
// tells the agents, who judge by it. There are no questions between such clusters.
func (s *Server) changeNeighbour(ctx context.Context, name string, c peering.GrantChange) (*keyspacev1.Peer, bool, error) {
	if c.Explain != nil || c.Diff != nil {
		return nil, false, errors.New("clusters of a shared etcd read each other's public records there: what they may ask cannot be changed")
	}
	views, err := list[*keyspacev1.PeerView](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView)
	if err != nil {
		return nil, false, err
	}
	var all []*keyspacev1.Peer
	var view *keyspacev1.PeerView
	var rev int64
	for _, v := range views {
		p, err := s.neighbourPeer(v.msg)
		if err != nil {
			return nil, false, err
		}
		all = append(all, p)
		if v.msg.GetPeer() == name {
			view, rev = proto.CloneOf(v.msg), v.kv.ModRevision
		}
	}
	i := slices.IndexFunc(all, func(p *keyspacev1.Peer) bool { return p.GetName() == name })
	if i < 0 {
		return nil, false, peering.ErrNoPeer
	}
	g, err := c.Apply(name, all[i].GetGrant(), peering.Taken(s.cfg.record(), all, name))
	if err != nil {
		return nil, false, err
	}
	changed := !proto.Equal(g, all[i].GetGrant())
	view.PodCidrs, view.NodeCidrs, view.Grant, all[i].Grant = g.GetPodCidrs(), g.GetNodeCidrs(), g, g
	if changed {
		ok, err := s.putView(ctx, view, rev)
		if err == nil && !ok {
			err = cas.ErrConflict
		}
		if err != nil {
			return nil, false, err
		}
	}
	return all[i], changed, nil
}
