// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"errors"
	"fmt"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Move says that the labels have another number now: endpoints with Old take
// New.
type Move struct {
	Set      labels.Set
	Old, New identity.Number
}

// Confirm checks every number in use against the store and puts back what
// vanished or cannot be read any more: the number, its labels and this node's
// reference. Where someone else has taken the labels or the number meanwhile, the
// labels move to the newer number; where there is none for them, the others are
// confirmed all the same and the error is an ErrExhausted. Call it when Concerned or
// Unreferenced says so, when an identity in use vanishes, after a restart, and when
// the store has another history. It costs one round trip for each number that is as
// it should be, and stops at the first error of the store; what moved until then is
// returned with it.
func (a *Allocator) Confirm(ctx context.Context) ([]Move, error) {
	var moves []Move
	var short []error
	for _, e := range a.sorted() {
		if err := e.acquire(ctx); err != nil {
			return moves, fmt.Errorf("confirm identities: %w", err)
		}
		old := a.numberOf(e)
		n, err := old, error(nil)
		if old != 0 {
			n, err = a.confirm(ctx, e, old)
			if err == nil {
				a.assign(e, n)
			}
		}
		e.release()
		if err != nil {
			err = fmt.Errorf("confirm identity %d of %s: %w", old, e.set, err)
			if !errors.Is(err, ErrExhausted) {
				return moves, errors.Join(append(short, err)...)
			}
			short = append(short, err)
			continue
		}
		if n != old {
			a.cfg.Log.Warn("identity moved to another number", "labels", e.set.String(), "old", old, "new", n)
			moves = append(moves, Move{e.set, old, n})
		}
	}
	return moves, errors.Join(short...)
}

// confirm returns the number that an entry's labels have in the store after
// putting back what is missing. The caller holds the entry.
func (a *Allocator) confirm(ctx context.Context, e *entry, n identity.Number) (identity.Number, error) {
	for range maxAttempts {
		res, err := a.cfg.Client.Txn(ctx, nil, []kvstore.Op{
			kvstore.Read(a.labelsKey(e)), kvstore.Read(a.idKey(n)), kvstore.Read(a.refKey(n)), kvstore.Read(a.retiredKey(n)),
		}, nil)
		if err != nil {
			return 0, err
		}
		s := state{byLabels: half(res.Gets[0]), id: half(res.Gets[1]), ref: half(res.Gets[2]), retired: half(res.Gets[3])}
		if a.newer(s, e, n) {
			return a.takeAsking(ctx, e)
		}
		if s.byLabels.legible() && s.id.legible() && len(s.ref) > 0 {
			return n, nil
		}
		done, err := a.restore(ctx, e, n, s)
		if err != nil {
			return 0, err
		}
		if done {
			a.cfg.Log.Info("identity put back", "labels", e.set.String(), "number", n)
			return n, nil
		}
	}
	return 0, ErrContended
}

// half is one key of an identity as it was read, nil when there is none.
type half []kvstore.KV

// legible reports whether it is there and can be read.
func (h half) legible() bool {
	if len(h) == 0 {
		return false
	}
	k, err := kvstore.ParseKey(h[0].Key)
	if err == nil {
		_, err = kvstore.Decode(k, h[0].Value)
	}
	return err == nil
}

func (h half) unchanged(key string) kvstore.Cmp {
	if len(h) == 0 {
		return kvstore.Absent(key)
	}
	return kvstore.AtRevision(key, h[0].ModRevision)
}

// state is what the store has of an identity in use.
type state struct {
	byLabels, id, ref, retired half
}

// newer reports whether somebody else has the labels or the number, or had it until
// it was retired: then others may still take it for theirs. A record that cannot be
// read says neither, but of the number only this node's reference, or the labels'
// key, then tells that it was not given to others: a number that is referred to is
// not collected.
func (a *Allocator) newer(s state, e *entry, n identity.Number) bool {
	if s.byLabels.legible() {
		if m, ok := a.named(s.byLabels[0]); !ok || m != n {
			return true
		}
	}
	if s.id.legible() {
		return !a.carries(s.id[0], e)
	}
	if len(s.retired) > 0 && !a.retiredOf(s.retired[0], e) {
		return true
	}
	return len(s.id) > 0 && !s.byLabels.legible() && len(s.ref) == 0
}

// restore writes what is missing or cannot be read if all keys are as they were
// read.
func (a *Allocator) restore(ctx context.Context, e *entry, n identity.Number, s state) (bool, error) {
	all, err := a.records(e, n)
	if err != nil {
		return false, err
	}
	var ops []kvstore.Op
	var conds []kvstore.Cmp
	for i, h := range []half{s.id, s.byLabels} {
		if !h.legible() {
			ops = append(ops, all[i])
		}
		conds = append(conds, h.unchanged(all[i].Key))
	}
	conds = append(conds, s.ref.unchanged(all[2].Key), s.retired.unchanged(a.retiredKey(n)))
	res, err := a.cfg.Client.Txn(ctx, conds, append(ops, all[2]), nil)
	if err == nil && res.Succeeded {
		a.referred(e, res.Revision)
	}
	return res.Succeeded, err
}

// PruneRefs removes this node's references to numbers that are not in use on
// it: those of an earlier life, and those that a Release could not remove. It
// returns how many.
func (a *Allocator) PruneRefs(ctx context.Context) (int, error) {
	prefix := kvstore.KindPrefix(kvstore.Local, a.cfg.Cluster, kvstore.KindRef)
	removed, after, rev := 0, "", int64(0)
	for {
		p, err := a.cfg.Client.List(ctx, prefix, after, 1000, rev)
		if err != nil {
			return removed, fmt.Errorf("prune references: %w", err)
		}
		rev = p.Revision
		for _, kv := range p.KVs {
			ok, err := a.pruneRef(ctx, kv)
			if err != nil {
				return removed, fmt.Errorf("prune references: %w", err)
			}
			if ok {
				removed++
			}
		}
		if !p.More || len(p.KVs) == 0 {
			return removed, nil
		}
		after = p.KVs[len(p.KVs)-1].Key
	}
}

// pruneRef removes a reference unless it is another's, in use, or put again
// since it was listed. Whoever allocates puts the reference before its number
// is in InUse, but then at a newer revision.
func (a *Allocator) pruneRef(ctx context.Context, kv kvstore.KV) (bool, error) {
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil || k.Names[1] != a.cfg.Node {
		return false, nil
	}
	n, ok := kvstore.ParseNumber(k.Names[0])
	if !ok {
		return false, nil
	}
	if _, used := a.InUse()[identity.Number(n)]; used {
		return false, nil
	}
	res, err := a.cfg.Client.Txn(ctx, []kvstore.Cmp{kvstore.AtRevision(kv.Key, kv.ModRevision)},
		[]kvstore.Op{kvstore.Delete(kv.Key)}, nil)
	return res.Succeeded, err
}
