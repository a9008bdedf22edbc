// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Server names by which the federation port chooses what it serves.
const (
	// JoinServerName selects the join service, for callers whose CA nobody
	// knows yet. Any other name selects federation.
	JoinServerName = "join.hawser"
	// FederationServerName is what dialers of confirmed peers ask for.
	FederationServerName = "federation.hawser"
)

// RoleAPIServer is the only role that federation and join admit.
const RoleAPIServer = "apiserver"

// Credentials are this cluster's own: called at every handshake, so that they
// may renew themselves.
type Credentials interface {
	// Certificate is the leaf (spiffe://<own>/apiserver) and its key.
	Certificate() (*tls.Certificate, error)
	// CA is the own trust bundle, the signing CA first.
	CA() []*x509.Certificate
}

// Trust says whose certificates are believed: each cluster's only by the bundle
// of that cluster. It is safe for concurrent use.
type Trust struct {
	own   string
	creds Credentials
	now   func() time.Time
	set   *x509bundle.Set
}

// NewTrust trusts nobody but, by its name, the own cluster.
func NewTrust(own string, creds Credentials, now func() time.Time) (*Trust, error) {
	td, err := spiffeid.TrustDomainFromString(own)
	if err != nil {
		return nil, fmt.Errorf("trust domain of cluster %s: %w", own, err)
	}
	return &Trust{own: own, creds: creds, now: now,
		set: x509bundle.NewSet(x509bundle.FromX509Authorities(td, creds.CA()))}, nil
}

// SetPeer believes the peer's bundle from the next handshake on. A bundle that
// shares a CA with another cluster is refused.
func (t *Trust) SetPeer(name string, ders [][]byte) error {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return fmt.Errorf("trust domain of peer %s: %w", name, err)
	}
	if name == t.own {
		return fmt.Errorf("trust peer %s: it has our own name", name)
	}
	if t.has(td, ders) {
		return nil // judged before: to compare it with all others again costs, with many peers
	}
	certs, err := parseBundle(ders)
	if err != nil {
		return fmt.Errorf("trust peer %s: %w", name, err)
	}
	if err := t.foreign(td, certs); err != nil {
		return fmt.Errorf("trust peer %s: %w", name, err)
	}
	t.set.Add(x509bundle.FromX509Authorities(td, certs))
	return nil
}

// has reports whether exactly these certificates are the cluster's bundle.
func (t *Trust) has(td spiffeid.TrustDomain, ders [][]byte) bool {
	b, ok := t.set.Get(td)
	return ok && slices.EqualFunc(b.X509Authorities(), ders, func(c *x509.Certificate, der []byte) bool { return bytes.Equal(c.Raw, der) })
}

// foreign says that a CA is another cluster's, or nil.
func (t *Trust) foreign(td spiffeid.TrustDomain, certs []*x509.Certificate) error {
	owners := append(t.set.Bundles(), x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(t.own), t.creds.CA()))
	for _, b := range owners {
		for _, c := range certs {
			if b.TrustDomain() != td && slices.ContainsFunc(b.X509Authorities(), func(o *x509.Certificate) bool { return sameCA(o, c) }) {
				return fmt.Errorf("its CA %q is that of cluster %s", c.Subject.CommonName, b.TrustDomain())
			}
		}
	}
	return nil
}

// Bundle is the own trust bundle of the moment, the signing CA first.
func (t *Trust) Bundle() [][]byte { return rawBundle(t.creds.CA()) }

// RemovePeer ends belief in the peer: every later handshake fails. Closing its
// open connections is the owner of those.
func (t *Trust) RemovePeer(name string) {
	if td, err := spiffeid.TrustDomainFromString(name); err == nil && name != t.own {
		t.set.Remove(td)
	}
}

// Has reports whether the cluster's certificates are believed.
func (t *Trust) Has(name string) bool {
	td, err := spiffeid.TrustDomainFromString(name)
	return err == nil && t.set.Has(td)
}

// base is what all our configurations share: TLS 1.3, no session resumption in
// either role, so that each connection is a full handshake that asks the set.
func (t *Trust) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
	}
}

