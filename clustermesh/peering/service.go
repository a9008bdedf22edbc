// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// cure is what makes another token.
const cure = "hawser mesh invite"

// Deps are what both sides of a join work with.
type Deps struct {
	// Own describes this cluster; its Endpoints are what tokens advertise.
	// It is called anew for each use.
	Own   func() *keyspacev1.Cluster
	Store *Store
	Trust *Trust
	Creds Credentials
	Now   func() time.Time
	Log   *slog.Logger
}

// Service invites, and serves the inviting half of a join to callers whose CA
// nobody knows yet. Register it only where nothing else is served.
type Service struct {
	federationv1.UnimplementedJoinServer
	Deps
	strangers *strangers
}

// NewService makes a Service; it starts nothing.
func NewService(d Deps) *Service {
	return &Service{Deps: d, strangers: &strangers{trust: d.Trust, now: d.Now}}
}

// Invite stores and returns a single-use token. to limits it to the cluster of
// that name; a ttl of 0 means DefaultTTL.
func (s *Service) Invite(ctx context.Context, to string, ttl time.Duration) (invitation.Token, error) {
	ttl, err := invitation.CheckTTL(ttl)
	if err != nil {
		return invitation.Token{}, fmt.Errorf("invite %s: %w", to, err)
	}
	own := s.Own()
	if to != "" {
		if err := kvstore.ValidateClusterName(to); err != nil {
			return invitation.Token{}, fmt.Errorf("invite: %w", err)
		}
		if to == own.GetName() {
			return invitation.Token{}, fmt.Errorf("invite %s: that is this cluster itself", to)
		}
		if p, err := s.Store.peer(ctx, to); err != nil {
			return invitation.Token{}, err
		} else if p.Rev != 0 && p.Msg.GetState() != keyspacev1.Peer_STATE_PENDING {
			return invitation.Token{}, fmt.Errorf("invite %s: it is a peer already; leave it first: hawser mesh leave %s", to, to)
		}
	}
	if len(own.GetEndpoints()) == 0 {
		return invitation.Token{}, errors.New("invite: this cluster advertises no federation endpoint; invite from the other side, or set one")
	}
	ca := s.Creds.CA()
	if len(ca) == 0 {
		return invitation.Token{}, errors.New("invite: own trust bundle is empty")
	}
	t, err := invitation.New(own.GetName(), "", own.GetEndpoints(), BundleHash([][]byte{ca[0].Raw}), s.Now().Add(ttl))
	if err != nil {
		return invitation.Token{}, fmt.Errorf("invite: %w", err)
	}
	if err := s.Store.tokens.Add(ctx, t, to); err != nil {
		return invitation.Token{}, fmt.Errorf("invite: %w", err)
	}
	return t, nil
}

// Prepare implements federationv1.JoinServer.
func (s *Service) Prepare(ctx context.Context, r *federationv1.PrepareRequest) (*federationv1.PrepareResponse, error) {
	conn, err := connInfo(ctx)
	if err != nil {
		return nil, err
	}
	joinerCA := BundleHash(r.GetTrustBundle())
	var resp *federationv1.PrepareResponse
	err = retry(ctx, func() error {
		tok, err := s.authenticate(ctx, conn.State, r.GetTokenId(), stepPrepare, r.GetProof(), joinerCA)
		if err != nil {
			return err
		}
		resp, err = s.prepare(ctx, conn, tok, r, joinerCA)
		return err
	})
	return resp, err
}

func (s *Service) prepare(ctx context.Context, conn tlsgrpc.ConnInfo, tok cas.Record[*keyspacev1.Token], r *federationv1.PrepareRequest, joinerCA [32]byte) (*federationv1.PrepareResponse, error) {
	name := r.GetCluster().GetName()
	if err := s.usable(tok.Msg, name, joinerCA); err != nil {
		return nil, err
	}
	bundle, err := parseBundle(r.GetTrustBundle())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := verifyAgainst(conn.State.PeerCertificates, name, bundle, s.Now()); err != nil {
		return nil, status.Errorf(codes.PermissionDenied, "the joiner's certificate does not fit the CA and name that it presents: %v", err)
	}
	peers, bad, err := s.Store.Known(ctx)
	if err != nil {
		return nil, invitation.Unavailable(err)
	}
	now := s.Now()
	fs := Preflight(
		Side{Own: s.Own(), CA: s.Creds.CA(), Peers: peers, Unreadable: bad, Now: now, TokenID: tok.Msg.GetId()},
		Candidate{Cluster: r.GetCluster(), Bundle: bundle, Skew: time.Duration(r.GetTime() - now.UnixNano())})
	if !Blocks(fs) { // what it says its ranges are is not ours, at least
		fs = append(fs, s.strangers.check(ctx, r.GetCluster(), bundle, conn.Conn.RemoteAddr(), s.Own().GetEndpoints())...)
	}
	fs = append(fs, checkPathMTU(name, conn.Conn, s.Store.nodeMTU(ctx))...)
	resp := &federationv1.PrepareResponse{
		Cluster: s.Own(), TrustBundle: rawBundle(s.Creds.CA()), Time: now.UnixNano(), Findings: fs, Accepted: !Blocks(fs),
	}
	resp.Grant, _ = GrantFor(r.GetCluster()) // of what cannot be granted a finding tells
	if !resp.Accepted || r.GetPreflightOnly() {
		return resp, nil
	}
	if err := s.createPending(ctx, tok, r, joinerCA); err != nil {
		return nil, err
	}
	s.Log.Info("peer prepared", "peer", name, "token", tok.Msg.GetId())
	return resp, nil
}

