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
}

func newFeed[K comparable, V any](t *table.Table[K, V]) feed[K, V] {
	return feed[K, V]{table: t, written: map[K]V{}, tried: map[K]V{}}
}

func (f *feed[K, V]) name() string           { return f.table.Name() }
func (f *feed[K, V]) rows() (int, uint64)    { return f.table.Len(), f.table.Revision() }
func (f *feed[K, V]) subscribe()             { f.changes = f.table.Subscribe() }
func (f *feed[K, V]) close()                 { f.changes.Close() }
func (f *feed[K, V]) woken() <-chan struct{} { return f.changes.C() }

// each calls put for every changed row, with the row last written if there is
// one, and drop for every deleted one, also if it could not be written. A key whose
// call failed stays changed.
func (f *feed[K, V]) each(put func(k K, old *V, v V) error, drop func(k K, old V) error) (uint64, error) {
	dirty, revision := f.changes.Take()
	var errs []error
	for k := range dirty {
		var old *V
		if w, ok := f.written[k]; ok {
			old = &w
		}
		v, ok := f.table.Get(k)
		var err error
		switch {
		case ok:
			if err = put(k, old, v); err == nil {
				f.written[k] = v
				delete(f.tried, k)
			} else if old == nil {
				f.tried[k] = v
			}
		case old != nil:
			if err = drop(k, *old); err == nil {
				delete(f.written, k)
			}
		default:
			if v, ok = f.tried[k]; ok {
				err = drop(k, v)
			}
			if err == nil {
				delete(f.tried, k)
			}
		}
		if err != nil {
			errs = append(errs, err)
			f.changes.Requeue(k)
		}
	}
	return revision, errors.Join(errs...)
}
