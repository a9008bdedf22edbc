// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"

	"github.com/hawser-mesh/hawser/internal/table"
)

// feed is the part that all syncers share: a table, its subscription, and the
// rows as they were last written.
type feed[K comparable, V any] struct {
	table   *table.Table[K, V]
	changes *table.Changes[K]
	written map[K]V
	tried   map[K]V // of those that never could be written: part of them may be
	taken   *batch[K, V]
}

// batch are changed rows as they were when they were taken.
type batch[K comparable, V any] struct {
	rows     map[K]V
	gone     []K
	revision uint64
}

func newFeed[K comparable, V any](t *table.Table[K, V]) feed[K, V] {
	return feed[K, V]{table: t, written: map[K]V{}, tried: map[K]V{}}
}

func (f *feed[K, V]) name() string           { return f.table.Name() }
func (f *feed[K, V]) rows() (int, uint64)    { return f.table.Len(), f.table.Revision() }
func (f *feed[K, V]) subscribe()             { f.changes = f.table.Subscribe() }
func (f *feed[K, V]) close()                 { f.changes.Close() }
func (f *feed[K, V]) woken() <-chan struct{} { return f.changes.C() }

// take fixes which rows the next sync writes, and as what.
func (f *feed[K, V]) take() {
	dirty, revision := f.changes.Take()
	f.taken = &batch[K, V]{rows: make(map[K]V, len(dirty)), revision: revision}
	for k := range dirty {
		if v, ok := f.table.Get(k); ok {
			f.taken.rows[k] = v
		} else {
			f.taken.gone = append(f.taken.gone, k)
		}
	}
}

// batch hands out what was taken, or takes.
func (f *feed[K, V]) batch() *batch[K, V] {
	if f.taken == nil {
		f.take()
	}
	b := f.taken
	f.taken = nil
	return b
}

// each calls put for every changed row, with the row last written if there is
// one, and drop for every deleted one, also if it could not be written. A key whose
// call failed stays changed.
func (f *feed[K, V]) each(put func(k K, old *V, v V) error, drop func(k K, old V) error) (uint64, error) {
	b := f.batch()
	var errs []error
	again := func(k K, err error) {
		if err != nil {
			errs = append(errs, err)
			f.changes.Requeue(k)
		}
	}
	for k, v := range b.rows {
		var old *V
		if w, ok := f.written[k]; ok {
			old = &w
		}
		err := put(k, old, v)
		if err == nil {
			f.written[k] = v
			delete(f.tried, k)
		} else if old == nil {
			f.tried[k] = v
		}
		again(k, err)
	}
	for _, k := range b.gone {
		again(k, f.gone(k, drop))
	}
	return b.revision, errors.Join(errs...)
}

func (f *feed[K, V]) gone(k K, drop func(k K, old V) error) error {
	old, ok := f.written[k]
	if !ok {
		old, ok = f.tried[k]
	}
	if ok {
		if err := drop(k, old); err != nil {
			return err
		}
	}
	delete(f.written, k)
	delete(f.tried, k)
	return nil
}
