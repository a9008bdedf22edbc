// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// identityCheck is how often the store's history is looked at, and how long to
// wait after a failure.
const identityCheck = time.Second

// numbers allocates identities. Which range is the cluster's is known only from
// its Cluster record: until that has been read, callers wait.
type numbers struct {
	cfg   allocator.Config
	space identity.Space
	log   *slog.Logger

	once  sync.Once
	known chan struct{}
	alloc *allocator.Allocator // set before known is closed
	err   error

	mu sync.Mutex
	// Why there was no number for a new endpoint, and for one whose number
	// became another's; nil when there was.
	noneNew, noneMoved error
}

func newNumbers(cfg *Config, space identity.Space, kv kvstore.Client, cache allocator.Cache, log *slog.Logger) *numbers {
	return &numbers{
		cfg:   allocator.Config{Cluster: cfg.Cluster, Node: cfg.Node, Client: kv, Cache: cache, Log: log},
		space: space, log: log, known: make(chan struct{}),
	}
}

// setCluster tells the cluster's id; only the first call counts.
func (n *numbers) setCluster(id uint32) {
	n.once.Do(func() {
		n.cfg.First, n.cfg.Last = n.space.Range(id)
		n.alloc, n.err = allocator.New(n.cfg)
		close(n.known)
	})
}

func (n *numbers) await(ctx context.Context) (*allocator.Allocator, error) {
	select {
	case <-n.known:
		return n.alloc, n.err
	case <-ctx.Done():
		return nil, fmt.Errorf("the cluster's record has not been read: %w", ctx.Err())
	}
}

// Allocate implements identities.
func (n *numbers) Allocate(ctx context.Context, ls labels.Set) (identity.Number, error) {
	a, err := n.await(ctx)
	if err != nil {
		return 0, err
	}
	number, err := a.Allocate(ctx, ls)
	n.note(&n.noneNew, err)
	return number, err
}

// Adopt implements identities.
func (n *numbers) Adopt(ctx context.Context, ls labels.Set, number identity.Number) error {
	a, err := n.await(ctx)
	if err != nil {
		return err
	}
	a.Adopt(ls, number)
	return nil
}

// note keeps an error if it says that no number is free.
func (n *numbers) note(in *error, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*in = nil
	if errors.Is(err, allocator.ErrExhausted) {
		*in = err
	}
}

// problems say that numbers are missing, and for what.
func (n *numbers) problems() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	if n.noneNew != nil {
		out = append(out, "a workload cannot start: "+n.noneNew.Error())
	}
	if n.noneMoved != nil {
		out = append(out, "a workload has a number that is of other labels now: "+n.noneMoved.Error())
	}
	return out
}

// Release implements identities.
func (n *numbers) Release(ctx context.Context, ls labels.Set) error {
	a, err := n.await(ctx)
	if err != nil {
		return err
	}
	return a.Release(ctx, ls)
}

// confirm puts back what vanished of the identities in use, and returns those
// whose labels have another number now.
func (n *numbers) confirm(ctx context.Context) ([]allocator.Move, error) {
	a, err := n.await(ctx)
	if err != nil {
		return nil, err
	}
	moves, err := a.Confirm(ctx)
	n.note(&n.noneMoved, err)
	return moves, err
}

// concerned reports whether what the store says of identities in use is to be
// confirmed.
func (n *numbers) concerned(b store.Batch) bool {
	select {
	case <-n.known:
		return n.err == nil && n.alloc.Concerned(b)
	default:
		return false // none is in use yet; what is adopted is confirmed once
	}
}

// unreferenced reports whether a reference of this node to an identity in use is
// to be put back.
func (n *numbers) unreferenced(b store.Batch) bool {
	select {
	case <-n.known:
		return n.err == nil && n.alloc.Unreferenced(b)
	default:
		return false
	}
}

// pruneRefs removes this node's references to numbers that it does not use.
func (n *numbers) pruneRefs(ctx context.Context) error {
	a, err := n.await(ctx)
	if err != nil {
		return err
	}
	count, err := a.PruneRefs(ctx)
	if count > 0 {
		n.log.Info("removed stale references to identities", "count", count)
	}
	return err
}

// putBack has what somebody else removed or changed of this node's own keys
// written again: those of the writer, and, when they are concerned, what it holds
// of the identities in use.
func (a *Agent) putBack(b store.Batch, identities bool) {
	if identities {
		a.view.wakeIdentities()
	}
	a.writer.Observe(b)
}

// keepIdentities confirms the identities in use whenever one of the cluster's
// vanished, one in use became unreadable or another's, this node's reference to one
// vanished, or the store has another history, until the context ends. A store that
// fails is asked again.
func (a *Agent) keepIdentities(ctx context.Context) error {
	tick := time.NewTicker(identityCheck)
	defer tick.Stop()
	incarnation := ""
	for {
		var again bool
		select {
		case <-ctx.Done():
			return nil
		case <-a.view.identityLost:
			again = true
		case <-tick.C:
			now := a.incarnation()
			again = incarnation != "" && now != incarnation
			incarnation = now
		}
		for again && ctx.Err() == nil {
			moves, err := a.ids.confirm(ctx)
			for _, m := range moves {
				a.endpoints.renumber(ctx, m)
			}
			if again = err != nil; again {
				a.log.Warn("confirm identities, trying again", "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(identityCheck):
				}
			}
		}
	}
}
