// SPDX-License-Identifier: Apache-2.0

// Package allocator gives a node's endpoints the identity numbers of their
// labels, without a lock: a number is taken by one transaction that compares
// what nobody else may have written meanwhile.
//
// Start with Allocator; Index is the view of the cluster's identities that spares
// it most round trips. The leader's garbage collection is the API server's: it
// deletes a number only while nothing is below its refs/.
package allocator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

// ErrExhausted says that every number of the cluster's range is in use or
// retired.
var ErrExhausted = errors.New("no free identity number is left in the cluster's range")

// ErrContended says that others took every number that was tried.
var ErrContended = errors.New("too many others allocate at the same time; try again")

// Cache is what is known of the cluster's identities without asking the store.
// It may be behind: what it says is compared in the transaction.
type Cache interface {
	// ByLabels is the number of a label set and the revision at which its
	// number key was last written.
	ByLabels(hash string) (n identity.Number, rev int64, ok bool)
	// Taken reports whether a number is known to be in use or retired.
	Taken(n identity.Number) bool
}

// Config is for whom numbers are allocated.
type Config struct {
	Cluster string
	// First and Last bound the cluster's numbers: identity.Space.Range.
	First, Last identity.Number
	Node        string
	Client      kvstore.Client
	Cache       Cache
	Now         func() time.Time // nil means time.Now
	Log         *slog.Logger
}

// Validate says what is wrong, all problems joined.
func (c Config) Validate() error {
	var errs []error
	if err := kvstore.ValidateClusterName(c.Cluster); err != nil {
		errs = append(errs, err)
	}
	if c.First <= identity.MaxReserved || c.Last <= c.First || c.Last.IsLocal() {
		errs = append(errs, fmt.Errorf("identity range %d-%d is not one of a cluster", c.First, c.Last))
	}
	if c.Node == "" || c.Client == nil || c.Cache == nil {
		errs = append(errs, errors.New("node, client and cache are all needed"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("identity allocator: %w", err)
	}
	return nil
}

// Allocator counts the users of each number on its node and keeps one reference
// in the store for each number in use. It is safe for concurrent use; callers
// with the same labels wait for one transaction, others do not wait for them.
type Allocator struct {
	cfg   Config
	group *group

	mu      sync.Mutex
	entries map[string]*entry // by hash of the labels
	// unreadable are the keys of identities in use that Concerned was last told of.
	unreadable map[string]bool
}

// entry is one label set in use, or about to be.
type entry struct {
	hash string
	set  labels.Set
	lock chan struct{} // capacity 1; held while the store is asked

	// Guarded by Allocator.mu; number changes only while lock is held, too.
	users  int // including callers at work
	number identity.Number
	refRev int64 // at which this node's reference was last put
}

// New returns an Allocator. It starts no goroutine.
func New(cfg Config) (*Allocator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Allocator{cfg: cfg, group: &group{client: cfg.Client}, entries: map[string]*entry{}}, nil
}

// Allocate returns the number of a label set, taking a free one if the cluster
// has none for it, and counts one more user of it on this node. Only the first
// use on the node asks the store. The set must name the cluster
// (mesh:cluster=<own>) and hold no label that only Hawser sets; otherwise the
// error is a *kvstore.BadRecord. Each success needs one Release.
func (a *Allocator) Allocate(ctx context.Context, set labels.Set) (identity.Number, error) {
	k := kvstore.NewKey(kvstore.State, a.cfg.Cluster, kvstore.KindIdentityLabels, set.Hash())
	if err := kvstore.CheckLabels(k, set, set.Strings()); err != nil {
		return 0, fmt.Errorf("allocate identity of %s: %w", set, err)
	}
	e := a.enter(set)
	n, err := a.resolve(ctx, e)
	if err != nil {
		a.leave(e)
		a.forget(e)
		return 0, fmt.Errorf("allocate identity of %s: %w", set, err)
	}
	return n, nil
}

// enter finds or makes the entry and counts the caller as a user.
func (a *Allocator) enter(set labels.Set) *entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	hash := set.Hash()
	e := a.entries[hash]
	if e == nil {
		e = &entry{hash: hash, set: set, lock: make(chan struct{}, 1)}
		a.entries[hash] = e
	}
	e.users++
	return e
}

// leave takes back one user and reports whether that was the last one.
func (a *Allocator) leave(e *entry) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	e.users--
	return e.users == 0
}

// forget drops an entry that has no users. The caller does not hold it.
func (a *Allocator) forget(e *entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.users == 0 && a.entries[e.hash] == e {
		delete(a.entries, e.hash)
	}
}

func (a *Allocator) numberOf(e *entry) identity.Number {
	a.mu.Lock()
	defer a.mu.Unlock()
	return e.number
}

// assign records an entry's number. The caller holds the entry.
func (a *Allocator) assign(e *entry, n identity.Number) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e.number = n
}

// referred notes when an entry's reference was put.
func (a *Allocator) referred(e *entry, rev int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e.refRev = rev
}

func (a *Allocator) resolve(ctx context.Context, e *entry) (identity.Number, error) {
	if err := e.acquire(ctx); err != nil {
		return 0, err
	}
	defer e.release()
	if n := a.numberOf(e); n != 0 {
		return n, nil
	}
	n, err := a.take(ctx, e)
	if err != nil {
		return 0, err
	}
	a.assign(e, n)
	return n, nil
}

func (e *entry) acquire(ctx context.Context) error {
	select {
	case e.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *entry) release() { <-e.lock }

// Release takes back one use of a label set. With the last one on the node the
// reference in the store is removed; if that fails the use has ended all the
// same, and PruneRefs removes the reference later.
func (a *Allocator) Release(ctx context.Context, set labels.Set) error {
	a.mu.Lock()
	e := a.entries[set.Hash()]
	a.mu.Unlock()
	if e == nil {
		return fmt.Errorf("release identity of %s: it is not in use", set)
	}
	defer a.forget(e)
	if err := e.acquire(ctx); err != nil {
		a.leave(e)
		return fmt.Errorf("release identity of %s: %w", set, err)
	}
	defer e.release()
	n := a.numberOf(e)
	if !a.leave(e) || n == 0 {
		return nil
	}
	// Callers who want the same labels again wait for the entry meanwhile,
	// and then put the reference anew.
	a.assign(e, 0)
	if _, err := a.cfg.Client.Txn(ctx, nil, []kvstore.Op{kvstore.Delete(a.refKey(n))}, nil); err != nil {
		return fmt.Errorf("release identity %d: %w", n, err)
	}
	return nil
}

// InUse is a snapshot of the numbers in use on this node, with their labels.
func (a *Allocator) InUse() map[identity.Number]labels.Set {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[identity.Number]labels.Set, len(a.entries))
	for _, e := range a.entries {
		if e.number != 0 {
			out[e.number] = e.set
		}
	}
	return out
}

// Adopt counts a user of a number that this node used before its agent was
// restarted, without asking the store; call it before the first Allocate.
// Confirm checks all of them against the store.
func (a *Allocator) Adopt(set labels.Set, n identity.Number) {
	e := a.enter(set)
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.number == 0 {
		e.number = n
	}
}

// sorted are the entries in use, in a stable order.
func (a *Allocator) sorted() []*entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*entry, 0, len(a.entries))
	for _, e := range a.entries {
		out = append(out, e)
	}
	slices.SortFunc(out, func(x, y *entry) int { return strings.Compare(x.hash, y.hash) })
	return out
}
