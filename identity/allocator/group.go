// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"slices"
	"sync"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	// inFlight is how many transactions of new numbers are under way at once;
	// what comes meanwhile waits and shares the next one.
	inFlight = 2
	// groupSize of them fit into one transaction: each has three compares and
	// three writes.
	groupSize = kvstore.MaxTxnOps / 3
)

// creation is the transaction that makes one number.
type creation struct {
	number       identity.Number
	cmps         []kvstore.Cmp
	thens, elses []kvstore.Op
	done         chan created // capacity 1
}

// created is what became of it.
type created struct {
	res kvstore.TxnResult
	err error
}

// group commits creations: a single one at once, and many callers' together,
// because a store takes a transaction of many writes about as fast as one of
// three. A transaction holds only if all of it does; the parts of one that does
// not are tried one by one.
type group struct {
	client kvstore.Client

	mu      sync.Mutex
	busy    int
	waiting []*creation
}

// txn commits c and returns what a transaction of its own would have. The
// creations of callers that wait at the same time have different label sets.
func (g *group) txn(ctx context.Context, c *creation) (kvstore.TxnResult, error) {
	g.mu.Lock()
	if g.busy < inFlight {
		g.busy++
		g.mu.Unlock()
		defer g.next(ctx)
		return g.client.Txn(ctx, c.cmps, c.thens, c.elses)
	}
	c.done = make(chan created, 1)
	g.waiting = append(g.waiting, c)
	g.mu.Unlock()
	select {
	case r := <-c.done:
		return r.res, r.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.waiting, c); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	return kvstore.TxnResult{}, ctx.Err()
}

// next lets those who wait go, or notes that one transaction fewer is under way.
// What it starts ends with the client's deadline.
func (g *group) next(ctx context.Context) {
	now := g.take()
	if len(now) == 0 {
		return
	}
	ctx = context.WithoutCancel(ctx) // that one caller gave up is nothing to the others
	go func() {
		g.commit(ctx, now)
		g.next(ctx)
	}()
}

// take removes a group from those who wait: no two with the same number.
func (g *group) take() (now []*creation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	numbers := map[identity.Number]bool{}
	later := g.waiting[:0]
	for _, c := range g.waiting {
		if len(now) == groupSize || numbers[c.number] {
			later = append(later, c)
			continue
		}
		numbers[c.number] = true
		now = append(now, c)
	}
	clear(g.waiting[len(later):])
	if g.waiting = later; len(now) == 0 {
		g.busy--
	}
	return now
}

func (g *group) commit(ctx context.Context, cs []*creation) {
	var cmps []kvstore.Cmp
	var thens []kvstore.Op
	for _, c := range cs {
		cmps, thens = append(cmps, c.cmps...), append(thens, c.thens...)
	}
	res, err := g.client.Txn(ctx, cmps, thens, nil)
	if err != nil || res.Succeeded {
		for _, c := range cs {
			c.done <- created{res, err}
		}
		return
	}
	var all sync.WaitGroup
	for _, c := range cs {
		all.Go(func() {
			res, err := g.client.Txn(ctx, c.cmps, c.thens, c.elses)
			c.done <- created{res, err}
		})
	}
	all.Wait()
}
