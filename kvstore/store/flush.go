// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	maxOps = 128
	// maxTxnBytes keeps a transaction below etcd's limit of 1.5 MiB for a
	// request; one record is at most 1 MiB.
	maxTxnBytes = 1 << 20
)

// errResync ends a session to compare all again.
var errResync = errors.New("time to compare with the store")

// session reads what is stored, then writes what differs as it comes, until the
// connection breaks or it is time to compare again.
func (w *Writer) session(ctx context.Context) (served bool, err error) {
	rev, err := w.load(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, w.cfg.Resync, errResync)
	defer cancel()
	broken, watching := make(chan error, 1), make(chan struct{})
	go func() { // ends with ctx
		// Nothing is ever stored here: the watch only tells when the
		// connection breaks, after which the store may be another.
		var once sync.Once
		broken <- w.cfg.Client.Watch(ctx, w.cfg.Prefixes[0]+"~/", rev+1, func(kvstore.WatchBatch) error {
			once.Do(func() { close(watching) })
			return nil
		})
	}()
	select { // what breaks before this watch stands would not be noticed
	case <-watching:
	case err := <-broken:
		return false, quiet(ctx, err)
	}
	due := time.NewTimer(w.cfg.Resync)
	defer due.Stop()
	for {
		wait, err := w.flush(ctx)
		if err != nil {
			cancel()
			<-broken //nolint:errcheck // the flush's error is the cause
			return true, quiet(ctx, err)
		}
		if wait > 0 {
			due.Reset(wait)
		}
		select {
		case <-w.wake:
		case <-due.C:
		case err := <-broken:
			return true, quiet(ctx, err)
		}
	}
}

// quiet drops the error of a session that only ran its time.
func quiet(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errResync) {
		return nil
	}
	return err
}

