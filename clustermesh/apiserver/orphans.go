// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"slices"
	"time"

	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

// orphansEvery is how often the cluster's keys are read for orphans.
const orphansEvery = 5 * time.Minute

// orphanage removes keys of this cluster whose owner is gone: addresses, prefixes
// and references of nodes that are none, references to identities that are none,
// and slices of services that are none. Identities are the collector's.
type orphanage struct {
	s     *Server
	fence []kvstore.Cmp
	now   func() time.Time
	sees  func() func(node string) bool
	lost  grace
	known map[string]int64 // orphans and their revisions, as last seen
}

// step looks once. An orphan goes when it has been one, unchanged, for as long as
// a departed node is waited for; of each kind at most one of departedShare, and
// at least one, goes in a step.
func (o *orphanage) step(ctx context.Context) error {
	found, err := inspect.OwnOrphans(ctx, o.s.kv, o.s.cfg.Cluster)
	if err != nil {
		return err
	}
	sees, byKey, known := o.sees(), map[string]inspect.Orphan{}, map[string]int64{}
	var lost []string
	for _, x := range found {
		if !cleanable(x, sees) {
			continue
		}
		if rev, seen := o.known[x.Key]; seen && rev != x.Revision {
			delete(o.lost.since, x.Key)
		}
		if _, twice := byKey[x.Key]; !twice {
			lost = append(lost, x.Key)
		}
		byKey[x.Key], known[x.Key] = x, x.Revision
	}
	o.known = known
	due := o.lost.due(o.now(), lost, o.s.cfg.departedAfter())
	room := map[string]int{}
	var gone []string
	for _, key := range due {
		x := byKey[key]
		if _, counted := room[x.Kind]; !counted {
			if room[x.Kind], err = o.room(ctx, x); err != nil {
				return err
			}
		}
		if room[x.Kind] == 0 {
			continue
		}
		room[x.Kind]--
		removed, err := o.remove(ctx, x)
		if err != nil {
			return err
		}
		if removed {
			gone = append(gone, key)
		}
	}
	if len(gone) > 0 {
		o.s.log.Info("orphaned keys removed", "keys", len(gone), "left", len(due)-len(gone), "first", gone[0])
	}
	return nil
}

// cleanable tells the orphans that are removed here. What a node that is there
// wrote is its own to mend.
func cleanable(x inspect.Orphan, sees func(node string) bool) bool {
	owner, err := kvstore.ParseKey(x.Missing)
	if err != nil {
		return false
	}
	switch kvstore.Kind(x.Kind) {
	case kvstore.KindIP, kvstore.KindVTEP:
		return owner.Kind == kvstore.KindNode && !sees(owner.Names[0])
	case kvstore.KindRef:
		key, err := kvstore.ParseKey(x.Key)
		return err == nil && !sees(key.Names[1])
	case kvstore.KindSlice:
		return owner.Kind == kvstore.KindService
	}
	return false
}

// room is how many keys of an orphan's kind may go in one step.
func (o *orphanage) room(ctx context.Context, x inspect.Orphan) (int, error) {
	key, err := kvstore.ParseKey(x.Key)
	if err != nil {
		return 0, err
	}
	n := 0
	_, err = inspect.Walk(ctx, o.s.kv, kvstore.KindPrefix(key.Subtree, key.Cluster, key.Kind), func(kvstore.KV) error { n++; return nil })
	return max(1, n/departedShare), err
}

// remove deletes an orphan unless it or its owner changed since.
func (o *orphanage) remove(ctx context.Context, x inspect.Orphan) (bool, error) {
	cmps := append(slices.Clone(o.fence), kvstore.AtRevision(x.Key, x.Revision))
	for _, k := range x.Needs {
		cmps = append(cmps, kvstore.Absent(k))
	}
	r, err := o.s.kv.Txn(ctx, cmps, []kvstore.Op{kvstore.Delete(x.Key)}, nil)
	return err == nil && r.Succeeded, err
}
