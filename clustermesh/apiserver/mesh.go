// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/version"
	"github.com/hawser-mesh/hawser/kvstore"
)

// certificateWarning is how long before its end a certificate is a problem.
const certificateWarning = 14 * 24 * time.Hour

// As federation reports on peers.
const (
	peerConnected = "connected"
	dataFresh     = "fresh"
	// peerGone is a cluster of a shared etcd of which nothing is left there.
	peerGone = "gone"
)

// newFederation makes what talks to the peers; it starts nothing.
func (s *Server) newFederation() (*federation.Manager, error) {
	expire := s.cfg.ExpireAfter
	if expire == 0 {
		expire = -1 // never
	}
	return federation.New(federation.Config{
		Cluster:     s.cfg.record(),
		Listen:      s.cfg.ListenFederation.String(),
		Replica:     s.cfg.Replica,
		StaleAfter:  s.cfg.StaleAfter,
		ExpireAfter: expire,
	}, federation.Deps{KV: s.kv, Creds: s.creds, Log: s.log, Explain: s.explainTo, Observe: s.timers.stage,
		PutBack: func(key kvstore.Key, found *kvstore.KV) { s.putBack(key, was(key, found)) }})
}

// Invite makes a token with which one cluster can join, once.
func (s *Server) Invite(ctx context.Context, r *hawserv1.InviteRequest) (*hawserv1.InviteResponse, error) {
	if err := s.refuseShared("invite"); err != nil {
		return nil, err
	}
	if to := r.GetTo(); to != "" {
		if err := kvstore.ValidateClusterName(to); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if to == s.cfg.Cluster {
			return nil, status.Errorf(codes.InvalidArgument, "invite %q: that is this cluster", to)
		}
	}
	token, err := s.mesh.Invite(ctx, r.GetTo(), time.Duration(r.GetTtlSeconds())*time.Second)
	if err != nil {
		return nil, apiError(err)
	}
	return &hawserv1.InviteResponse{Token: token.String(), ExpiresAt: token.Expires.UnixNano()}, nil
}

// Join joins the cluster that made a token.
func (s *Server) Join(ctx context.Context, r *hawserv1.JoinRequest) (*hawserv1.JoinResponse, error) {
	if err := s.refuseShared("join"); err != nil {
		return nil, err
	}
	ages := agesOf(r.StaleAfter, r.ExpireAfter)
	if err := ages.Validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	var res peering.Result
	var err error
	if r.GetPeer() != "" {
		res, err = s.mesh.PreflightPeer(ctx, r.GetPeer())
	} else {
		res, err = s.mesh.JoinAs(ctx, r.GetToken(), peering.How{PreflightOnly: r.GetPreflightOnly(), Confirmed: r.GetConfirmed()})
	}
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if res.Joined && ages != (peering.Ages{}) {
		if err := s.mesh.SetAges(ctx, res.Peer.GetName(), ages); err != nil {
			return nil, fmt.Errorf("joined %s, but its ages are not set: %w; try: hawser mesh set", res.Peer.GetName(), err)
		}
	}
	out := &hawserv1.JoinResponse{Peer: res.Peer.GetName(), PeerId: res.Peer.GetId(), Joined: res.Joined}
	if res.Grant != nil && res.Granted != nil {
		out.Grant, out.Granted = grantOf(res.Peer.GetName(), res.Peer.GetId(), res.Grant), grantOf(s.cfg.Cluster, s.cfg.ClusterID, res.Granted)
		out.GrantsHash = res.GrantsHash()
	}
	for _, f := range res.Findings {
		out.Findings = append(out.Findings, finding(f))
	}
	for _, h := range res.Shakes {
		out.Handshakes = append(out.Handshakes, shake(h))
	}
	if r.GetPeer() != "" {
		out.Findings = append(out.Findings, s.watchman.tunnels(res.Peer)...)
	}
	return out, nil
}

