// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

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
	return a.Allocate(ctx, ls)
}

// Release implements identities.
func (n *numbers) Release(ctx context.Context, ls labels.Set) error {
	a, err := n.await(ctx)
	if err != nil {
		return err
	}
	return a.Release(ctx, ls)
}
