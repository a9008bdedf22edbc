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
	"github.com/hawser-mesh/hawser/kvstore"
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
func (c GrantChange) Apply(peer string, old *keyspacev1.Grant, taken []TakenRange) (*keyspacev1.Grant, error) {
	g := proto.CloneOf(old)
	var errs []error
	g.PodCidrs = change(&errs, "pod", g.GetPodCidrs(), c.AddPods, c.RemovePods, taken)
	g.NodeCidrs = change(&errs, "node", g.GetNodeCidrs(), c.AddNodes, c.RemoveNodes, taken)
	if len(c.AddServices)+len(c.RemoveServices) > 0 {
		g.ServiceCidrs, g.ServiceCidrsPinned = change(&errs, serviceRange, g.GetServiceCidrs(), c.AddServices, c.RemoveServices, taken), true
	}
	if c.Explain != nil {
		g.Explain = *c.Explain
	}
	if c.Diff != nil {
		g.Diff = proto.Bool(*c.Diff)
	}
	if c.Namespaces != nil {
		for _, n := range c.Namespaces {
			errs = append(errs, checkNamespace(n))
		}
		g.Namespaces = slices.Clone(c.Namespaces)
	}
	errs = append(errs, c.maxima(g))
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("grant of %s: %w", peer, err)
	}
	return g, nil
}

// What a maximum may be at most. Of identities and services there are no more
// numbers in one cluster; the others are far above any cluster, and bound what a
// mistyped one costs.
const (
	mostNodes    = 1_000_000
	mostServices = 1<<kvstore.ServiceIDBits - 1
	mostIPs      = 1 << 24
	mostBackends = 1 << 24
)

// maxima sets those maxima of a grant that change.
func (c GrantChange) maxima(g *keyspacev1.Grant) error {
	var errs []error
	for _, m := range []struct {
		what string
		to   *uint64
		from *uint64
		most uint64
	}{
		{"nodes", &g.MaxNodes, c.MaxNodes, mostNodes},
		{"identities", &g.MaxIdentities, c.MaxIdentities, uint64(g.GetIdentityMax()) - uint64(g.GetIdentityMin()) + 1},
		{"addresses", &g.MaxIps, c.MaxIPs, mostIPs},
		{"services", &g.MaxServices, c.MaxServices, mostServices},
		{"backends", &g.MaxBackends, c.MaxBackends, mostBackends},
	} {
		switch {
		case m.from == nil:
		case *m.from > m.most:
			errs = append(errs, fmt.Errorf("%d %s are too many: a cluster is granted at most %d %[2]s", *m.from, m.what, m.most))
		default:
			*m.to = *m.from
		}
	}
	return errors.Join(errs...)
}

func change(errs *[]error, what string, have, add, remove []string, taken []TakenRange) []string {
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
		t, overlaps := overlapping(what, p, taken)
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
