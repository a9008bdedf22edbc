// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"cmp"
	"slices"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// Concerned reports whether a batch of a Reader of state/ says of an identity in
// use something else than this node goes by: that its key is gone, has become
// unreadable, or names other labels or another number. Confirm mends that. It is
// for one caller, who passes every batch.
func (a *Allocator) Concerned(b store.Batch) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	var byNumber map[identity.Number]*entry // made when it is needed
	used := func(k kvstore.Key) *entry {
		if k.Subtree != kvstore.State || k.Cluster != a.cfg.Cluster {
			return nil
		}
		switch k.Kind {
		case kvstore.KindIdentityLabels:
			if e := a.entries[k.Names[0]]; e != nil && e.number != 0 {
				return e
			}
		case kvstore.KindIdentity:
			if byNumber == nil {
				byNumber = map[identity.Number]*entry{}
				for _, e := range a.entries {
					byNumber[e.number] = e
				}
			}
			if n, ok := kvstore.ParseNumber(k.Names[0]); ok && n != 0 {
				return byNumber[identity.Number(n)]
			}
		}
		return nil
	}
	due := false
	for _, c := range b.Changes {
		e := used(c.Key)
		due = due || e != nil && (c.Deleted || !agrees(c, e))
	}
	// An unreadable key is in every batch until it is mended: once is enough.
	known := a.unreadable
	a.unreadable = map[string]bool{}
	for _, k := range b.Unreadable {
		if used(k.Key) != nil {
			due = due || !known[k.String()]
			a.unreadable[k.String()] = true
		}
	}
	return due
}

// Unreferenced reports whether a batch of a Reader of local/<own>/ says that this
// node's reference to a number in use was removed by somebody else. Without it the
// number would be collected. Confirm puts it back.
func (a *Allocator) Unreferenced(b store.Batch) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range b.Changes {
		k := c.Key
		if !c.Deleted || k.Kind != kvstore.KindRef || k.Cluster != a.cfg.Cluster || k.Names[1] != a.cfg.Node {
			continue
		}
		n, ok := kvstore.ParseNumber(k.Names[0])
		rev := cmp.Or(c.KV.ModRevision, b.Revision)
		for _, e := range a.entries {
			// One that was put again since was removed by Release.
			if ok && n != 0 && e.number == identity.Number(n) && e.refRev < rev {
				return true
			}
		}
	}
	return false
}

// agrees reports whether a record says of an entry what this node goes by.
func agrees(c store.Change, e *entry) bool {
	switch r := c.Record.(type) {
	case *keyspacev1.Identity:
		return slices.Equal(r.GetLabels(), e.set.Strings())
	case *keyspacev1.IdentityRef:
		return identity.Number(r.GetNumber()) == e.number
	}
	return true
}