func shake(h peering.Shake) *hawserv1.Handshake {
	out := &hawserv1.Handshake{Endpoint: h.Endpoint, Certificate: h.ID()}
	if h.Leaf != nil {
		out.Issuer, out.ExpiresAt = h.Leaf.Issuer.CommonName, h.Leaf.NotAfter.UnixNano()
	}
	if h.Err != nil {
		out.Problem = h.Err.Error()
	}
	return out
}

func finding(f *federationv1.Finding) *hawserv1.Finding {
	return &hawserv1.Finding{
		Check: f.GetCheck(), Blocking: f.GetBlocking(), Object: f.GetObject(), Problem: f.GetProblem(), Fix: f.GetFix(),
	}
}

// SetPeer changes how long the data of a peer is believed.
func (s *Server) SetPeer(ctx context.Context, r *hawserv1.SetPeerRequest) (*hawserv1.SetPeerResponse, error) {
	if err := s.refuseShared("set"); err != nil {
		return nil, err
	}
	ages := agesOf(r.StaleAfter, r.ExpireAfter)
	if err := ages.Validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	err := s.mesh.SetAges(ctx, r.GetPeer(), ages)
	if errors.Is(err, peering.ErrNoPeer) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &hawserv1.SetPeerResponse{}, apiError(err)
}

func agesOf(stale, expire *int64) peering.Ages {
	return peering.Ages{Stale: (*time.Duration)(stale), Expire: (*time.Duration)(expire)}
}

// Leave ends a peering and removes what the peer published. In a shared etcd it
// releases the grant of a cluster that is gone.
func (s *Server) Leave(ctx context.Context, r *hawserv1.LeaveRequest) (*hawserv1.LeaveResponse, error) {
	if s.cfg.Etcd.Shared {
		if err := s.releaseNeighbour(ctx, r.GetPeer()); err != nil {
			return nil, err
		}
		return &hawserv1.LeaveResponse{}, nil
	}
	if err := s.refuseLeave(ctx, r.GetPeer()); err != nil {
		return nil, err
	}
	n, err := s.mesh.Leave(ctx, r.GetPeer())
	if errors.Is(err, peering.ErrNoPeer) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return nil, apiError(err)
	}
	return &hawserv1.LeaveResponse{KeysRemoved: n}, nil
}

// peers are the clusters that this one federates or shares its etcd with.
func (s *Server) peers(ctx context.Context) ([]*hawserv1.PeerStatus, error) {
	if s.cfg.Etcd.Shared {
		return s.neighbourStatus(ctx)
	}
	return s.mesh.Status(), nil
}

