// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Stat sums up one kind of one cluster in one subtree, and how fast it changes.
type Stat struct {
	Branch
	Writes  int `json:"writes"`  // while it was watched
	Deletes int `json:"deletes"` // while it was watched
	// ChangesPerSecond is writes and deletes by time.
	ChangesPerSecond float64 `json:"changesPerSecond"`
}

// Stats sums up what is below the prefixes, then watches them for a while to
// count the changes; 0 counts none. It blocks that long. Kinds that only
// changed (the last key was deleted) are listed with 0 keys.
func Stats(ctx context.Context, c kvstore.Client, prefixes []string, watch time.Duration, limits kvstore.Limits) ([]Stat, error) {
	sums := map[[3]string]*Stat{}
	rev := int64(0)
	for _, p := range prefixes {
		branches, at, err := tree(ctx, c, p, rev, limits)
		if err != nil {
			return nil, err
		}
		rev = at
		for _, b := range branches {
			sums[[3]string{b.Subtree, b.Cluster, b.Kind}] = &Stat{Branch: b}
		}
	}
	if watch > 0 {
		if err := churn(ctx, c, prefixes, rev, watch, sums); err != nil {
			return nil, err
		}
	}
	out := make([]Stat, 0, len(sums))
	for _, s := range sums {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Stat) int {
		return cmp.Or(cmp.Compare(a.Subtree, b.Subtree), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Kind, b.Kind))
	})
	return out, nil
}

var errWatchedLong = errors.New("watched long enough")

func churn(ctx context.Context, c kvstore.Client, prefixes []string, rev int64, d time.Duration, sums map[[3]string]*Stat) error {
	start := time.Now()
	wctx, cancel := context.WithTimeoutCause(ctx, d, errWatchedLong)
	defer cancel()
	var mu sync.Mutex
	count := func(b kvstore.WatchBatch) error {
		mu.Lock()
		defer mu.Unlock()
		for _, ev := range b.Events {
			k, err := kvstore.ParseKey(ev.Key)
			if err != nil {
				k = kvstore.Key{}
			}
			at := [3]string{string(k.Subtree), k.Cluster, string(k.Kind)}
			s := sums[at]
			if s == nil {
				s = &Stat{Branch: Branch{Subtree: at[0], Cluster: at[1], Kind: at[2]}}
				sums[at] = s
			}
			if ev.Deleted {
				s.Deletes++
			} else {
				s.Writes++
			}
		}
		return nil
	}
	errs := make([]error, len(prefixes))
	var done sync.WaitGroup
	for i, p := range prefixes {
		done.Go(func() { errs[i] = c.Watch(wctx, p, rev+1, count) })
	}
	done.Wait()
	if !errors.Is(context.Cause(wctx), errWatchedLong) {
		return fmt.Errorf("count changes: %w", errors.Join(errs...))
	}
	seconds := time.Since(start).Seconds()
	for _, s := range sums {
		s.ChangesPerSecond = float64(s.Writes+s.Deletes) / seconds
	}
	return nil
}
