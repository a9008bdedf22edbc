// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// DefaultLifetime of a node's certificate; it is renewed at two thirds of it.
const DefaultLifetime = 90 * 24 * time.Hour

// stepEnrol is what proofs of a node's token are made for.
const stepEnrol = "enrol node"

// Deps are what a Service works with.
type Deps struct {
	CA *pki.CA
	KV kvstore.Client
	// Parameters are the cluster's, without the node. It is called anew for
	// each use.
	Parameters func() *hawserv1.ClusterParameters
	// Access is to the cluster's own etcd, which admits each node by a user of
	// its own; nil for an etcd that has other certificates.
	Access   Access
	Lifetime time.Duration // of certificates; 0 means DefaultLifetime
	Now      func() time.Time
	Log      *slog.Logger
}

// Access admits nodes to etcd, each key by a user of its own (etcd.NodeUser).
type Access interface {
	AdmitNode(ctx context.Context, cluster, node, user string) error
	ExpelNode(ctx context.Context, user string) error
	NodeUsers(ctx context.Context, cluster string) ([]string, error)
}

// Service invites nodes, admits them and renews their certificates. Renew trusts
// the connection's TLS state: serve it only where client certificates are
// verified against the cluster's CA.
type Service struct {
	hawserv1.UnimplementedEnrolmentServer
	Deps
	tokens *invitation.Ledger
}

// NewService makes a Service; it starts nothing.
func NewService(d Deps) *Service {
	if d.Lifetime == 0 {
		d.Lifetime = DefaultLifetime
	}
	return &Service{Deps: d, tokens: invitation.NewLedger(d.KV, d.CA.Cluster(), d.Now)}
}

func cure(node string) string { return "hawser node invite " + node }

// Invite stores and returns a token with which one host joins as the node. A
// node of that name keeps its place until then, and loses it to the newcomer.
func (s *Service) Invite(ctx context.Context, node string, ttl time.Duration) (invitation.Token, error) {
	none := invitation.Token{}
	if err := (pki.ID{Cluster: s.CA.Cluster(), Role: pki.RoleAgent, Name: node}).Validate(); err != nil {
		return none, fmt.Errorf("invite node: %w", err)
	}
	ttl, err := invitation.CheckTTL(ttl)
	if err != nil {
		return none, fmt.Errorf("invite node %s: %w", node, err)
	}
	endpoints := s.Parameters().GetApiEndpoints()
	if len(endpoints) == 0 {
		return none, fmt.Errorf("invite node %s: the API server serves no API port; start it with --listen-api ADDRESS:4244", node)
	}
	t, err := invitation.New(s.CA.Cluster(), node, endpoints, s.CA.Hash(), s.Now().Add(ttl))
	if err == nil {
		err = s.tokens.Add(ctx, t, "")
	}
	if err != nil {
		return none, fmt.Errorf("invite node %s: %w", node, err)
	}
	return t, nil
}

