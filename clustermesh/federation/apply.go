// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	maxTxnOps   = 128
	maxTxnBytes = 1 << 20
	txnParallel = 4
	txnTries    = 5
)

// planned is one write or deletion below state/<peer>/.
type planned struct {
	key     string
	value   []byte
	deleted bool
	rank    int
}

// rankOf orders the kinds of one flush: identities, nodes, addresses, the rest;
// deletions come after and the other way round.
func rankOf(k kvstore.Kind, deleted bool) int {
	r := 3
	switch k {
	case kvstore.KindCluster, kvstore.KindIdentity, kvstore.KindIdentityLabels:
		r = 0
	case kvstore.KindNode:
		r = 1
	case kvstore.KindIP, kvstore.KindVTEP:
		r = 2
	}
	if deleted {
		return 7 - r
	}
	return r
}

// commit writes all ops in as few transactions as allowed: those of one rank at
// once, a rank only after the one before, and final in the last transaction.
func (im *importer) commit(ctx context.Context, ops []planned, final []kvstore.Op) error {
	slices.SortStableFunc(ops, func(a, b planned) int { return cmp.Compare(a.rank, b.rank) })
	txns := chunks(ops, len(final))
	for i := 0; i < len(txns); {
		last := i + 1
		for last < len(txns) && txns[last].rank == txns[i].rank {
			last++
		}
		now := txns[i:last]
		if last == len(txns) && len(final) > 0 {
			now = now[:len(now)-1] // it goes alone, with final
		}
		if err := im.parallel(ctx, now); err != nil {
			return err
		}
		i = last
	}
	if len(final) == 0 {
		return nil
	}
	var rest []kvstore.Op
	if n := len(txns); n > 0 {
		rest = txns[n-1].ops
	}
	return im.txn(ctx, append(rest, final...))
}

// chunk is one transaction's worth; it holds one rank only, unless all that is
// to be written fits into one transaction.
type chunk struct {
	rank int
	ops  []kvstore.Op
}

func chunks(ops []planned, final int) []chunk {
	var out []chunk
	whole := len(ops)+final <= maxTxnOps
	size := 0
	for _, p := range ops {
		op := kvstore.Delete(p.key)
		if !p.deleted {
			op = kvstore.Put(p.key, p.value)
		}
		bytes := len(p.key) + len(p.value)
		n := len(out) - 1
		if n < 0 || len(out[n].ops) >= maxTxnOps-final || size+bytes > maxTxnBytes || (!whole && out[n].rank != p.rank) {
			out, size = append(out, chunk{rank: p.rank}), 0
			n++
		}
		out[n].ops = append(out[n].ops, op)
		size += bytes
	}
	return out
}

// oneTxn reports whether ops go into one transaction, with the position.
func oneTxn(ops []planned) bool {
	size := 0
	for _, p := range ops {
		size += len(p.key) + len(p.value)
	}
	return len(ops) < maxTxnOps && size <= maxTxnBytes
}

func (im *importer) parallel(ctx context.Context, txns []chunk) error {
	if len(txns) == 1 {
		return im.txn(ctx, txns[0].ops)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(txnParallel)
	for _, t := range txns {
		g.Go(func() error { return im.txn(ctx, t.ops) })
	}
	return g.Wait()
}

// txn commits ops while we hold the lock. All of them can be repeated, so it
// tries again when the store does not answer.
func (im *importer) txn(ctx context.Context, ops []kvstore.Op) error {
	b := backoff.New(im.cfg.BackoffMin, im.cfg.BackoffMax)
	for try := 1; ; try++ {
		res, err := im.kv.Txn(ctx, im.lock.Fence(), ops, nil)
		switch {
		case err == nil && res.Succeeded:
			im.sentry.wrote(ops, res.Revision)
			return nil
		case err == nil:
			return errLockLost
		case try == txnTries || errors.Is(err, kvstore.ErrDenied):
			return err
		}
		im.st.failed(fmt.Errorf("write mirror of %s: %w", im.peer, err))
		if err := b.Wait(ctx); err != nil {
			return err
		}
	}
}

// progressOp stores the position; the caller commits it.
func (im *importer) progressOp() kvstore.Op {
	im.stored, im.storedAt = proto.CloneOf(im.position), time.Now()
	im.checked = im.mirror.content()
	return im.putProgress()
}

func (im *importer) putProgress() kvstore.Op {
	kept := proto.CloneOf(im.stored)
	kept.Grant, kept.Content = im.guard.Hash(), im.checked
	return kvstore.Put(im.progressKey(), encode(kept))
}

// uncheck keeps a copy that is left between two transactions from being taken
// for a damaged one: until the next position its content is not checked.
func (im *importer) uncheck(ctx context.Context) error {
	if im.checked == nil || im.stored.GetIncarnation() == "" {
		return nil
	}
	im.checked = nil
	return im.txn(ctx, []kvstore.Op{im.putProgress()})
}

// encode renders our own records, which always can be.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}
