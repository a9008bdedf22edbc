// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"sync"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// Index is a Cache fed by the Readers of state/ and local/<own>/. It looks at
// the identities and retired numbers of one cluster and ignores all else. It is
// safe for concurrent use.
type Index struct {
	cluster string

	mu       sync.RWMutex
	byLabels map[string]known
	byNumber map[identity.Number]string // hash of the labels
	retired  map[identity.Number]bool
}

type known struct {
	number identity.Number
	rev    int64
}

var _ Cache = (*Index)(nil)

// NewIndex returns an empty Index of a cluster's identities.
func NewIndex(cluster string) *Index {
	return &Index{
		cluster: cluster, byLabels: map[string]known{},
		byNumber: map[identity.Number]string{}, retired: map[identity.Number]bool{},
	}
}

// Apply takes what a Reader delivers.
func (x *Index) Apply(b store.Batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range b.Changes {
		if c.Key.Cluster != x.cluster {
			continue
		}
		switch c.Key.Kind {
		case kvstore.KindIdentity:
			x.identity(c)
		case kvstore.KindRetired:
			n, ok := kvstore.ParseNumber(c.Key.Names[0])
			if ok && !c.Deleted {
				x.retired[identity.Number(n)] = true
			} else {
				delete(x.retired, identity.Number(n))
			}
		}
	}
}

func (x *Index) identity(c store.Change) {
	raw, ok := kvstore.ParseNumber(c.Key.Names[0])
	if !ok {
		return
	}
	n := identity.Number(raw)
	if hash, had := x.byNumber[n]; had {
		delete(x.byNumber, n)
		if x.byLabels[hash].number == n {
			delete(x.byLabels, hash)
		}
	}
	rec, ok := c.Record.(*keyspacev1.Identity)
	if c.Deleted || !ok {
		return
	}
	set, err := labels.ParseSet(rec.GetLabels(), labels.Any)
	if err != nil {
		return // the Reader has validated it
	}
	hash := set.Hash()
	x.byNumber[n] = hash
	x.byLabels[hash] = known{n, c.KV.ModRevision}
}

// ByLabels implements Cache.
func (x *Index) ByLabels(hash string) (identity.Number, int64, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	k, ok := x.byLabels[hash]
	return k.number, k.rev, ok
}

// Taken implements Cache.
func (x *Index) Taken(n identity.Number) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, used := x.byNumber[n]
	return used || x.retired[n]
}
