// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	maxAttempts = 64
	randomPicks = 32
)

// take finds the number of an entry's labels, or makes one, and puts this
// node's reference to it. The caller holds the entry.
func (a *Allocator) take(ctx context.Context, e *entry) (identity.Number, error) {
	if n, rev, ok := a.cfg.Cache.ByLabels(e.hash); ok {
		id := a.idKey(n)
		res, err := a.cfg.Client.Txn(ctx, []kvstore.Cmp{kvstore.AtRevision(id, rev)},
			[]kvstore.Op{kvstore.Put(a.refKey(n), nil)}, nil)
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			a.referred(e, res.Revision)
			return n, nil
		}
	}
	return a.takeAsking(ctx, e)
}

// takeAsking goes by the store alone, whatever the cache knows.
func (a *Allocator) takeAsking(ctx context.Context, e *entry) (identity.Number, error) {
	tried := map[identity.Number]bool{}
	vacant := kvstore.Absent(a.labelsKey(e)) // what must hold of the labels key
	for range maxAttempts {
		n, err := a.pick(tried)
		if err != nil {
			return 0, err
		}
		tried[n] = true
		won, held, err := a.create(ctx, e, n, vacant)
		switch {
		case err != nil:
			return 0, err
		case won:
			return n, nil
		case held == nil:
			vacant = kvstore.Absent(a.labelsKey(e))
			continue
		case vacant.Target == kvstore.CmpModRev && held.ModRevision == vacant.Rev:
			continue // it was the number that is not free
		}
		n, usable, err := a.join(ctx, e, *held)
		switch {
		case err != nil:
			return 0, err
		case usable == joined:
			return n, nil
		case usable == useless:
			// It names a number of other labels: take its place.
			vacant = kvstore.AtRevision(held.Key, held.ModRevision)
		}
	}
	return 0, ErrContended
}

// create writes number, labels and reference if the number is free and the
// labels key is as it must be. Otherwise held is the labels key, if there is
// one.
func (a *Allocator) create(ctx context.Context, e *entry, n identity.Number, vacant kvstore.Cmp) (won bool, held *kvstore.KV, err error) {
	ops, err := a.records(e, n)
	if err != nil {
		return false, nil, err
	}
	res, err := a.group.txn(ctx, &creation{
		number: n, cmps: []kvstore.Cmp{vacant, kvstore.Absent(a.idKey(n)), kvstore.Absent(a.retiredKey(n))},
		thens: ops, elses: []kvstore.Op{kvstore.Read(a.labelsKey(e))},
	})
	if err == nil && res.Succeeded {
		a.referred(e, res.Revision)
		return true, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	if kvs := res.Gets[0]; len(kvs) > 0 {
		held = &kvs[0]
	}
	return false, held, nil
}

// records are the writes that make a number, its labels and the reference.
func (a *Allocator) records(e *entry, n identity.Number) ([]kvstore.Op, error) {
	now := a.cfg.Now().UnixNano()
	id := kvstore.NewKey(kvstore.State, a.cfg.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(n)))
	idValue, err := kvstore.Encode(id, &keyspacev1.Identity{Number: uint32(n), Labels: e.set.Strings(), UpdatedAt: now})
	if err != nil {
		return nil, err
	}
	byLabels := kvstore.NewKey(kvstore.State, a.cfg.Cluster, kvstore.KindIdentityLabels, e.hash)
	refValue, err := kvstore.Encode(byLabels, &keyspacev1.IdentityRef{Number: uint32(n), UpdatedAt: now})
	if err != nil {
		return nil, err
	}
	return []kvstore.Op{
		kvstore.Put(id.String(), idValue),
		kvstore.Put(byLabels.String(), refValue),
		kvstore.Put(a.refKey(n), nil),
	}, nil
}

type outcome int

const (
	joined  outcome = iota
	lost            // the keys changed meanwhile: look again
	useless         // the labels key names a number that is not theirs
)

