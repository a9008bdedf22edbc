// SPDX-License-Identifier: Apache-2.0

package invitation

import (
	"context"
	"crypto/hmac"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

const (
	// DefaultTTL is how long a token lives.
	DefaultTTL = 15 * time.Minute
	maxTTL     = 7 * 24 * time.Hour
	// maxFailures is the number of wrong proofs that revokes a token.
	maxFailures = 5
	// kept is how long a token's record outlives its expiry, so that a late
	// user is told "expired" and not "unknown".
	kept = 24 * time.Hour
)

// Ledger keeps the tokens of one cluster below private/<own>/. It is safe for
// concurrent use, also by several API servers: every write compares what it
// read.
type Ledger struct {
	kv  kvstore.Client
	own string
	now func() time.Time
}

// NewLedger keeps its records in kv.
func NewLedger(kv kvstore.Client, own string, now func() time.Time) *Ledger {
	return &Ledger{kv: kv, own: own, now: now}
}

// CheckTTL replaces 0 by the default and refuses what is too short or too long.
func CheckTTL(ttl time.Duration) (time.Duration, error) {
	if ttl == 0 {
		return DefaultTTL, nil
	}
	if ttl < time.Second || ttl > maxTTL {
		return 0, fmt.Errorf("ttl %s: must be within 1s-%s", ttl, maxTTL)
	}
	return ttl, nil
}

func (l *Ledger) key(id string) string {
	return kvstore.NewKey(kvstore.Private, l.own, kvstore.KindToken, id).String()
}

// Add stores a new token; to limits it to the cluster of that name.
func (l *Ledger) Add(ctx context.Context, t Token, to string) error {
	rec := &keyspacev1.Token{Id: t.ID, Secret: t.Secret, To: to, Node: t.Node, ExpiresAt: t.Expires.UnixNano()}
	return cas.Commit(ctx, l.kv, l.Put(cas.Record[*keyspacev1.Token]{Msg: rec}))
}

// Token reads a token's record.
func (l *Ledger) Token(ctx context.Context, id string) (cas.Record[*keyspacev1.Token], error) {
	return cas.Get(ctx, l.kv, l.key(id), &keyspacev1.Token{})
}

// Put is the write of a changed record, for a transaction with others.
func (l *Ledger) Put(r cas.Record[*keyspacev1.Token]) cas.Write {
	r.Msg.UpdatedAt = l.now().UnixNano()
	return cas.Write{Key: l.key(r.Msg.GetId()), Rev: r.Rev, Msg: r.Msg}
}

// errNotValid is all that a caller without the secret learns.
var errNotValid = status.Error(codes.Unauthenticated, "the token is not valid here: it is unknown, or its secret is wrong")

// NotValid is the answer to a caller without the secret.
func NotValid() error { return errNotValid }

// Claim is what a joiner presents.
type Claim struct {
	State           tls.ConnectionState
	TokenID, Step   string
	Proof           []byte
	Inviter, Joiner [32]byte // see Proof
}

// Authenticate checks a proof; a wrong one counts against the token, and the
// fifth revokes it: the record that is returned then says so. Its errors are gRPC
// statuses, or cas.ErrConflict.
func (l *Ledger) Authenticate(ctx context.Context, c Claim) (cas.Record[*keyspacev1.Token], error) {
	tok, err := l.Token(ctx, c.TokenID)
	if err != nil {
		return tok, Unavailable(err)
	}
	if tok.Rev == 0 {
		return tok, errNotValid
	}
	want, err := Proof(tok.Msg.GetSecret(), c.State, c.Step, c.Inviter, c.Joiner)
	if err != nil {
		return tok, status.Error(codes.Internal, err.Error())
	}
	if hmac.Equal(want, c.Proof) && len(tok.Msg.GetSecret()) >= secretBytes {
		return tok, nil
	}
	if tok.Msg.GetRevoked() { // guesses do not count any more, and write nothing
		return tok, errNotValid
	}
	tok.Msg.Failures++
	tok.Msg.Revoked = tok.Msg.GetFailures() >= maxFailures
	if err := cas.Commit(ctx, l.kv, l.Put(tok)); err != nil {
		return tok, Unavailable(err)
	}
	return tok, errNotValid
}

// Usable says why a token whose secret was proved may not be used any more, or
// nil. cure is the command that makes another.
func (l *Ledger) Usable(t *keyspacev1.Token, cure string) error {
	switch {
	case t.GetRevoked() && t.GetFailures() < maxFailures: // as by RevokeNode
		return status.Errorf(codes.FailedPrecondition, "the token was revoked; ask for a new one: %s", cure)
	case t.GetRevoked():
		return status.Errorf(codes.FailedPrecondition, "the token was revoked (after %d wrong proofs); ask for a new one: %s", t.GetFailures(), cure)
	case l.now().UnixNano() >= t.GetExpiresAt():
		return status.Errorf(codes.FailedPrecondition, "the token expired at %s; ask for a new one: %s",
			time.Unix(0, t.GetExpiresAt()).UTC().Format(time.RFC3339), cure)
	}
	return nil
}

// Unavailable turns a store's error into a status, but leaves a conflict for
// cas.Retry to see.
func Unavailable(err error) error {
	if err == nil || errors.Is(err, cas.ErrConflict) {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}

// Expire removes tokens that expired a day ago, and records that are none. Call
// it every few seconds.
func (l *Ledger) Expire(ctx context.Context) error {
	return l.each(ctx, func(kv kvstore.KV, t *keyspacev1.Token) error {
		if t != nil && l.now().UnixNano() < t.GetExpiresAt()+int64(kept) {
			return nil
		}
		err := cas.Commit(ctx, l.kv, cas.Write{Key: kv.Key, Rev: kv.ModRevision})
		if errors.Is(err, cas.ErrConflict) {
			return nil
		}
		return err
	})
}

// RevokeNode makes the open tokens of a node useless.
func (l *Ledger) RevokeNode(ctx context.Context, node string) error {
	return cas.Retry(ctx, func() error {
		return l.each(ctx, func(kv kvstore.KV, t *keyspacev1.Token) error {
			if t.GetNode() != node || t.GetRevoked() {
				return nil
			}
			t.Revoked = true
			return cas.Commit(ctx, l.kv, l.Put(cas.Record[*keyspacev1.Token]{Msg: t, Rev: kv.ModRevision}))
		})
	})
}

// each calls fn with every token's record, however many there are; nil for one
// that cannot be read. It stops at the first error.
func (l *Ledger) each(ctx context.Context, fn func(kvstore.KV, *keyspacev1.Token) error) error {
	prefix := kvstore.KindPrefix(kvstore.Private, l.own, kvstore.KindToken)
	_, err := inspect.Walk(ctx, l.kv, prefix, func(kv kvstore.KV) error {
		t := &keyspacev1.Token{}
		if proto.Unmarshal(kv.Value, t) != nil {
			t = nil
		}
		return fn(kv, t)
	})
	if err != nil {
		return fmt.Errorf("look through the tokens: %w", err)
	}
	return nil
}