// ServerConfig is the federation port's: by server name it is either the join
// service's (a client certificate is asked for but judged by the join) or
// federation's (only API servers of confirmed peers).
func (t *Trust) ServerConfig() *tls.Config {
	fed, join, pick := t.base(), t.base(), t.base()
	fed.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.creds.Certificate() }
	fed.ClientAuth = tls.RequireAnyClientCert
	fed.VerifyConnection = func(cs tls.ConnectionState) error {
		cluster, err := t.verify(cs, RoleAPIServer)
		if err == nil && cluster == t.own {
			return &HandshakeError{handshakeOwn, fmt.Errorf("certificate of cluster %s: that is ourselves", cluster)}
		}
		return err
	}
	join.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.withCA() }
	join.ClientAuth = tls.RequireAnyClientCert
	pick.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if h.ServerName == JoinServerName {
			return join, nil
		}
		return fed, nil
	}
	return pick
}

// ClientConfig dials the API server of one confirmed peer and accepts nobody
// else, whoever signed them.
func (t *Trust) ClientConfig(peer string) *tls.Config {
	c := t.base()
	c.ServerName = FederationServerName
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.creds.Certificate() }
	c.InsecureSkipVerify = true // no host names here: VerifyConnection does it all
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		cluster, err := t.verify(cs, RoleAPIServer)
		if err == nil && cluster != peer {
			return fmt.Errorf("server is of cluster %s, not %s", cluster, peer)
		}
		return err
	}
	return c
}

// JoinClientConfig dials an inviter that is known only by its name and its CA's
// hash.
func (t *Trust) JoinClientConfig(inviter string, caHash [32]byte) *tls.Config {
	c := t.base()
	c.ServerName = JoinServerName
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.creds.Certificate() }
	c.InsecureSkipVerify = true // the CA is found by its hash in VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		for _, cert := range cs.PeerCertificates {
			if cert.IsCA && sha256.Sum256(cert.Raw) == caHash {
				return verifyAgainst(cs.PeerCertificates, inviter, []*x509.Certificate{cert}, t.now())
			}
		}
		return errors.New("the server's CA is not the one that the token names: the token is from before a change of CA, or something is in between")
	}
	return c
}

// verify checks the chain against the bundle of the cluster that it names, and
// the role; it returns the cluster.
func (t *Trust) verify(cs tls.ConnectionState, role string) (string, error) {
	id, _, err := x509svid.Verify(cs.PeerCertificates, t.set, x509svid.WithTime(t.now()))
	if err != nil {
		return "", t.unbelieved(id, fmt.Errorf("verify certificate: %w", err))
	}
	if got := roleOf(id); got != role {
		return "", &HandshakeError{handshakeRole, fmt.Errorf("certificate %s: role %s is not admitted here, only %s", id, got, role)}
	}
	return id.TrustDomain().Name(), nil
}

// verifyAgainst checks that a chain is the cluster's API server, signed by one
// of the given CAs.
func verifyAgainst(chain []*x509.Certificate, cluster string, cas []*x509.Certificate, now time.Time) error {
	td, err := spiffeid.TrustDomainFromString(cluster)
	if err != nil {
		return fmt.Errorf("trust domain of cluster %s: %w", cluster, err)
	}
	id, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(td, cas), x509svid.WithTime(now))
	if err != nil {
		return fmt.Errorf("verify certificate: %w", err)
	}
	if roleOf(id) != RoleAPIServer {
		return fmt.Errorf("certificate %s: not an API server's", id)
	}
	return nil
}

func roleOf(id spiffeid.ID) string {
	role, _, _ := strings.Cut(strings.TrimPrefix(id.Path(), "/"), "/")
	return role
}

// ClusterOf is the cluster that an already verified connection's certificate
// names.
func ClusterOf(cs tls.ConnectionState) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("connection has no certificate")
	}
	id, err := x509svid.IDFromCert(cs.PeerCertificates[0])
	if err != nil {
		return "", fmt.Errorf("read certificate: %w", err)
	}
	return id.TrustDomain().Name(), nil
}

// withCA is the own certificate with the signing CA in its chain, so that a
// joiner can compare the CA with its token.
func (t *Trust) withCA() (*tls.Certificate, error) {
	c, err := t.creds.Certificate()
	if err != nil {
		return nil, err
	}
	ca := t.creds.CA()
	if len(ca) == 0 {
		return nil, errors.New("own trust bundle is empty")
	}
	out := *c
	out.Certificate = append(append([][]byte(nil), c.Certificate...), ca[0].Raw)
	return &out, nil
}
