// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// LearnTrust takes the bundle that a confirmed peer sent over its stream, and
// reports whether it is another than before. Refused are CAs of other clusters
// or of ours, and a bundle that has none in common with the present one: CAs are
// replaced one after the other, or the peer joins anew.
func (s *Store) LearnTrust(ctx context.Context, t *Trust, name string, bundle [][]byte) (changed bool, err error) {
	certs, err := parseBundle(bundle)
	if err != nil {
		return false, err
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return false, fmt.Errorf("trust domain of peer %s: %w", name, err)
	}
	if err := t.foreign(td, certs); err != nil {
		return false, err
	}
	err = cas.Retry(ctx, func() error {
		p, err := s.peer(ctx, name)
		if err != nil {
			return invitation.Unavailable(err)
		}
		if p.Rev == 0 || p.Msg.GetState() != keyspacev1.Peer_STATE_CONFIRMED {
			return fmt.Errorf("%w that is confirmed", ErrNoPeer)
		}
		if changed = !sameRaw(p.Msg.GetTrustBundle(), bundle); !changed {
			return nil
		}
		known, err := parseBundle(p.Msg.GetTrustBundle())
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return slices.ContainsFunc(known, c.Equal) }) {
			return errors.New("it has no CA in common with the one before; if that is meant, leave and join again")
		}
		retire(p.Msg, bundle)
		p.Msg.TrustBundle = bundle
		return s.commit(ctx, s.putPeer(p.Msg, p.Rev))
	})
	return changed && err == nil, err
}

func sameRaw(a, b [][]byte) bool {
	return slices.EqualFunc(a, b, func(x, y []byte) bool { return string(x) == string(y) })
}
