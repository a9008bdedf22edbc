// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/hmac"
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
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	// DefaultTTL is how long a token and a prepared join live.
	DefaultTTL  = 15 * time.Minute
	maxTTL      = 7 * 24 * time.Hour
	maxFailures = 5
	// casTries is how often a write that was overtaken is tried again.
	casTries = 8
)

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
}

// NewService makes a Service; it starts nothing.
func NewService(d Deps) *Service { return &Service{Deps: d} }

// Invite stores and returns a single-use token. to limits it to the cluster of
// that name; a ttl of 0 means DefaultTTL.
func (s *Service) Invite(ctx context.Context, to string, ttl time.Duration) (Token, error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if ttl < time.Second || ttl > maxTTL {
		return Token{}, fmt.Errorf("invite %s: ttl %s: must be within 1s-%s", to, ttl, maxTTL)
	}
	own := s.Own()
	if to != "" {
		if err := kvstore.ValidateClusterName(to); err != nil {
			return Token{}, fmt.Errorf("invite: %w", err)
		}
		if to == own.GetName() {
			return Token{}, fmt.Errorf("invite %s: that is this cluster itself", to)
		}
		if p, err := s.Store.peer(ctx, to); err != nil {
			return Token{}, err
		} else if p.rev != 0 && p.rec.GetState() != keyspacev1.Peer_STATE_PENDING {
			return Token{}, fmt.Errorf("invite %s: it is a peer already; leave it first: hawser mesh leave %s", to, to)
		}
	}
	if len(own.GetEndpoints()) == 0 {
		return Token{}, errors.New("invite: this cluster advertises no federation endpoint; invite from the other side, or set one")
	}
	ca := s.Creds.CA()
	if len(ca) == 0 {
		return Token{}, errors.New("invite: own trust bundle is empty")
	}
	t, err := NewToken(own.GetName(), own.GetEndpoints(), BundleHash([][]byte{ca[0].Raw}), s.Now().Add(ttl))
	if err != nil {
		return Token{}, fmt.Errorf("invite: %w", err)
	}
	rec := &keyspacev1.Token{Id: t.ID, Secret: t.Secret, To: to, ExpiresAt: t.Expires.UnixNano()}
	if err := s.Store.commit(ctx, s.Store.putToken(rec, 0)); err != nil {
		return Token{}, fmt.Errorf("invite: %w", err)
	}
	return t, nil
}

// errNotValid is all that a caller without the secret learns.
var errNotValid = status.Error(codes.Unauthenticated, "the token is not valid here: it is unknown, or its secret is wrong")

// Prepare implements federationv1.JoinServer.
func (s *Service) Prepare(ctx context.Context, r *federationv1.PrepareRequest) (*federationv1.PrepareResponse, error) {
	conn, err := connInfo(ctx)
	if err != nil {
		return nil, err
	}
	joinerCA := BundleHash(r.GetTrustBundle())
	var resp *federationv1.PrepareResponse
	err = s.retry(ctx, func() error {
		tok, err := s.authenticate(ctx, conn.State, r.GetTokenId(), stepPrepare, r.GetProof(), joinerCA)
		if err != nil {
			return err
		}
		resp, err = s.prepare(ctx, conn.State, tok, r, joinerCA)
		return err
	})
	return resp, err
}