// MeshStatus reports on all peers.
func (s *Server) MeshStatus(ctx context.Context, _ *hawserv1.MeshStatusRequest) (*hawserv1.MeshStatusResponse, error) {
	peers, err := s.peers(ctx)
	switch {
	case err != nil:
	case s.cfg.Etcd.Shared:
		err = s.judgeNeighbours(ctx, peers)
	default:
		err = s.countCopies(ctx, peers)
	}
	if err != nil {
		return nil, apiError(err)
	}
	health, err := s.health(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	reached := s.watchman.reached()
	r := &hawserv1.MeshStatusResponse{Cluster: s.cfg.Cluster, Peers: peers}
	for _, p := range r.GetPeers() {
		nodes, err := list[*keyspacev1.Node](ctx, s, kvstore.State, p.GetName(), kvstore.KindNode)
		if err != nil {
			return nil, apiError(err)
		}
		p.NodesTotal = uint32(len(nodes))
		for _, n := range nodes {
			if up, probed := reached[liveness.NodeID{Cluster: p.GetName(), Node: n.msg.GetName()}]; probed && !up {
				p.NodesUnreachable++
			}
			if h := health[[2]string{p.GetName(), n.msg.GetName()}]; h == nil || h.GetState() == keyspacev1.NodeHealth_STATE_ALIVE {
				p.NodesAlive++
			}
		}
	}
	return r, nil
}

// Diff compares the mirror of a peer with its origin.
func (s *Server) Diff(ctx context.Context, r *hawserv1.MeshDiffRequest) (*hawserv1.MeshDiffResponse, error) {
	if s.cfg.Etcd.Shared {
		return nil, status.Errorf(codes.FailedPrecondition, "diff %[1]s: cluster %[2]s shares its etcd; what is below state/%[1]s/ there is %[1]s's own, not a mirror that could differ. "+
			"See it: hawser kvstore ls state/%[1]s/", r.GetPeer(), s.cfg.Cluster)
	}
	out, err := s.mesh.DiffPeer(ctx, r.GetPeer(), federation.DiffRange{Prefix: r.GetPrefix(), After: r.GetAfter(), Rows: int(r.GetLimit())})
	if errors.Is(err, peering.ErrNoPeer) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return out, apiError(err)
}

// ClusterStatus reports on this cluster.
func (s *Server) ClusterStatus(ctx context.Context, _ *hawserv1.ClusterStatusRequest) (*hawserv1.ClusterStatusReport, error) {
	stats, err := s.stats(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	space, err := identity.NewSpace(s.cfg.ClusterBits)
	if err != nil {
		return nil, apiError(err)
	}
	first, last := space.Range(s.cfg.ClusterID)
	r := &hawserv1.ClusterStatusReport{
		Cluster: s.cfg.Cluster, ClusterId: s.cfg.ClusterID, Version: version.String(), StartedAt: s.started.UnixNano(),
		Incarnation: s.incarnation, Revision: stats.Revision, Keys: uint64(stats.Keys), DatabaseBytes: uint64(stats.DatabaseBytes),
		FederationEndpoints: s.cfg.advertised(),
		CaExpiresAt:         s.creds.authority().Certificate().NotAfter.UnixNano(), PodCidrs: texts(s.cfg.PodCIDRs), ServiceCidrs: texts(s.cfg.ServiceCIDRs), NodeCidrs: texts(s.cfg.NodeCIDRs),
		IdentityMin: uint32(first), IdentityMax: uint32(last), EtcdNoSpace: stats.NoSpace || stats.Disk.Low,
		Now: time.Now().UnixNano(), Certificate: pki.ID{Cluster: s.cfg.Cluster, Role: pki.RoleAPIServer}.String(), CertificateExpiresAt: s.creds.expires().UnixNano(),
	}
	if r.PodRanges, err = s.podRanges(ctx); err != nil {
		return nil, apiError(err)
	}
	s.reportEtcd(r, stats)
	r.Problems = append(append(r.Problems, s.refusedProblems()...), s.declared.problems()...)
	r.Problems = append(r.Problems, append(s.watchman.problems(), s.held.problems(s.cfg.departedAfter())...)...)
	r.Problems = append(r.Problems, s.ranges.problems()...)
	policies, err := s.policyProblems(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	r.Problems = append(r.Problems, policies...)
	nodes, err := list[*keyspacev1.Node](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindNode)
	if err != nil {
		return nil, apiError(err)
	}
	r.Nodes = uint32(len(nodes))
	peers, err := s.peers(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	for _, p := range peers {
		r.Peers++
		if p.GetState() == peerConnected {
			r.PeersConnected++
			continue
		}
		r.Problems = append(r.Problems, &hawserv1.Problem{
			Object: "peer " + p.GetName(), Problem: p.GetState() + since(p), Fix: "hawser mesh status",
		})
	}
	for name, until := range map[string]time.Time{
		"certificate of the API server": s.creds.expires(), "CA": s.creds.authority().Certificate().NotAfter,
	} {
		if left := time.Until(until); left < certificateWarning {
			r.Problems = append(r.Problems, &hawserv1.Problem{
				Object: name, Problem: "expires " + until.Format(time.DateOnly), Fix: "it should have renewed itself: see the API server's log; the CA is renewed by: hawser mesh rotate-ca",
			})
		}
	}
	p, free, err := s.identityProblem(ctx, first, last)
	if err != nil {
		return nil, apiError(err)
	}
	r.IdentitiesFree = uint32(max(0, free))
	if p != nil {
		r.Problems = append(r.Problems, p)
	}
	return r, nil
}

func since(p *hawserv1.PeerStatus) string {
	if p.GetSince() == 0 {
		return ""
	}
	return " for " + time.Since(time.Unix(0, p.GetSince())).Round(time.Second).String()
}
