// SPDX-License-Identifier: Apache-2.0

// Package table holds desired state: typed rows under a key, a revision that
// grows with every change, and subscriptions that say which keys changed.
//
// A subscription carries keys, not values: whoever takes them reads the current
// rows. So a slow consumer costs at most one entry per key, and always sees the
// newest value.
package table

import (
	"iter"
	"maps"
	"sync"
)

// Table is a set of rows. It is safe for concurrent use. Rows are handed out by
// value and must be treated as immutable.
type Table[K comparable, V any] struct {
	name  string
	equal func(a, b V) bool

	mu       sync.RWMutex
	rows     map[K]V
	revision uint64
	subs     map[*Changes[K]]struct{}
}

// New makes an empty table. equal decides whether storing a row changes
// anything; an unchanged row neither moves the revision nor wakes anyone.
func New[K comparable, V any](name string, equal func(a, b V) bool) *Table[K, V] {
	return &Table[K, V]{
		name: name, equal: equal,
		rows: map[K]V{}, subs: map[*Changes[K]]struct{}{},
	}
}

// Name is the table's name, for status and logs.
func (t *Table[K, V]) Name() string { return t.name }

// Set stores a row and reports whether that changed the table.
func (t *Table[K, V]) Set(k K, v V) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, ok := t.rows[k]; ok && t.equal(old, v) {
		return false
	}
	t.rows[k] = v
	t.changed(k)
	return true
}

// Delete removes a row and reports whether it was there.
func (t *Table[K, V]) Delete(k K) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.rows[k]; !ok {
		return false
	}
	delete(t.rows, k)
	t.changed(k)
	return true
}

func (t *Table[K, V]) changed(k K) {
	t.revision++
	for c := range t.subs {
		c.add(k, t.revision)
	}
}

// Get is one row.
func (t *Table[K, V]) Get(k K) (V, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	v, ok := t.rows[k]
	return v, ok
}

// Len is the number of rows.
func (t *Table[K, V]) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.rows)
}

// Revision is the number of changes so far.
func (t *Table[K, V]) Revision() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.revision
}

// Snapshot is a copy of the rows and the revision they belong to.
func (t *Table[K, V]) Snapshot() (map[K]V, uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.rows), t.revision
}

// All iterates over a snapshot, in no order.
func (t *Table[K, V]) All() iter.Seq2[K, V] {
	rows, _ := t.Snapshot()
	return maps.All(rows)
}

// Subscribe returns a subscription in which every present key counts as
// changed. Close it when done.
func (t *Table[K, V]) Subscribe() *Changes[K] {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &Changes[K]{wake: make(chan struct{}, 1), dirty: map[K]struct{}{}, revision: t.revision}
	for k := range t.rows {
		c.dirty[k] = struct{}{}
	}
	if len(c.dirty) > 0 {
		c.wake <- struct{}{}
	}
	c.unsubscribe = func() {
		t.mu.Lock()
		delete(t.subs, c)
		t.mu.Unlock()
	}
	t.subs[c] = struct{}{}
	return c
}

// Changes is a subscription: the set of keys that changed since the last Take.
type Changes[K comparable] struct {
	wake        chan struct{}
	unsubscribe func()

	mu       sync.Mutex
	dirty    map[K]struct{}
	revision uint64
}

func (c *Changes[K]) add(k K, revision uint64) {
	c.mu.Lock()
	c.dirty[k] = struct{}{}
	c.revision = revision
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// C receives when there is something to take.
func (c *Changes[K]) C() <-chan struct{} { return c.wake }

// Take returns the changed keys and empties the set. When all of them have been
// acted on, the table's revision has been acted on too.
func (c *Changes[K]) Take() (dirty map[K]struct{}, revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dirty, c.dirty = c.dirty, map[K]struct{}{}
	return dirty, c.revision
}

// Requeue marks keys as changed again, for a retry. It does not wake the
// consumer, who knows when to try.
func (c *Changes[K]) Requeue(keys ...K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		c.dirty[k] = struct{}{}
	}
}

// Has reports whether a key has changed since the last Take.
func (c *Changes[K]) Has(k K) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.dirty[k]
	return ok
}

// Close ends the subscription.
func (c *Changes[K]) Close() { c.unsubscribe() }
