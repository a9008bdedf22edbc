// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"errors"
	"fmt"
	"slices"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// ErrNoPeer says that there is no peer of that name.
var ErrNoPeer = errors.New("no such peer")

// StartLeave marks the peer as leaving: from the next look at the peers on, its
// certificates are not believed and its stream is not opened. It is the first
// half of a leave; Withdraw is the second and can be repeated after a crash.
func (s *Store) StartLeave(ctx context.Context, name string) error {
	err := cas.Retry(ctx, func() error {
		p, err := s.peer(ctx, name)
		if err != nil {
			return err
		}
		if p.Rev == 0 {
			return fmt.Errorf("%w; peers are listed by: hawser mesh list", ErrNoPeer)
		}
		if p.Msg.GetState() == keyspacev1.Peer_STATE_LEAVING {
			return nil
		}
		p.Msg.State = keyspacev1.Peer_STATE_LEAVING
		return s.commit(ctx, s.putPeer(p.Msg, p.Rev))
	})
	if err != nil {
		return fmt.Errorf("leave %q: %w", name, err)
	}
	return nil
}

// Withdraw removes everything that the peer published here: services and their
// backends first, then the rest in the reverse of the order in which it is
// written, then markers, view and progress, and the Peer last. The peer's import
// must have ended; fence is a condition that every transaction carries (nil for
// none). It returns how many keys of state/<peer>/ it removed and may be
// repeated.
func (s *Store) Withdraw(ctx context.Context, name string, fence []kvstore.Cmp) (removed uint64, err error) {
	order := []kvstore.Kind{kvstore.KindService, kvstore.KindServiceID, kvstore.KindSlice}
	for _, k := range slices.Backward(kvstore.PublicKinds) {
		if !slices.Contains(order, k) {
			order = append(order, k)
		}
	}
	for _, k := range order {
		n, err := s.removeBelow(ctx, kvstore.KindPrefix(kvstore.State, name, k), k.Arity() > 0, fence)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("leave %s: %w", name, err)
		}
	}
	for i, prefix := range []string{kvstore.Prefix(kvstore.State, name), kvstore.KindPrefix(kvstore.Local, s.own, kvstore.KindSynced) + name + "/"} {
		n, err := s.removeBelow(ctx, prefix, true, fence)
		if i == 0 {
			removed += n
		}
		if err != nil {
			return removed, fmt.Errorf("leave %s: %w", name, err)
		}
	}
	if err := s.burnToken(ctx, name); err != nil {
		return removed, fmt.Errorf("leave %s: %w", name, err)
	}
	res, err := s.kv.Txn(ctx, fence, []kvstore.Op{
		kvstore.Delete(kvstore.NewKey(kvstore.Local, s.own, kvstore.KindPeerView, name).String()),
		kvstore.Delete(kvstore.NewKey(kvstore.Private, s.own, kvstore.KindProgress, name).String()),
		kvstore.Delete(s.peerKey(name)),
	}, nil)
	if err == nil && !res.Succeeded {
		err = cas.ErrConflict
	}
	if err != nil {
		return removed, fmt.Errorf("leave %s: %w", name, err)
	}
	return removed, nil
}

// burnToken ends the token that the peer joined with, if it was made here. Until
// then its user may repeat a join that was interrupted; after a leave it could
// come back uninvited.
func (s *Store) burnToken(ctx context.Context, name string) error {
	return cas.Retry(ctx, func() error {
		p, err := s.peer(ctx, name)
		if err != nil || p.Msg.GetTokenId() == "" {
			return err
		}
		t, err := s.tokens.Token(ctx, p.Msg.GetTokenId())
		if err != nil || t.Rev == 0 {
			return err
		}
		t.Msg.UsedBy = make([]byte, 32) // the hash of no CA
		return s.commit(ctx, s.tokens.Put(t))
	})
}

// removeBelow deletes what is below a prefix (or one key) in pages of one
// transaction each.
func (s *Store) removeBelow(ctx context.Context, prefix string, dir bool, fence []kvstore.Cmp) (n uint64, err error) {
	for {
		keys, more, err := s.keysAt(ctx, prefix, dir)
		if err != nil || len(keys) == 0 {
			return n, err
		}
		ops := make([]kvstore.Op, len(keys))
		for i, k := range keys {
			ops[i] = kvstore.Delete(k)
		}
		res, err := s.kv.Txn(ctx, fence, ops, nil)
		if err != nil {
			return n, fmt.Errorf("remove %s: %w", prefix, err)
		}
		if !res.Succeeded {
			return n, fmt.Errorf("remove %s: %w", prefix, cas.ErrConflict)
		}
		n += uint64(len(keys))
		if !more {
			return n, nil
		}
	}
}

func (s *Store) keysAt(ctx context.Context, prefix string, dir bool) (keys []string, more bool, err error) {
	if !dir {
		kv, _, err := s.kv.Get(ctx, prefix)
		if err != nil || kv == nil {
			return nil, false, err
		}
		return []string{kv.Key}, false, nil
	}
	page, err := s.kv.List(ctx, prefix, "", 100, 0)
	for _, kv := range page.KVs {
		keys = append(keys, kv.Key)
	}
	return keys, page.More, err
}
