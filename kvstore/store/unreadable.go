// SPDX-License-Identifier: Apache-2.0

package store

import (
	"maps"
	"slices"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Unreadable is a key whose present value cannot be read.
type Unreadable struct {
	kvstore.Key
	// Said tells that this Reader delivered what the key said before, which still
	// holds. Else nothing is known of it.
	Said bool
}

// unreadable are the keys whose present value cannot be read. A list of them goes
// with every batch, so that it is made only when they have changed: a writer of
// many bad records would slow down every reader otherwise.
type unreadable struct {
	keys  map[string]Unreadable
	list  []Unreadable // never written to once it is handed out
	stale bool
}

func (u *unreadable) add(key string, k Unreadable) {
	if u.keys == nil {
		u.keys = map[string]Unreadable{}
	}
	if _, known := u.keys[key]; !known {
		u.keys[key], u.stale = k, true
	}
}

func (u *unreadable) remove(key string) {
	if _, known := u.keys[key]; known {
		delete(u.keys, key)
		u.stale = true
	}
}

// all is shared with everybody who asked: it is read only.
func (u *unreadable) all() []Unreadable {
	if u.stale {
		u.list, u.stale = slices.Collect(maps.Values(u.keys)), false
	}
	return u.list
}
