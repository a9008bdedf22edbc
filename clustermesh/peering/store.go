// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// Store keeps the peers and tokens of one cluster. It is safe for concurrent
// use, also by several API servers: every write compares what it read.
type Store struct {
	kv     kvstore.Client
	own    string
	now    func() time.Time
	tokens *invitation.Ledger
}

// NewStore keeps its records below private/<own>/.
func NewStore(kv kvstore.Client, own string, now func() time.Time) *Store {
	return &Store{kv: kv, own: own, now: now, tokens: invitation.NewLedger(kv, own, now)}
}

// Fenced is the Store with a condition that each of its transactions carries;
// where it does not hold they fail as overtaken.
func (s *Store) Fenced(fence []kvstore.Cmp) *Store {
	out := *s
	out.kv = fenced{s.kv, fence}
	return &out
}

// fenced is a client for the writes of somebody in office.
type fenced struct {
	kvstore.Client
	fence []kvstore.Cmp
}

func (f fenced) Txn(ctx context.Context, cmps []kvstore.Cmp, then, otherwise []kvstore.Op) (kvstore.TxnResult, error) {
	return f.Client.Txn(ctx, slices.Concat(f.fence, cmps), then, otherwise)
}

func (s *Store) peerKey(name string) string {
	return kvstore.NewKey(kvstore.Private, s.own, kvstore.KindPeerView, name).String()
}

// PeersPrefix is where the peers are, for a watch.
func (s *Store) PeersPrefix() string {
	return kvstore.KindPrefix(kvstore.Private, s.own, kvstore.KindPeerView)
}

// Peers lists all peers, whatever their state, and the revision of the listing.
// A record that cannot be read is left out and joined into the error; the
// others are valid then.
func (s *Store) Peers(ctx context.Context) ([]*keyspacev1.Peer, int64, error) {
	var out []*keyspacev1.Peer
	var errs []error
	after, rev := "", int64(0)
	for {
		page, err := s.kv.List(ctx, s.PeersPrefix(), after, 500, rev)
		if err != nil {
			return nil, 0, fmt.Errorf("list peers: %w", err)
		}
		rev = page.Revision
		for _, kv := range page.KVs {
			p := &keyspacev1.Peer{}
			if err := proto.Unmarshal(kv.Value, p); err != nil {
				errs = append(errs, &UnreadableError{Key: kv.Key, Err: err})
			} else if kv.Key != s.peerKey(p.GetName()) {
				errs = append(errs, &UnreadableError{Key: kv.Key, Err: fmt.Errorf("the record names %q", p.GetName())})
			} else {
				out = append(out, p)
			}
			after = kv.Key
		}
		if !page.More {
			return out, rev, errors.Join(errs...)
		}
	}
}

func (s *Store) peer(ctx context.Context, name string) (cas.Record[*keyspacev1.Peer], error) {
	r, err := cas.Get(ctx, s.kv, s.peerKey(name), &keyspacev1.Peer{})
	if errors.Is(err, proto.Error) {
		err = &UnreadableError{Key: s.peerKey(name), Err: err}
	}
	return r, err
}

// commit does all writes or none; cas.ErrConflict when one was overtaken.
func (s *Store) commit(ctx context.Context, ws ...cas.Write) error {
	return cas.Commit(ctx, s.kv, ws...)
}

func (s *Store) putPeer(rec *keyspacev1.Peer, rev int64) cas.Write {
	rec.UpdatedAt = s.now().UnixNano()
	return cas.Write{Key: s.peerKey(rec.GetName()), Rev: rev, Msg: rec}
}

// createPeer writes a peer that was none before, or only pending, with whatever
// else is to be true then. Where the copy of an earlier peer of that name stood
// goes in the same transaction: the new one's is copied from the start.
func (s *Store) createPeer(ctx context.Context, rec *keyspacev1.Peer, rev int64, with ...cas.Write) error {
	key := kvstore.NewKey(kvstore.Private, s.own, kvstore.KindProgress, rec.GetName()).String()
	left, _, err := s.kv.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	progress := cas.Write{Key: key}
	if left != nil {
		progress.Rev = left.ModRevision
	}
	return s.commit(ctx, append(with, s.putPeer(rec, rev), progress)...)
}

// Expire removes peers that were not confirmed in time and tokens long expired.
// Call it every few seconds.
func (s *Store) Expire(ctx context.Context) error {
	peers, _, err := s.Peers(ctx)
	errs := []error{err}
	for _, p := range peers {
		if p.GetState() != keyspacev1.Peer_STATE_PENDING || s.now().UnixNano() < p.GetPendingUntil() {
			continue
		}
		at, err := s.peer(ctx, p.GetName())
		if err == nil && at.Rev != 0 && at.Msg.GetState() == keyspacev1.Peer_STATE_PENDING && s.now().UnixNano() >= at.Msg.GetPendingUntil() {
			err = s.commit(ctx, cas.Write{Key: s.peerKey(p.GetName()), Rev: at.Rev})
		}
		if !errors.Is(err, cas.ErrConflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.tokens.Expire(ctx))...)
}