// join puts a reference to the number that a labels key names, and restores the
// number's own key if it is missing, but not that of a number that others had.
func (a *Allocator) join(ctx context.Context, e *entry, held kvstore.KV) (identity.Number, outcome, error) {
	n, ok := a.named(held)
	if !ok {
		return 0, useless, nil
	}
	at := kvstore.AtRevision(held.Key, held.ModRevision)
	res, err := a.cfg.Client.Txn(ctx, []kvstore.Cmp{at}, []kvstore.Op{kvstore.Read(a.idKey(n)), kvstore.Read(a.retiredKey(n))}, nil)
	if err != nil || !res.Succeeded {
		return 0, lost, err
	}
	conds := []kvstore.Cmp{at, kvstore.Absent(a.idKey(n))}
	ops := []kvstore.Op{kvstore.Put(a.refKey(n), nil)}
	if kvs := res.Gets[0]; len(kvs) > 0 {
		if !a.carries(kvs[0], e) {
			return 0, useless, nil
		}
		conds[1] = kvstore.AtRevision(a.idKey(n), kvs[0].ModRevision)
	} else {
		retired := half(res.Gets[1])
		if len(retired) > 0 && !a.retiredOf(retired[0], e) {
			return 0, useless, nil
		}
		conds = append(conds, retired.unchanged(a.retiredKey(n)))
		if ops, err = a.records(e, n); err != nil {
			return 0, lost, err
		}
	}
	res, err = a.cfg.Client.Txn(ctx, conds, ops, nil)
	if err != nil || !res.Succeeded {
		return 0, lost, err
	}
	a.referred(e, res.Revision)
	return n, joined, nil
}

// named is the number in a labels key, if it is one of this cluster's.
func (a *Allocator) named(kv kvstore.KV) (identity.Number, bool) {
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return 0, false
	}
	m, err := kvstore.Decode(k, kv.Value)
	ref, ok := m.(*keyspacev1.IdentityRef)
	if err != nil || !ok {
		return 0, false
	}
	n := identity.Number(ref.GetNumber())
	return n, n >= a.cfg.First && n <= a.cfg.Last
}

// carries reports whether a number key has the entry's labels.
func (a *Allocator) carries(kv kvstore.KV, e *entry) bool {
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return false
	}
	m, err := kvstore.Decode(k, kv.Value)
	id, ok := m.(*keyspacev1.Identity)
	return err == nil && ok && slices.Equal(id.GetLabels(), e.set.Strings())
}

// retiredOf reports whether a retired key says that the number stood for the
// entry's labels, and for no others since.
func (a *Allocator) retiredOf(kv kvstore.KV, e *entry) bool {
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return false
	}
	m, err := kvstore.Decode(k, kv.Value)
	ref, ok := m.(*keyspacev1.IdentityRef)
	return err == nil && ok && ref.GetLabelsHash() == e.hash
}

// pick chooses a number that is not known to be taken: at random, so that nodes
// rarely choose the same, and in order once chance finds none. Local number 0 is
// never given.
func (a *Allocator) pick(tried map[identity.Number]bool) (identity.Number, error) {
	first, count := a.cfg.First+1, uint32(a.cfg.Last-a.cfg.First)
	free := func(n identity.Number) bool { return !tried[n] && !a.cfg.Cache.Taken(n) }
	for range randomPicks {
		if n := first + identity.Number(rand.Uint32N(count)); free(n) {
			return n, nil
		}
	}
	start := rand.Uint32N(count)
	for i := range count {
		if n := first + identity.Number((start+i)%count); free(n) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: all of %d-%d are in use or retired", ErrExhausted, first, a.cfg.Last)
}

func (a *Allocator) idKey(n identity.Number) string {
	return kvstore.NewKey(kvstore.State, a.cfg.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(n))).String()
}

func (a *Allocator) labelsKey(e *entry) string {
	return kvstore.NewKey(kvstore.State, a.cfg.Cluster, kvstore.KindIdentityLabels, e.hash).String()
}

func (a *Allocator) refKey(n identity.Number) string {
	return kvstore.NewKey(kvstore.Local, a.cfg.Cluster, kvstore.KindRef, kvstore.NumberName(uint32(n)), a.cfg.Node).String()
}

func (a *Allocator) retiredKey(n identity.Number) string {
	return kvstore.NewKey(kvstore.Local, a.cfg.Cluster, kvstore.KindRetired, kvstore.NumberName(uint32(n))).String()
}
