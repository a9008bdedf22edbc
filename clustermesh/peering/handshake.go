// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
)

// verdictWithin is how long the other side is given to refuse our certificate
// after the handshake; TLS 1.3 tells that no sooner than with the first byte.
const verdictWithin = 300 * time.Millisecond

// Shake is one attempt to reach an endpoint of a peer as federation does.
type Shake struct {
	Endpoint string
	// Leaf is the certificate that it showed; nil when it got no further.
	Leaf *x509.Certificate
	// Err is why no stream could be opened; Reached says that something answered.
	Err     error
	Reached bool
}

// ID is the SPIFFE id of the certificate; "" when there is none.
func (s Shake) ID() string {
	if s.Leaf == nil {
		return ""
	}
	id, err := x509svid.IDFromCert(s.Leaf)
	if err != nil {
		return s.Leaf.Subject.CommonName
	}
	return id.String()
}

// Handshakes dials the endpoints of a peer at once and says how far it came with
// each. It opens no stream.
func Handshakes(ctx context.Context, t *Trust, peer string, endpoints []string) []Shake {
	out := make([]Shake, min(len(endpoints), maxReach))
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { out[i] = shakeHands(ctx, t, peer, endpoints[i]) })
	}
	wg.Wait()
	return out
}

func shakeHands(ctx context.Context, t *Trust, peer, endpoint string) Shake {
	s := Shake{Endpoint: endpoint}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", endpoint)
	if err != nil {
		s.Err = err
		return s
	}
	defer raw.Close()
	s.Reached = true
	cfg := t.ClientConfig(peer)
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) > 0 {
			s.Leaf = cs.PeerCertificates[0]
		}
		return verify(cs)
	}
	conn := tls.Client(raw, cfg)
	if s.Err = conn.HandshakeContext(ctx); s.Err != nil {
		return s
	}
	if err := conn.SetReadDeadline(time.Now().Add(verdictWithin)); err != nil {
		return s
	}
	// What it says first is HTTP/2, which is not ours to read, or an alert.
	if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.Err = fmt.Errorf("it refuses our certificate: %w", err)
	}
	return s
}

// checkShakes are the findings on handshakes. One direction is enough for a mesh,
// so that what does not answer is a warning.
func checkShakes(peer string, shakes []Shake) []*federationv1.Finding {
	f := &findings{peer: peer}
	for _, s := range shakes {
		switch {
		case s.Err == nil:
		case !s.Reached:
			f.unreached(s.Endpoint, s.Err)
		case s.Leaf == nil:
			f.add(false, "tls", fmt.Sprintf("its federation endpoint %s answers, but no TLS handshake: %v", s.Endpoint, s.Err),
				"see what listens there: it must be hawser-apiserver's --listen-federation, with nothing that ends TLS in between")
		default:
			f.add(false, "tls", fmt.Sprintf("its federation endpoint %s shows the certificate %s of CA %q, valid until %s: %v",
				s.Endpoint, s.ID(), s.Leaf.Issuer.CommonName, s.Leaf.NotAfter.UTC().Format(time.RFC3339), s.Err),
				"compare the name and the CA with hawser mesh status on its side; after a change of CA while it was away, or a theft, leave and join again")
		}
	}
	return f.list
}
