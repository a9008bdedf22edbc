// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const (
	rereadPage = 500
	// rereadLimited is how often what was too much is looked at again: something
	// else may have gone.
	rereadLimited = 10 * time.Second
	rereadMin     = 100 * time.Millisecond
	rereadMax     = 5 * time.Second
)

// lister is the store as a reading again needs it.
type lister interface {
	List(ctx context.Context, prefix, after string, limit, rev int64) (kvstore.Page, error)
}

// readAgain has a cluster's records read again soon. The caller holds mu.
func (g *grants) readAgain(of *granted) {
	of.due = true
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// run reads the records of clusters whose grant has changed, until the context
// ends.
func (g *grants) run(ctx context.Context, kv lister, limits kvstore.Limits) error {
	defer close(g.ended)
	wait := backoff.New(rereadMin, rereadMax)
	t := time.NewTicker(rereadLimited)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wake:
		case <-t.C:
			g.retryLimited()
		}
		for name := g.next(); name != "" && ctx.Err() == nil; name = g.next() {
			if err := g.reread(ctx, name, kv, limits); err != nil && ctx.Err() == nil {
				g.log.Warn("records not judged by the new grant yet", "peer", name, "error", err)
				g.mu.Lock()
				g.of(name).due = true
				g.mu.Unlock()
				_ = wait.Wait(ctx) // its error is the context's
				continue
			}
			wait.Reset()
		}
	}
}

// retryLimited makes the clusters due of which something was too much.
func (g *grants) retryLimited() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, of := range g.clusters {
		if of.limited {
			of.limited = false
			g.readAgain(of)
		}
	}
}

// next takes a cluster that is due; empty when there is none. From now on what
// the reader brings of it is noted.
func (g *grants) next() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, of := range g.clusters {
		if of.due {
			of.due, of.touched = false, map[string]struct{}{}
			return name
		}
	}
	return ""
}

// reread judges all records of a cluster by its grant of now. What the reader
// brings meanwhile is newer, and judged by the same grant.
func (g *grants) reread(ctx context.Context, name string, kv lister, limits kvstore.Limits) error {
	after, rev := "", int64(0)
	defer func() {
		g.mu.Lock()
		g.of(name).touched = nil
		g.mu.Unlock()
	}()
	for {
		page, err := kv.List(ctx, kvstore.Prefix(kvstore.State, name), after, rereadPage, rev)
		if err != nil {
			return fmt.Errorf("list the records of %s: %w", name, err)
		}
		if rev = page.Revision; len(page.KVs) > 0 {
			after = page.KVs[len(page.KVs)-1].Key
			g.rejudge(name, page.KVs, limits)
		}
		if !page.More {
			return nil
		}
	}
}

func (g *grants) rejudge(name string, kvs []kvstore.KV, limits kvstore.Limits) {
	var b store.Batch
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.of(name)
	for _, kv := range kvs {
		if _, newer := of.touched[kv.Key]; newer {
			continue
		}
		k, err := kvstore.ParseKey(kv.Key)
		if err != nil {
			continue // the reader has said so
		}
		record, err := limits.Decode(k, kv.Value)
		if err != nil {
			continue
		}
		_, had := of.passed[k.Kind][kv.Key]
		kv.ModRevision = 0 // of what was not in order nothing follows
		c := store.Change{Key: k, KV: kv, Record: record}
		_, refusedBefore := of.refused[kv.Key]
		pass := g.judge(of, &c)
		_, cut := of.refused[kv.Key]
		switch {
		case pass && (!had || refusedBefore || cut):
			b.Changes = append(b.Changes, c)
		case !pass && had:
			g.drop(of, k.Kind, kv.Key)
			b.Changes = append(b.Changes, store.Change{Key: k, KV: kvstore.KV{Key: kv.Key}, Deleted: true})
		}
	}
	if len(b.Changes) > 0 {
		g.use(b)
	}
}

// problems tells for each cluster what of it is refused.
func (g *grants) problems() []*hawserv1.Problem {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*hawserv1.Problem
	for _, name := range slices.Sorted(maps.Keys(g.clusters)) {
		of := g.clusters[name]
		if len(of.refused) == 0 {
			continue
		}
		first := slices.Min(slices.Collect(maps.Keys(of.refused)))
		out = append(out, &hawserv1.Problem{
			Object:  "records of " + name,
			Problem: fmt.Sprintf("%d are outside of what it is granted and are not used; such as %s", len(of.refused), strings.Replace(of.refused[first], kvstore.Root, "", 1)),
			Fix:     "what it is granted is shown and widened by: hawser mesh grant " + name + "; what lies must be mended in " + name + ", or in this cluster's API server, which should not have imported it",
		})
	}
	return out
}
