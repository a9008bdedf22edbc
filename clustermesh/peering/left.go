// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Left are the names by which something of a peer is here, its PeerView or how far
// it was copied, and no record of a peer: it was removed by hand, as that of a
// record which cannot be read. Nobody follows such a peer, and its age is not
// watched. It is not for clusters of a shared etcd, which have no such records.
func (s *Store) Left(ctx context.Context) ([]string, error) {
	left := map[string]bool{}
	for _, prefix := range []string{kvstore.KindPrefix(kvstore.Local, s.own, kvstore.KindPeerView), kvstore.KindPrefix(kvstore.Private, s.own, kvstore.KindProgress)} {
		if err := s.eachKey(ctx, prefix, func(k kvstore.Key) { left[k.Names[0]] = true }); err != nil {
			return nil, fmt.Errorf("look for what is left of peers: %w", err)
		}
	}
	// Records last: a peer that joins meanwhile has its own before anything else.
	err := s.eachKey(ctx, s.PeersPrefix(), func(k kvstore.Key) { delete(left, k.Names[0]) })
	if err != nil {
		return nil, fmt.Errorf("look for what is left of peers: %w", err)
	}
	return slices.Sorted(maps.Keys(left)), nil
}

// WithdrawLeft is Withdraw of a peer that has no record, as long as it has none.
func (s *Store) WithdrawLeft(ctx context.Context, name string, fence []kvstore.Cmp) (removed uint64, err error) {
	return s.Withdraw(ctx, name, append(slices.Clone(fence), kvstore.Absent(s.peerKey(name))))
}

// eachKey calls fn for the keys below a prefix that are of one name.
func (s *Store) eachKey(ctx context.Context, prefix string, fn func(kvstore.Key)) error {
	after, rev := "", int64(0)
	for {
		page, err := s.kv.List(ctx, prefix, after, 500, rev)
		if err != nil {
			return err
		}
		rev = page.Revision
		for _, kv := range page.KVs {
			after = kv.Key
			if k, err := kvstore.ParseKey(kv.Key); err == nil && len(k.Names) == 1 {
				fn(k)
			}
		}
		if !page.More {
			return nil
		}
	}
}