func (s *Service) prepare(ctx context.Context, cs tls.ConnectionState, tok stored[*keyspacev1.Token], r *federationv1.PrepareRequest, joinerCA [32]byte) (*federationv1.PrepareResponse, error) {
	name := r.GetCluster().GetName()
	if err := s.usable(tok.rec, name, joinerCA); err != nil {
		return nil, err
	}
	bundle, err := parseBundle(r.GetTrustBundle())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := verifyAgainst(cs.PeerCertificates, name, bundle, s.Now()); err != nil {
		return nil, status.Errorf(codes.PermissionDenied, "the joiner's certificate does not fit the CA and name that it presents: %v", err)
	}
	peers, _, err := s.Store.Peers(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	now := s.Now()
	fs := Preflight(
		Side{Own: s.Own(), CA: s.Creds.CA(), Peers: peers, Now: now, TokenID: tok.rec.GetId()},
		Candidate{Cluster: r.GetCluster(), Bundle: bundle, Skew: time.Duration(r.GetTime() - now.UnixNano())})
	resp := &federationv1.PrepareResponse{
		Cluster: s.Own(), TrustBundle: rawBundle(s.Creds.CA()), Time: now.UnixNano(), Findings: fs, Accepted: !Blocks(fs),
	}
	if !resp.Accepted || r.GetPreflightOnly() {
		return resp, nil
	}
	if err := s.createPending(ctx, tok, r, joinerCA); err != nil {
		return nil, err
	}
	s.Log.Info("peer prepared", "peer", name, "token", tok.rec.GetId())
	return resp, nil
}

// createPending consumes the token and creates the peer in one transaction.
func (s *Service) createPending(ctx context.Context, tok stored[*keyspacev1.Token], r *federationv1.PrepareRequest, joinerCA [32]byte) error {
	p, err := s.Store.peer(ctx, r.GetCluster().GetName())
	if err != nil {
		return unavailable(err)
	}
	if p.rev != 0 && p.rec.GetState() == keyspacev1.Peer_STATE_CONFIRMED {
		return nil // repeated after the confirmation was lost
	}
	rec, err := newPeer(r.GetCluster(), r.GetTrustBundle(), tok.rec.GetId(), s.Now(), tok.rec.GetExpiresAt())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	tok.rec.UsedBy, tok.rec.UsedByCluster = joinerCA[:], rec.GetName()
	err = s.Store.commit(ctx, s.Store.putToken(tok.rec, tok.rev), s.Store.putPeer(rec, p.rev))
	return unavailable(err)
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
	err = s.retry(ctx, func() error {
		at, err := s.Store.token(ctx, r.GetTokenId())
		if err != nil {
			return unavailable(err)
		}
		if len(at.rec.GetUsedBy()) != 32 {
			return errNotValid // nothing was prepared
		}
		tok, err := s.authenticate(ctx, conn.State, r.GetTokenId(), stepConfirm, r.GetProof(), [32]byte(at.rec.GetUsedBy()))
		if err != nil {
			return err
		}
		if s.Now().UnixNano() >= tok.rec.GetExpiresAt() {
			return status.Error(codes.FailedPrecondition, "the token expired before the join was confirmed; ask for a new one")
		}
		return s.confirm(ctx, tok.rec, r.GetAbort())
	})
	if err != nil {
		return nil, err
	}
	return &federationv1.ConfirmResponse{}, nil
}

func (s *Service) confirm(ctx context.Context, tok *keyspacev1.Token, abort bool) error {
	p, err := s.Store.peer(ctx, tok.GetUsedByCluster())
	if err != nil {
		return unavailable(err)
	}
	mine := p.rev != 0 && p.rec.GetTokenId() == tok.GetId()
	switch {
	case !mine && abort:
		return nil
	case !mine:
		return status.Error(codes.FailedPrecondition, "the join was not prepared, or was undone; start it again")
	case abort:
		return unavailable(s.Store.commit(ctx, write{s.Store.peerKey(p.rec.GetName()), p.rev, nil}))
	case p.rec.GetState() == keyspacev1.Peer_STATE_CONFIRMED:
		return nil
	}
	p.rec.State, p.rec.PendingUntil = keyspacev1.Peer_STATE_CONFIRMED, 0
	if err := s.Store.commit(ctx, s.Store.putPeer(p.rec, p.rev)); err != nil {
		return unavailable(err)
	}
	s.Log.Info("peer confirmed", "peer", p.rec.GetName())
	return nil
}

// authenticate checks the proof; a wrong one counts against the token, and the
// fifth revokes it.
func (s *Service) authenticate(ctx context.Context, cs tls.ConnectionState, id, step string, got []byte, joinerCA [32]byte) (stored[*keyspacev1.Token], error) {
	tok, err := s.Store.token(ctx, id)
	if err != nil {
		return tok, unavailable(err)
	}
	if tok.rev == 0 {
		return tok, errNotValid
	}
	want, err := proof(tok.rec.GetSecret(), cs, step, BundleHash([][]byte{s.Creds.CA()[0].Raw}), joinerCA)
	if err != nil {
		return tok, status.Error(codes.Internal, err.Error())
	}
	if hmac.Equal(want, got) && len(tok.rec.GetSecret()) >= secretBytes {
		return tok, nil
	}
	tok.rec.Failures++
	tok.rec.Revoked = tok.rec.Revoked || tok.rec.Failures >= maxFailures
	s.Log.Warn("join refused: wrong proof", "token", id, "failures", tok.rec.Failures, "revoked", tok.rec.Revoked)
	if err := s.Store.commit(ctx, s.Store.putToken(tok.rec, tok.rev)); err != nil {
		return tok, unavailable(err)
	}
	return tok, errNotValid
}

// usable says why a token whose secret was proved may still not be used.
func (s *Service) usable(t *keyspacev1.Token, joiner string, joinerCA [32]byte) error {
	refuse := func(format string, a ...any) error {
		return status.Errorf(codes.FailedPrecondition, format+"; ask for a new one: hawser mesh invite", a...)
	}
	switch {
	case t.GetRevoked():
		return refuse("the token was revoked after %d wrong proofs", t.GetFailures())
	case s.Now().UnixNano() >= t.GetExpiresAt():
		return refuse("the token expired at %s", time.Unix(0, t.GetExpiresAt()).UTC().Format(time.RFC3339))
	case t.GetTo() != "" && t.GetTo() != joiner:
		return refuse("the token is for cluster %q, not %q", t.GetTo(), joiner)
	case len(t.GetUsedBy()) > 0 && (string(t.GetUsedBy()) != string(joinerCA[:]) || t.GetUsedByCluster() != joiner):
		return refuse("the token was used already, by cluster %q", t.GetUsedByCluster())
	}
	return nil
}

// retry repeats what was overtaken by another writer.
func (s *Service) retry(ctx context.Context, fn func() error) error {
	var err error
	for range casTries {
		if err = fn(); !errors.Is(err, errConflict) || ctx.Err() != nil {
			return err
		}
	}
	return unavailable(fmt.Errorf("%w", err))
}

// unavailable turns a store's error into a status, but leaves a conflict for
// retry to see.
func unavailable(err error) error {
	if err == nil || errors.Is(err, errConflict) {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// connInfo is the connection of a call; only a finished TLS connection for the
// join service is good enough.
func connInfo(ctx context.Context) (ConnInfo, error) {
	p, ok := peer.FromContext(ctx)
	if ok {
		if info, ok := p.AuthInfo.(ConnInfo); ok && info.State.ServerName == JoinServerName {
			return info, nil
		}
	}
	return ConnInfo{}, status.Error(codes.PermissionDenied, "join is served under its own server name only")
}
