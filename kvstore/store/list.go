// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hawser-mesh/hawser/kvstore"
)

// errHistoryChanged ends a listing that may mix two histories, and a watch under
// whose feet the history got another name.
var errHistoryChanged = errors.New("the store's history has another name than before")

// list delivers what is stored and differs from what was delivered, then the
// deletion of what vanished; in another history the latter waits as ghosts. inc
// is the incarnation read just before.
func (r *Reader) list(ctx context.Context, pos *position, inc string) error {
	other := inc != pos.incarnation || pos.ahead
	rev, seen, err := r.listPages(ctx, other)
	if err != nil {
		return err
	}
	// The pages may come from a store that was wiped since inc was read.
	now, err := r.incarnation(ctx)
	if err != nil {
		return err
	}
	if now != inc {
		return fmt.Errorf("list %s: %w", r.cfg.Prefix, errHistoryChanged)
	}
	frozen := r.sweep(rev, seen, other && r.cfg.Markers != nil)
	if frozen > 0 {
		r.cfg.Log.Warn("store has another history; what vanished is kept until it is complete",
			"prefix", r.cfg.Prefix, "incarnation", inc, "revision", rev, "kept", frozen)
	}
	pos.rev, pos.incarnation, pos.ahead = rev, inc, false
	r.mu.Lock()
	r.status.Incarnation = inc
	r.mu.Unlock()
	return nil
}

// listPages reads all pages at one revision and delivers them one by one. With
// all, keys are delivered even if their revision is the known one: in another
// history it means nothing.
func (r *Reader) listPages(ctx context.Context, all bool) (rev int64, seen map[string]bool, err error) {
	seen = map[string]bool{}
	after := ""
	for {
		p, err := r.cfg.Client.List(ctx, r.cfg.Prefix, after, r.cfg.Page, rev)
		if err != nil {
			return 0, nil, err
		}
		rev = p.Revision
		r.listedPage(p, seen, all)
		if !p.More || len(p.KVs) == 0 {
			break
		}
		after = p.KVs[len(p.KVs)-1].Key
	}
	r.mu.Lock()
	r.status.Lists++
	r.mu.Unlock()
	return rev, seen, nil
}

func (r *Reader) listedPage(p kvstore.Page, seen map[string]bool, all bool) {
	r.apply.Lock()
	defer r.apply.Unlock()
	var out Batch
	for _, kv := range p.KVs {
		seen[kv.Key] = true
		_, ghost := r.ghosts[kv.Key]
		if known, ok := r.keys[kv.Key]; ok && known.rev == kv.ModRevision && !all && !ghost {
			continue
		}
		if c, ok := r.change(kv, false); ok {
			out.Changes = append(out.Changes, c)
		}
	}
	if len(out.Changes) > 0 {
		r.deliver(out)
	}
}

// sweep ends a listing: what it did not show is deleted, or becomes a ghost.
// It returns the number of ghosts.
func (r *Reader) sweep(rev int64, seen map[string]bool, freeze bool) int {
	r.apply.Lock()
	defer r.apply.Unlock()
	out := Batch{Revision: rev, Listed: true}
	var gone []string
	for key := range r.keys {
		if !seen[key] {
			gone = append(gone, key)
		}
	}
	slices.Sort(gone)
	for _, key := range gone {
		delivered := r.keys[key].delivered
		delete(r.keys, key)
		r.unreadable.remove(key)
		k, err := kvstore.ParseKey(key)
		switch {
		case err != nil || !delivered:
		case freeze && k.Kind != kvstore.KindSynced: // a marker that is not there says "not complete"
			r.ghosts[key] = k
		default:
			out.Changes = append(out.Changes, Change{Key: k, KV: kvstore.KV{Key: key}, Deleted: true})
		}
	}
	r.deliver(out)
	r.advance(rev, false)
	return len(r.ghosts)
}

// thaw deletes ghosts as their kinds become complete, until there are none or
// the context ends.
func (r *Reader) thaw(ctx context.Context) {
	t := time.NewTicker(thawInterval)
	defer t.Stop()
	for {
		groups := r.frozenGroups()
		if len(groups) == 0 || r.cfg.Markers == nil {
			return
		}
		for _, g := range groups {
			rev, ok, err := r.cfg.Markers.Complete(ctx, g.cluster, g.kind)
			if err != nil && !errors.Is(err, context.Canceled) {
				r.cfg.Log.Warn("completeness not known", "error", fmt.Errorf("kind %s of %s: %w", g.kind, g.cluster, err))
			}
			// etcd orders nothing across watches: the marker counts once
			// this watch has come as far.
			if err == nil && ok && r.Revision() >= rev {
				r.release(g)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

type group struct {
	cluster string
	kind    kvstore.Kind
}

func (r *Reader) frozenGroups() []group {
	r.apply.Lock()
	defer r.apply.Unlock()
	seen := map[group]bool{}
	var out []group
	for _, k := range r.ghosts {
		if g := (group{k.Cluster, k.Kind}); !seen[g] {
			seen[g] = true
			out = append(out, g)
		}
	}
	return out
}

// release delivers the deletions of one group of ghosts.
func (r *Reader) release(g group) {
	r.apply.Lock()
	defer r.apply.Unlock()
	out := Batch{Revision: r.Revision()}
	for key, k := range r.ghosts {
		if (group{k.Cluster, k.Kind}) == g {
			delete(r.ghosts, key)
			out.Changes = append(out.Changes, Change{Key: k, KV: kvstore.KV{Key: key}, Deleted: true})
		}
	}
	if len(out.Changes) == 0 {
		return
	}
	r.deliver(out)
	r.advance(out.Revision, false)
}