// createPending consumes the token and creates the peer in one transaction.
func (s *Service) createPending(ctx context.Context, tok cas.Record[*keyspacev1.Token], r *federationv1.PrepareRequest, joinerCA [32]byte) error {
	p, err := s.Store.peer(ctx, r.GetCluster().GetName())
	if err != nil {
		return invitation.Unavailable(err)
	}
	switch {
	case p.Rev == 0:
	case p.Msg.GetState() == keyspacev1.Peer_STATE_CONFIRMED:
		return nil // repeated after the confirmation was lost
	case p.Msg.GetState() == keyspacev1.Peer_STATE_LEAVING:
		return leaving(p.Msg)
	}
	rec, err := newPeer(r.GetCluster(), r.GetTrustBundle(), tok.Msg.GetId(), s.Now(), tok.Msg.GetExpiresAt())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	tok.Msg.UsedBy, tok.Msg.UsedByCluster = joinerCA[:], rec.GetName()
	err = s.Store.createPeer(ctx, rec, p.Rev, s.Store.tokens.Put(tok))
	return invitation.Unavailable(err)
}

// newPeer is the record of a peer that is not confirmed yet.
func newPeer(c *keyspacev1.Cluster, bundle [][]byte, tokenID string, now time.Time, until int64) (*keyspacev1.Peer, error) {
	grant, err := GrantFor(c)
	if err != nil {
		return nil, err
	}
	return &keyspacev1.Peer{
		Name: c.GetName(), ClusterId: c.GetId(), TrustBundle: bundle, Grant: grant, Endpoints: c.GetEndpoints(),
		State: keyspacev1.Peer_STATE_PENDING, CreatedAt: now.UnixNano(), TokenId: tokenID, PendingUntil: until,
	}, nil
}

// Confirm implements federationv1.JoinServer.
func (s *Service) Confirm(ctx context.Context, r *federationv1.ConfirmRequest) (*federationv1.ConfirmResponse, error) {
	conn, err := connInfo(ctx)
	if err != nil {
		return nil, err
	}
	err = retry(ctx, func() error {
		at, err := s.Store.tokens.Token(ctx, r.GetTokenId())
		if err != nil {
			return invitation.Unavailable(err)
		}
		if len(at.Msg.GetUsedBy()) != 32 {
			return invitation.NotValid() // nothing was prepared
		}
		tok, err := s.authenticate(ctx, conn.State, r.GetTokenId(), stepConfirm, r.GetProof(), [32]byte(at.Msg.GetUsedBy()))
		if err != nil {
			return err
		}
		if s.Now().UnixNano() >= tok.Msg.GetExpiresAt() {
			return status.Error(codes.FailedPrecondition, "the token expired before the join was confirmed; ask for a new one")
		}
		return s.confirm(ctx, conn.State, tok.Msg, r.GetAbort())
	})
	if err != nil {
		return nil, err
	}
	return &federationv1.ConfirmResponse{}, nil
}

