// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// GrantChange is what is to be different in a grant.
type GrantChange struct {
	AddPods, RemovePods, AddNodes, RemoveNodes, AddServices, RemoveServices []string // prefixes
	// Namespaces replaces the list when it is not nil; an empty one means all.
	Namespaces []string
	// Maxima replace those that are not nil.
	MaxNodes, MaxIdentities, MaxIPs, MaxServices, MaxBackends *uint64
	// What it may read replaces what is not nil.
	Explain, Diff *bool
}

// Apply is the grant of a peer after the change, or all that is wrong with the
// change. taken are ranges that no peer is ever granted.
func (c GrantChange) Apply(peer string, old *keyspacev1.Grant, taken []netip.Prefix) (*keyspacev1.Grant, error) {
	g := proto.CloneOf(old)
	var errs []error
	g.PodCidrs = change(&errs, "pod", g.GetPodCidrs(), c.AddPods, c.RemovePods, taken)
	g.NodeCidrs = change(&errs, "node", g.GetNodeCidrs(), c.AddNodes, c.RemoveNodes, taken)
	if len(c.AddServices)+len(c.RemoveServices) > 0 {
		g.ServiceCidrs, g.ServiceCidrsPinned = change(&errs, "service", g.GetServiceCidrs(), c.AddServices, c.RemoveServices, nil), true
	}
	if c.Explain != nil {
		g.Explain = *c.Explain
	}
	if c.Diff != nil {
		g.Diff = proto.Bool(*c.Diff)
	}
	if c.Namespaces != nil {
		g.Namespaces = slices.Clone(c.Namespaces)
	}
	for _, m := range []struct {
		to   *uint64
		from *uint64
	}{
		{&g.MaxNodes, c.MaxNodes}, {&g.MaxIdentities, c.MaxIdentities}, {&g.MaxIps, c.MaxIPs},
		{&g.MaxServices, c.MaxServices}, {&g.MaxBackends, c.MaxBackends},
	} {
		if m.from != nil {
			*m.to = *m.from
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("grant of %s: %w", peer, err)
	}
	return g, nil
}

func change(errs *[]error, what string, have, add, remove []string, taken []netip.Prefix) []string {
	out := slices.Clone(have)
	for _, text := range remove {
		i := slices.Index(out, text)
		if i < 0 {
			*errs = append(*errs, fmt.Errorf("%s CIDR %s is not granted; granted are %v", what, text, have))
			continue
		}
		out = slices.Delete(out, i, i+1)
	}
	for _, text := range add {
		p, _ := netip.ParsePrefix(text) // what cannot be read is no valid range
		t, overlaps := overlapping(p, taken)
		switch err := CheckRange(p); {
		case err != nil:
			*errs = append(*errs, fmt.Errorf("%s CIDR %q %w", what, text, err))
		case overlaps:
			*errs = append(*errs, fmt.Errorf("%s CIDR %s overlaps %s, which is this cluster's own or another peer's", what, text, t))
		case !slices.Contains(out, text):
			out = append(out, text)
		}
	}
	return out
}

// ChangeGrant changes what a confirmed peer may publish here, and returns its
// record as it is then.
func (s *Store) ChangeGrant(ctx context.Context, own *keyspacev1.Cluster, name string, c GrantChange) (rec *keyspacev1.Peer, changed bool, err error) {
	err = cas.Retry(ctx, func() error {
		p, err := s.peer(ctx, name)
		if err != nil {
			return err
		}
		if p.Rev == 0 || p.Msg.GetState() != keyspacev1.Peer_STATE_CONFIRMED {
			return fmt.Errorf("grant of %s: %w that is confirmed; peers are listed by: hawser mesh list", name, ErrNoPeer)
		}
		all, _, err := s.Known(ctx)
		if err != nil {
			return err
		}
		g, err := c.Apply(name, p.Msg.GetGrant(), Taken(own, all, name))
		if err != nil {
			return err
		}
		rec, changed = p.Msg, !proto.Equal(g, p.Msg.GetGrant())
		if !changed {
			return nil
		}
		p.Msg.Grant = g
		return s.commit(ctx, s.putPeer(p.Msg, p.Rev))
	})
	return rec, changed, err
}

// GrantHash tells grants apart: what was imported under one says nothing about
// what another one allows.
func GrantHash(g *keyspacev1.Grant) []byte {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(g)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(raw)
	return sum[:16]
}