// load reads the own keys of all prefixes and marks what differs.
func (w *Writer) load(ctx context.Context) (rev int64, err error) {
	w.listing()
	stored := map[string]have{}
	for _, prefix := range w.cfg.Prefixes {
		after, at := "", int64(0)
		for {
			p, err := w.cfg.Client.List(ctx, prefix, after, defaultPage, at)
			if err != nil {
				return 0, err
			}
			at = p.Revision
			rev = max(rev, at)
			for _, kv := range p.KVs {
				if w.owns(kv) {
					stored[kv.Key] = fromKV(kv)
				}
			}
			if !p.More || len(p.KVs) == 0 {
				break
			}
			after = p.KVs[len(p.KVs)-1].Key
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loaded(stored)
	clear(w.refused) // rights may have changed since
	w.compare()
	w.signal()
	return rev, nil
}

func (w *Writer) owns(kv kvstore.KV) bool {
	if !w.mine(kv.Key) {
		return false
	}
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return false
	}
	_, wanted := w.lookup(kv.Key)
	return wanted || w.cfg.Owned == nil || w.cfg.Owned(k, kv.Value)
}

func (w *Writer) lookup(key string) (desired, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.desired[key]
	return d, ok
}

// compare marks all keys dirty that are not stored as they are wanted; those
// that are keep their mark until a flush finds out. The caller holds mu.
func (w *Writer) compare() {
	for key, d := range w.desired {
		if _, ok := w.dirty[key]; !ok && !w.satisfied(key, d) {
			w.dirty[key] = span{}
		}
	}
	if !w.pruning {
		return
	}
	for key, h := range w.stored {
		if _, ok := w.desired[key]; ok || h.gone {
			continue
		}
		k, err := kvstore.ParseKey(key)
		if err != nil {
			continue
		}
		w.desired[key] = desired{key: k, gone: true}
		if _, ok := w.dirty[key]; !ok {
			w.dirty[key] = span{}
		}
	}
}

// satisfied reports whether the store has a key as it is wanted. The caller
// holds mu.
func (w *Writer) satisfied(key string, d desired) bool {
	h, ok := w.stored[key]
	if exists := ok && !h.gone; d.gone || !exists {
		return d.gone && !exists
	}
	return kvstore.SameRecord(d.key, h.value, d.value)
}

// write is one key about to be committed.
type write struct {
	desired
	name string
	last uint64
}

func (w write) op() kvstore.Op {
	if w.gone {
		return kvstore.Delete(w.name)
	}
	return kvstore.Put(w.name, w.value)
}

// flush commits what is dirty, in transactions, until nothing is but what has to
// wait, and says how long that has; 0 if there is nothing.
func (w *Writer) flush(ctx context.Context) (time.Duration, error) {
	for {
		due, wait := w.due()
		if len(due) == 0 {
			w.failed(nil)
			return wait, nil
		}
		for len(due) > 0 {
			n := txnSize(due)
			if err := w.commit(ctx, due[:n]); err != nil {
				return 0, err
			}
			due = due[n:]
		}
	}
}

// due drops the marks of what turns out to be stored already and returns the
// rest in the order of writing, and how long the first of those takes that have to
// wait.
func (w *Writer) due() (out []write, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, s := range w.dirty {
		d := w.desired[key]
		switch {
		case w.refused[key] != nil:
		case w.satisfied(key, d) && (!d.gone || s.last == 0 || w.cfg.Owned == nil):
			// Of keys that Owned leaves out it is not known whether they
			// are stored: a Remove deletes them in any case.
			w.settled(key)
		default:
			if left := w.waits(key, s); left > 0 {
				if wait == 0 || left < wait {
					wait = left
				}
				continue
			}
			out = append(out, write{d, key, s.last})
		}
	}
	w.announce()
	slices.SortFunc(out, inOrder)
	return out, wait
}

// settled forgets the mark of a key, and all of one that is gone. The caller
// holds mu.
func (w *Writer) settled(key string) {
	delete(w.dirty, key)
	if w.desired[key].gone {
		delete(w.desired, key)
	}
}

// inOrder puts before deletions, puts by the order of kinds, deletions against
// it: nothing ever refers to what is not there.
func inOrder(a, b write) int {
	switch {
	case a.gone != b.gone && b.gone:
		return -1
	case a.gone != b.gone:
		return 1
	}
	c := cmp.Compare(rank(a.key.Kind), rank(b.key.Kind))
	if a.gone {
		c = -c
	}
	return cmp.Or(c, cmp.Compare(a.name, b.name))
}

func rank(k kvstore.Kind) int {
	if i := slices.Index(kvstore.PublicKinds, k); i >= 0 {
		return i
	}
	return len(kvstore.PublicKinds)
}

func txnSize(due []write) int {
	size := 0
	for i, x := range due {
		size += len(x.name) + len(x.value)
		if i == maxOps || i > 0 && size > maxTxnBytes {
			return i
		}
	}
	return len(due)
}

// commit writes one transaction. If access to one of its keys is denied the
// keys are written one by one and those denied set aside.
func (w *Writer) commit(ctx context.Context, ws []write) error {
	ops := make([]kvstore.Op, len(ws))
	for i, x := range ws {
		ops[i] = x.op()
	}
	res, err := w.cfg.Client.Txn(ctx, nil, ops, nil)
	switch {
	case errors.Is(err, kvstore.ErrDenied) && len(ws) > 1:
		for _, x := range ws {
			if err := w.commit(ctx, []write{x}); err != nil {
				return err
			}
		}
		return nil
	case errors.Is(err, kvstore.ErrDenied):
		w.refuse(ws[0].name, err)
		return nil
	case err != nil:
		return err
	}
	w.committed(ws, res.Revision)
	return nil
}

func (w *Writer) refuse(key string, err error) {
	w.cfg.Log.Error("write refused", "key", key, "error", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused[key] = err
	w.announce()
}

func (w *Writer) committed(ws []write, rev int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range ws {
		// What Observe heard of before this answer came may be newer.
		if w.stored[x.name].rev <= rev {
			w.stored[x.name] = have{value: x.value, rev: rev, gone: x.gone}
		}
		if s := w.dirty[x.name]; s.last == x.last {
			w.settled(x.name)
		} else { // set again meanwhile
			w.dirty[x.name] = span{first: x.last + 1, last: s.last}
		}
		w.disturbed(x.name)
	}
	w.announce()
}