// Enrol implements hawserv1.EnrolmentServer.
func (s *Service) Enrol(ctx context.Context, r *hawserv1.EnrolRequest) (*hawserv1.EnrolResponse, error) {
	state, err := tlsState(ctx)
	if err != nil {
		return nil, err
	}
	csr, err := parseRequest(r.GetRequest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	key := keyHash(csr.RawSubjectPublicKeyInfo)
	resp := &hawserv1.EnrolResponse{Ca: s.CA.Certificate().Raw, Cluster: s.Parameters()}
	err = retry(ctx, func() error {
		tok, err := s.tokens.Authenticate(ctx, invitation.Claim{
			State: state, TokenID: r.GetTokenId(), Step: stepEnrol, Proof: r.GetProof(), Inviter: s.CA.Hash(), Joiner: key,
		})
		if err != nil {
			s.Log.Warn("enrolment refused", "token", r.GetTokenId(), "failures", tok.Msg.GetFailures(), "revoked", tok.Msg.GetRevoked(), "error", err)
			return err
		}
		resp.Cluster.Node = tok.Msg.GetNode()
		resp.Certificate, err = s.admit(ctx, tok, csr, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.Log.Info("node enrolled", "node", resp.GetCluster().GetNode(), "token", r.GetTokenId())
	return resp, nil
}

// admit consumes a proved token and gives its node's name to the key, in one
// transaction.
func (s *Service) admit(ctx context.Context, tok cas.Record[*keyspacev1.Token], csr *x509.CertificateRequest, key [32]byte) ([]byte, error) {
	node := tok.Msg.GetNode()
	switch {
	case node == "":
		return nil, status.Error(codes.FailedPrecondition, "the token is for a cluster, not for a node; ask for one with: hawser node invite NODE")
	case len(tok.Msg.GetUsedBy()) > 0 && string(tok.Msg.GetUsedBy()) != string(key[:]):
		return nil, status.Errorf(codes.FailedPrecondition, "the token was used already; ask for a new one: %s", cure(node))
	}
	if err := s.tokens.Usable(tok.Msg, cure(node)); err != nil {
		return nil, err
	}
	rec, err := s.enrolment(ctx, node)
	if err != nil {
		return nil, invitation.Unavailable(err)
	}
	former := rec.Msg.GetKeyHash()
	if string(former) != string(key[:]) {
		rec.Msg.KeyHash, rec.Msg.EnrolledAt = key[:], s.Now().UnixNano()
	}
	rec.Msg.TokenId = tok.Msg.GetId()
	der, err := s.sign(csr, rec.Msg)
	if err != nil {
		return nil, err
	}
	tok.Msg.UsedBy = key[:]
	// The former key loses etcd before its name is gone from the record: after an
	// error this is done again, and nothing else says which key that was.
	if err := s.expel(ctx, key[:], former); err != nil {
		return nil, invitation.Unavailable(err)
	}
	if err := cas.Commit(ctx, s.KV, s.tokens.Put(tok), s.put(rec)); err != nil {
		return nil, invitation.Unavailable(err)
	}
	return der, invitation.Unavailable(s.settle(context.WithoutCancel(ctx), node, former, key[:]))
}

// Renew implements hawserv1.EnrolmentServer.
func (s *Service) Renew(ctx context.Context, r *hawserv1.RenewRequest) (*hawserv1.RenewResponse, error) {
	state, err := tlsState(ctx)
	if err != nil {
		return nil, err
	}
	if len(state.VerifiedChains) == 0 {
		return nil, status.Error(codes.Unauthenticated, "a certificate is renewed only to the holder of the old one")
	}
	shown := state.PeerCertificates[0]
	id, err := pki.CertificateID(shown)
	if err != nil || id.Role != pki.RoleAgent || id.Cluster != s.CA.Cluster() {
		return nil, status.Errorf(codes.PermissionDenied, "certificate of %s: only nodes of cluster %s renew here", id, s.CA.Cluster())
	}
	csr, err := parseRequest(r.GetRequest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	resp := &hawserv1.RenewResponse{Cluster: s.Parameters()}
	resp.Cluster.Node = id.Name
	err = retry(ctx, func() error {
		rec, err := s.enrolment(ctx, id.Name)
		if err != nil {
			return invitation.Unavailable(err)
		}
		if err := mayRenew(rec, shown, csr, id.Name); err != nil {
			return err
		}
		if resp.Certificate, err = s.sign(csr, rec.Msg); err != nil {
			return err
		}
		if err := cas.Commit(ctx, s.KV, s.put(rec)); err != nil {
			return invitation.Unavailable(err)
		}
		// Not given up when the caller hangs up: it may have been forgotten meanwhile.
		return invitation.Unavailable(s.settle(context.WithoutCancel(ctx), id.Name, rec.Msg.GetKeyHash()))
	})
	if err != nil {
		s.Log.Warn("renewal refused", "node", id.Name, "error", err)
		return nil, err
	}
	s.Log.Info("node's certificate renewed", "node", id.Name)
	return resp, nil
}

// mayRenew says why the holder of a verified certificate gets no other.
func mayRenew(rec cas.Record[*keyspacev1.Enrolment], shown *x509.Certificate, csr *x509.CertificateRequest, node string) error {
	key := keyHash(shown.RawSubjectPublicKeyInfo)
	switch {
	case rec.Rev == 0:
		return status.Errorf(codes.PermissionDenied, "node %s was not enrolled by token, or was forgotten; invite it: %s", node, cure(node))
	case string(rec.Msg.GetKeyHash()) != string(key[:]):
		return status.Errorf(codes.PermissionDenied, "node %s was enrolled again with another key; if this is the node, invite it: %s", node, cure(node))
	case keyHash(csr.RawSubjectPublicKeyInfo) != key:
		return status.Error(codes.PermissionDenied, "a certificate is renewed for the same key only; a new key needs a new token")
	}
	return nil
}

// sign issues the node's certificate and notes it in the record.
func (s *Service) sign(csr *x509.CertificateRequest, rec *keyspacev1.Enrolment) ([]byte, error) {
	now := s.Now()
	request := pki.Request{Role: pki.RoleAgent, Name: rec.GetNode(), Lifetime: s.Lifetime}
	if s.Access != nil {
		request.EtcdUser = s.user(rec.GetKeyHash())
	}
	der, err := s.CA.Sign(csr.PublicKey, request, now)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	rec.ExpiresAt = cert.NotAfter.UnixNano()
	rec.Serials = noteSerial(rec.GetSerials(), cert.SerialNumber)
	return der, nil
}

// keptSerials is how many certificates of a node are remembered: more than can
// be valid at a time, as each is renewed at two thirds of its life.
const keptSerials = 16

func noteSerial(serials [][]byte, n *big.Int) [][]byte {
	serials = append(slices.Clone(serials), n.Bytes())
	return serials[max(0, len(serials)-keptSerials):]
}

func (s *Service) key(node string) string {
	return kvstore.NewKey(kvstore.Private, s.CA.Cluster(), kvstore.KindEnrolment, node).String()
}

func (s *Service) enrolment(ctx context.Context, node string) (cas.Record[*keyspacev1.Enrolment], error) {
	r, err := cas.Get(ctx, s.KV, s.key(node), &keyspacev1.Enrolment{})
	if err == nil {
		r.Msg.Node = node
	}
	return r, err
}

func (s *Service) put(r cas.Record[*keyspacev1.Enrolment]) cas.Write {
	msg := proto.CloneOf(r.Msg)
	msg.UpdatedAt = s.Now().UnixNano()
	return cas.Write{Key: s.key(msg.GetNode()), Rev: r.Rev, Msg: msg}
}

// Forget ends the node's enrolment: its certificate is not renewed any more, and
// the cluster's own etcd admits it no more. It returns what is forgotten; nil if
// there was none. Tokens for the node that are still open are revoked. After an
// error it can be repeated, and finishes what is left.
func (s *Service) Forget(ctx context.Context, node string) (was *keyspacev1.Enrolment, err error) {
	err = cas.Retry(ctx, func() error {
		rec, err := s.enrolment(ctx, node)
		if err != nil || rec.Rev == 0 {
			return err
		}
		// Before the record goes, which alone names the key.
		if err := s.expel(ctx, nil, rec.Msg.GetKeyHash()); err != nil {
			return err
		}
		was = rec.Msg
		return cas.Commit(ctx, s.KV, cas.Write{Key: s.key(node), Rev: rec.Rev})
	})
	switch {
	case err != nil:
	case was != nil: // it may have been renewed in between
		err = s.settle(ctx, node, was.GetKeyHash())
	default: // an earlier attempt may have ended there
		err = s.sweep(ctx)
	}
	if err == nil {
		err = s.tokens.RevokeNode(ctx, node)
	}
	if err != nil {
		return nil, fmt.Errorf("forget node %s: %w", node, err)
	}
	return was, nil
}

func retry(ctx context.Context, fn func() error) error {
	err := cas.Retry(ctx, fn)
	if errors.Is(err, cas.ErrConflict) {
		return status.Error(codes.Unavailable, err.Error())
	}
	return err
}

// tlsState is the TLS connection of a call.
func tlsState(ctx context.Context) (tls.ConnectionState, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && info.State.HandshakeComplete {
			return info.State, nil
		}
	}
	return tls.ConnectionState{}, status.Error(codes.PermissionDenied, "enrolment is served over TLS only")
}

func keyHash(spki []byte) [32]byte { return sha256.Sum256(spki) }
