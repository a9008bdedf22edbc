// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
)

const (
	callTimeout = 15 * time.Second // for one endpoint
	askTimeout  = 30 * time.Second // for all
)

// Node is a node's side of its enrolment.
type Node struct {
	Dir string // for ca.crt, tls.crt, tls.key and the enrolment; made when absent
	Now func() time.Time
	Log *slog.Logger
}

// Join enrols this host by a token's text, unless that very token has done so
// before: then it says so in the log and the token is not used again. What it
// stores lets later starts do without a token. After an error, or a crash at any
// point, it can be repeated with the same token. It blocks for up to half a
// minute.
func (n *Node) Join(ctx context.Context, text string) (State, error) {
	tok, err := invitation.Parse(text)
	if err != nil {
		return State{}, err
	}
	if tok.Node == "" {
		return State{}, fmt.Errorf("enrol: the token is for a cluster, to be used with hawser mesh join; one for a node is printed by: hawser node invite NODE")
	}
	old, err := Load(n.Dir)
	switch {
	case err == nil && old.TokenID == tok.ID:
		n.Log.Info("this token has enrolled the node already", "cluster", old.Cluster, "node", old.Node)
		return old, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return State{}, err
	}
	if !n.Now().Before(tok.Expires) {
		return State{}, fmt.Errorf("enrol node %s: the token expired at %s by this host's clock, which says %s; set the clock, or ask for a new token: %s",
			tok.Node, tok.Expires.UTC().Format(time.RFC3339), n.Now().UTC().Format(time.RFC3339), cure(tok.Node))
	}
	state, err := n.enrol(ctx, tok)
	if err != nil {
		return State{}, fmt.Errorf("enrol node %s in cluster %s: %w", tok.Node, tok.Inviter, err)
	}
	n.Log.Info("node enrolled", "cluster", state.Cluster, "node", state.Node)
	return state, nil
}

func (n *Node) enrol(ctx context.Context, tok invitation.Token) (State, error) {
	pending := filepath.Join(n.Dir, pendingKey)
	key, err := pki.EnsureKey(pending)
	if err != nil {
		return State{}, err
	}
	resp, err := n.ask(ctx, tok, key)
	if err != nil {
		return State{}, err
	}
	leaf, err := checkLeaf(resp, tok, key, n.Now())
	if err != nil {
		return State{}, err
	}
	// The enrolment is written last and the key is set aside until then:
	// whatever is interrupted before is repeated with the same key.
	if _, err := leaf.Save(n.Dir, leafName); err != nil {
		return State{}, err
	}
	state := newState(resp.GetCluster(), tok.ID)
	if err := state.save(n.Dir); err != nil {
		return State{}, err
	}
	return state, remove(pending)
}

// ask proves the token to the first endpoint that answers. The proof is made for
// one connection, the key is the same for all: an endpoint that enrolled it, but
// whose answer was lost, does not keep the next one from doing so again.
func (n *Node) ask(ctx context.Context, tok invitation.Token, key crypto.Signer) (resp *hawserv1.EnrolResponse, err error) {
	request, hash, err := newRequest(key)
	if err != nil {
		return nil, err
	}
	err = askFirst(ctx, tok.Endpoints, joinTLS(tok, n.Now), func(ctx context.Context, conn *tls.Conn, c hawserv1.EnrolmentClient) error {
		proof, err := invitation.Proof(tok.Secret, conn.ConnectionState(), stepEnrol, tok.CAHash, hash)
		if err != nil {
			return err
		}
		resp, err = c.Enrol(ctx, &hawserv1.EnrolRequest{TokenId: tok.ID, Proof: proof, Request: request})
		return err
	})
	return resp, err
}

// joinTLS dials a server that is known only by its cluster and its CA's hash.
func joinTLS(tok invitation.Token, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // the CA is found by its hash in VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				if c.IsCA && sha256.Sum256(c.Raw) == tok.CAHash {
					return pki.VerifyServer(cs.PeerCertificates, []*x509.Certificate{c}, pki.ID{Cluster: tok.Inviter, Role: pki.RoleAPIServer}, now())
				}
			}
			return errors.New("the server's CA is not the one that the token names: the token is from before a change of CA, or something is in between")
		},
	}
}

// checkLeaf makes sure that the answer is what the token promised before any of
// it is stored.
func checkLeaf(resp *hawserv1.EnrolResponse, tok invitation.Token, key crypto.Signer, now time.Time) (*pki.Leaf, error) {
	ca, err := x509.ParseCertificate(resp.GetCa())
	if err != nil {
		return nil, fmt.Errorf("the answer's CA: %w", err)
	}
	if pki.Hash(ca) != tok.CAHash {
		return nil, errors.New("the answer's CA is not the one that the token names")
	}
	p := resp.GetCluster()
	if p.GetName() != tok.Inviter || p.GetNode() != tok.Node || len(p.GetEtcdEndpoints()) == 0 {
		return nil, fmt.Errorf("the answer is for node %q of cluster %q with etcd at %v", p.GetNode(), p.GetName(), p.GetEtcdEndpoints())
	}
	return newLeaf(resp.GetCertificate(), []*x509.Certificate{ca}, key, pki.ID{Cluster: tok.Inviter, Role: pki.RoleAgent, Name: tok.Node}, now)
}

func newLeaf(der []byte, cas []*x509.Certificate, key crypto.Signer, want pki.ID, now time.Time) (*pki.Leaf, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the answer's certificate: %w", err)
	}
	if err := pki.VerifyServer([]*x509.Certificate{cert}, cas, want, now); err != nil {
		return nil, fmt.Errorf("the answer's certificate: %w", err)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("the answer's certificate is for another key")
	}
	return &pki.Leaf{Cert: cert, Key: key, CA: cas[0], Also: cas[1:]}, nil
}

// askFirst makes a call over a connection to the first endpoint that answers it.
// One that cannot be reached, is not available or does not answer in time is
// passed over, whatever it has done of the call: it must be one that may be
// repeated.
func askFirst(ctx context.Context, endpoints []string, cfg *tls.Config, call func(context.Context, *tls.Conn, hawserv1.EnrolmentClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var errs []error
	hint := "no API endpoint answers; is --listen-api reachable from this host? "
	for _, ep := range endpoints {
		dialled, err := askOne(ctx, ep, cfg, call)
		switch code := status.Code(err); {
		case err == nil:
			return nil
		case dialled && code != codes.Unavailable && code != codes.DeadlineExceeded:
			return refusal(err)
		case dialled:
			hint = ""
			err = fmt.Errorf("%s: %w", ep, refusal(err))
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%s%w", hint, errors.Join(errs...))
}

func askOne(ctx context.Context, endpoint string, cfg *tls.Config, call func(context.Context, *tls.Conn, hawserv1.EnrolmentClient) error) (dialled bool, err error) {
	conn, err := tlsgrpc.Dial(ctx, endpoint, cfg)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	cc, err := tlsgrpc.ClientOver(conn)
	if err != nil {
		return true, err
	}
	defer func() { _ = cc.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return true, call(ctx, conn, hawserv1.NewEnrolmentClient(cc))
}

// refusal shortens a gRPC status to what a person needs.
func refusal(err error) error {
	if st, ok := status.FromError(err); ok {
		return errors.New(st.Message())
	}
	return err
}
