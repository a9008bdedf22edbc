// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// retiredKept is how many retired CAs of a peer are remembered.
const retiredKept = 32

// record is what is kept of a declaration, to know later what changed in it.
func (p *Declaration) record() *keyspacev1.PeerDeclaration {
	return &keyspacev1.PeerDeclaration{
		ClusterId: p.ID, TrustBundle: rawBundle(p.CAs), Endpoints: p.Endpoints, Namespaces: p.Namespaces,
		PodCidrs: p.PodCIDRs, NodeCidrs: p.NodeCIDRs, ServiceCidrs: p.ServiceCIDRs,
	}
}

// apply is the record of the declared peer: old (nil, or without a name: there is
// none) with what this declaration says otherwise than the one before. All else
// is as the peer or an operator made it since: a CA that the peer replaced by
// itself, where it is dialled, what it is granted beside, its ages.
func (p *Declaration) apply(own *keyspacev1.Cluster, old *keyspacev1.Peer, now time.Time) (*keyspacev1.Peer, error) {
	rec, err := newPeer(p.cluster(own), rawBundle(p.CAs), "", now, 0)
	if err != nil {
		return nil, err
	}
	rec.State, rec.Declared, rec.Declaration = keyspacev1.Peer_STATE_CONFIRMED, p.hash(), p.record()
	rec.Grant.Namespaces, rec.Grant.ServiceCidrsPinned = p.Namespaces, len(p.ServiceCIDRs) > 0 // files of before name none
	if old.GetName() == "" {
		return rec, nil
	}
	last := old.GetDeclaration()
	if string(old.GetDeclared()) == string(rec.GetDeclared()) {
		last = rec.GetDeclaration() // the same, which a version of before kept as a hash alone
	}
	next := proto.CloneOf(old)
	next.Declared, next.Declaration = rec.GetDeclared(), rec.GetDeclaration()
	if last == nil || !sameRaw(last.GetTrustBundle(), rec.GetTrustBundle()) {
		if err := p.barred(old, last == nil); err != nil {
			return nil, err
		}
		next.TrustBundle = rec.GetTrustBundle()
	}
	if last.GetClusterId() != p.ID {
		next.ClusterId = p.ID
		next.Grant.IdentityMin, next.Grant.IdentityMax = rec.GetGrant().GetIdentityMin(), rec.GetGrant().GetIdentityMax()
	}
	differs := func(was, is []string) bool { return last == nil || !slices.Equal(was, is) }
	if differs(last.GetEndpoints(), p.Endpoints) {
		next.Endpoints = p.Endpoints
	}
	if differs(last.GetPodCidrs(), p.PodCIDRs) {
		next.Grant.PodCidrs = p.PodCIDRs
	}
	if differs(last.GetNodeCidrs(), p.NodeCIDRs) {
		next.Grant.NodeCidrs = p.NodeCIDRs
	}
	if differs(last.GetServiceCidrs(), p.ServiceCIDRs) {
		next.Grant.ServiceCidrs, next.Grant.ServiceCidrsPinned = p.ServiceCIDRs, rec.GetGrant().GetServiceCidrsPinned()
	}
	if differs(last.GetNamespaces(), p.Namespaces) {
		next.Grant.Namespaces = p.Namespaces
	}
	return next, nil
}

// barred says that a CA of the declaration is not to be believed again: the peer
// has retired it, or may have, when nothing is known of the time before.
func (p *Declaration) barred(old *keyspacev1.Peer, unknown bool) error {
	for _, c := range p.CAs {
		sum := sha256.Sum256(c.Raw)
		if slices.ContainsFunc(old.GetTrustBundle(), func(der []byte) bool { return bytes.Equal(der, c.Raw) }) {
			continue
		}
		if unknown || slices.ContainsFunc(old.GetRetired(), func(h []byte) bool { return bytes.Equal(h, sum[:]) }) {
			return fmt.Errorf("its CA %q (sha256 %x) in the file is not believed: %s replaced it by another one; put the present one there, which is printed in that cluster by: hawser mesh declare",
				c.Subject.CommonName, sum[:8], p.Name)
		}
	}
	return nil
}

// retire notes in a peer's record which of its CAs are not in the next bundle.
func retire(p *keyspacev1.Peer, next [][]byte) {
	sums := func(ders [][]byte) (out [][]byte) {
		for _, der := range ders {
			sum := sha256.Sum256(der)
			out = append(out, sum[:])
		}
		return out
	}
	present := sums(next)
	p.Retired = slices.DeleteFunc(append(p.GetRetired(), sums(p.GetTrustBundle())...), func(h []byte) bool {
		return slices.ContainsFunc(present, func(n []byte) bool { return bytes.Equal(h, n) })
	})
	p.Retired = p.Retired[max(0, len(p.Retired)-retiredKept):]
}
