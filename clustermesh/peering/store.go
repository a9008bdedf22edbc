// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// errConflict says that somebody else wrote the record first.
var errConflict = errors.New("the record was changed at the same time; try again")

// tokenKept is how long a token's record outlives its expiry, so that a late
// user is told "expired" and not "unknown".
const tokenKept = 24 * time.Hour

// Store keeps the peers and tokens of one cluster. It is safe for concurrent
// use, also by several API servers: every write compares what it read.
type Store struct {
	kv  kvstore.Client
	own string
	now func() time.Time
}

// NewStore keeps its records below private/<own>/.
func NewStore(kv kvstore.Client, own string, now func() time.Time) *Store {
	return &Store{kv: kv, own: own, now: now}
}

// stored is a record with the revision that it was read at; 0: it does not
// exist.
type stored[T proto.Message] struct {
	rec T
	rev int64
}

func (s *Store) peerKey(name string) string {
	return kvstore.NewKey(kvstore.Private, s.own, kvstore.KindPeerView, name).String()
}

func (s *Store) tokenKey(id string) string {
	return kvstore.NewKey(kvstore.Private, s.own, kvstore.KindToken, id).String()
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
				errs = append(errs, fmt.Errorf("read peer %s: %w", kv.Key, err))
			} else if kv.Key != s.peerKey(p.GetName()) {
				errs = append(errs, fmt.Errorf("read peer %s: the record names %q", kv.Key, p.GetName()))
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

func (s *Store) peer(ctx context.Context, name string) (stored[*keyspacev1.Peer], error) {
	return get(ctx, s.kv, s.peerKey(name), &keyspacev1.Peer{})
}

func (s *Store) token(ctx context.Context, id string) (stored[*keyspacev1.Token], error) {
	return get(ctx, s.kv, s.tokenKey(id), &keyspacev1.Token{})
}

func get[T proto.Message](ctx context.Context, kv kvstore.Client, key string, into T) (stored[T], error) {
	r, _, err := kv.Get(ctx, key)
	if err != nil {
		return stored[T]{}, fmt.Errorf("read %s: %w", key, err)
	}
	if r == nil {
		return stored[T]{rec: into}, nil
	}
	if err := proto.Unmarshal(r.Value, into); err != nil {
		return stored[T]{}, fmt.Errorf("read %s: %w", key, err)
	}
	return stored[T]{rec: into, rev: r.ModRevision}, nil
}

// atRev is the condition that a record is still as it was read.
func atRev(key string, rev int64) kvstore.Cmp {
	if rev == 0 {
		return kvstore.Absent(key)
	}
	return kvstore.AtRevision(key, rev)
}

// write is one conditional change; a nil record deletes.
type write struct {
	key string
	rev int64
	rec proto.Message
}

// commit does all writes or none; errConflict when one was overtaken.
func (s *Store) commit(ctx context.Context, ws ...write) error {
	var cmps []kvstore.Cmp
	var ops []kvstore.Op
	for _, w := range ws {
		cmps = append(cmps, atRev(w.key, w.rev))
		if w.rec == nil {
			ops = append(ops, kvstore.Delete(w.key))
			continue
		}
		b, err := proto.Marshal(w.rec)
		if err != nil {
			return fmt.Errorf("encode %s: %w", w.key, err)
		}
		ops = append(ops, kvstore.Put(w.key, b))
	}
	res, err := s.kv.Txn(ctx, cmps, ops, nil)
	if err != nil {
		return fmt.Errorf("write %s: %w", ws[0].key, err)
	}
	if !res.Succeeded {
		return errConflict
	}
	return nil
}

func (s *Store) putPeer(rec *keyspacev1.Peer, rev int64) write {
	rec.UpdatedAt = s.now().UnixNano()
	return write{s.peerKey(rec.GetName()), rev, rec}
}

func (s *Store) putToken(rec *keyspacev1.Token, rev int64) write {
	rec.UpdatedAt = s.now().UnixNano()
	return write{s.tokenKey(rec.GetId()), rev, rec}
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
		if err == nil && at.rev != 0 && at.rec.GetState() == keyspacev1.Peer_STATE_PENDING && s.now().UnixNano() >= at.rec.GetPendingUntil() {
			err = s.commit(ctx, write{s.peerKey(p.GetName()), at.rev, nil})
		}
		if !errors.Is(err, errConflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.expireTokens(ctx))...)
}

func (s *Store) expireTokens(ctx context.Context) error {
	page, err := s.kv.List(ctx, kvstore.KindPrefix(kvstore.Private, s.own, kvstore.KindToken), "", 1000, 0)
	if err != nil {
		return fmt.Errorf("list tokens: %w", err)
	}
	for _, kv := range page.KVs {
		t := &keyspacev1.Token{}
		if proto.Unmarshal(kv.Value, t) == nil && s.now().UnixNano() < t.GetExpiresAt()+int64(tokenKept) {
			continue
		}
		if err := s.commit(ctx, write{kv.Key, kv.ModRevision, nil}); err != nil && !errors.Is(err, errConflict) {
			return err
		}
	}
	return nil
}