// confirm ends a join. That a token was proved is not enough, which somebody else
// may have got hold of since: the caller is the joiner, by its certificate.
func (s *Service) confirm(ctx context.Context, cs tls.ConnectionState, tok *keyspacev1.Token, abort bool) error {
	p, err := s.Store.peer(ctx, tok.GetUsedByCluster())
	if err != nil {
		return invitation.Unavailable(err)
	}
	switch mine := p.Rev != 0 && p.Msg.GetTokenId() == tok.GetId(); {
	case !mine && abort:
		return nil
	case !mine:
		return status.Error(codes.FailedPrecondition, "the join was not prepared, or was undone; start it again")
	}
	bundle, err := parseBundle(p.Msg.GetTrustBundle())
	if err == nil {
		err = verifyAgainst(cs.PeerCertificates, p.Msg.GetName(), bundle, s.Now())
	}
	if err != nil {
		s.Log.Warn("join refused: its token was used by somebody else", "peer", p.Msg.GetName(), "token", tok.GetId(), "error", err)
		return status.Errorf(codes.PermissionDenied, "cluster %q used this token, and the caller is not it: %v", p.Msg.GetName(), err)
	}
	if abort {
		return s.abort(ctx, p)
	}
	switch p.Msg.GetState() {
	case keyspacev1.Peer_STATE_CONFIRMED:
		return nil
	case keyspacev1.Peer_STATE_LEAVING:
		return leaving(p.Msg)
	}
	p.Msg.State, p.Msg.PendingUntil = keyspacev1.Peer_STATE_CONFIRMED, 0
	if err := s.Store.commit(ctx, s.Store.putPeer(p.Msg, p.Rev)); err != nil {
		return invitation.Unavailable(err)
	}
	s.Log.Info("peer confirmed", "peer", p.Msg.GetName())
	return nil
}

// abort undoes a join whose joiner could not finish its half. A peer that is
// confirmed leaves, as there may be records of it.
func (s *Service) abort(ctx context.Context, p cas.Record[*keyspacev1.Peer]) error {
	undo := cas.Write{Key: s.Store.peerKey(p.Msg.GetName()), Rev: p.Rev}
	switch p.Msg.GetState() {
	case keyspacev1.Peer_STATE_LEAVING:
		return nil
	case keyspacev1.Peer_STATE_CONFIRMED:
		p.Msg.State = keyspacev1.Peer_STATE_LEAVING
		undo = s.Store.putPeer(p.Msg, p.Rev)
	}
	if err := s.Store.commit(ctx, undo); err != nil {
		return invitation.Unavailable(err)
	}
	s.Log.Info("join undone by its joiner", "peer", p.Msg.GetName())
	return nil
}

// leaving refuses a join while what a former one brought is withdrawn.
func leaving(p *keyspacev1.Peer) error {
	return status.Errorf(codes.FailedPrecondition, "peer %q is leaving; when it is gone, ask for a new token: %s", p.GetName(), cure)
}

// authenticate checks the proof of one step.
func (s *Service) authenticate(ctx context.Context, cs tls.ConnectionState, id, step string, got []byte, joinerCA [32]byte) (cas.Record[*keyspacev1.Token], error) {
	tok, err := s.Store.tokens.Authenticate(ctx, invitation.Claim{
		State: cs, TokenID: id, Step: step, Proof: got,
		Inviter: BundleHash([][]byte{s.Creds.CA()[0].Raw}), Joiner: joinerCA,
	})
	if err != nil && tok.Rev != 0 {
		s.Log.Warn("join refused", "token", id, "failures", tok.Msg.GetFailures(), "revoked", tok.Msg.GetRevoked(), "error", err)
	}
	return tok, err
}

// usable says why a token whose secret was proved may still not be used.
func (s *Service) usable(t *keyspacev1.Token, joiner string, joinerCA [32]byte) error {
	refuse := func(format string, a ...any) error {
		return status.Errorf(codes.FailedPrecondition, format+"; ask for a new one: "+cure, a...)
	}
	switch {
	case t.GetNode() != "":
		return refuse("the token is for node %q, not for a cluster", t.GetNode())
	case t.GetTo() != "" && t.GetTo() != joiner:
		return refuse("the token is for cluster %q, not %q", t.GetTo(), joiner)
	case len(t.GetUsedBy()) > 0 && (string(t.GetUsedBy()) != string(joinerCA[:]) || t.GetUsedByCluster() != joiner):
		return refuse("the token was used already, by cluster %q", t.GetUsedByCluster())
	}
	return s.Store.tokens.Usable(t, cure)
}

// retry repeats what was overtaken by another writer.
func retry(ctx context.Context, fn func() error) error {
	err := cas.Retry(ctx, fn)
	if errors.Is(err, cas.ErrConflict) {
		return status.Error(codes.Unavailable, err.Error())
	}
	return err
}

// connInfo is the connection of a call; only a finished TLS connection for the
// join service is good enough.
func connInfo(ctx context.Context) (tlsgrpc.ConnInfo, error) {
	p, ok := peer.FromContext(ctx)
	if ok {
		if info, ok := p.AuthInfo.(tlsgrpc.ConnInfo); ok && info.State.ServerName == JoinServerName {
			return info, nil
		}
	}
	return tlsgrpc.ConnInfo{}, status.Error(codes.PermissionDenied, "join is served under its own server name only")
}
