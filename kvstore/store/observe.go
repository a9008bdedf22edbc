// SPDX-License-Identifier: Apache-2.0

package store

import (
	"time"

	"github.com/hawser-mesh/hawser/kvstore"
)

// have is a key as the store had it last.
type have struct {
	value []byte // nil if it could not be read
	rev   int64  // of that; 0: never heard of
	gone  bool   // it did not exist
}

// repair spaces out how a key is put back that somebody else changes again and
// again: the first time at once, then each time twice as long after the last.
type repair struct {
	next time.Time // not before
	gap  time.Duration
}

// Observe takes what a Reader delivers, so that own keys that somebody else
// removes, changes or damages are written again at once instead of at the next
// resync. Any Reader of any directory will do, and several, each from its own
// goroutine: what is not below the Writer's prefixes, and what it wrote itself,
// costs next to nothing. It does not block.
func (w *Writer) Observe(b Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	count, first := 0, ""
	saw := func(key string, h have) {
		if w.saw(key, h) {
			if count++; count == 1 {
				first = key
			}
		}
	}
	for _, c := range b.Changes {
		h := have{value: c.KV.Value, rev: c.KV.ModRevision, gone: c.Deleted}
		if h.rev == 0 { // it was missing in a listing
			h.rev = b.Revision
		}
		saw(c.KV.Key, h)
	}
	for _, k := range b.Unreadable { // in the middle of a listing it is not known since when
		saw(k.String(), have{rev: b.Revision})
	}
	if count > 0 {
		w.cfg.Log.Warn("own records were changed by somebody else, writing them again", "keys", count, "first", first)
		w.signal()
	}
}

// saw notes how a key is and reports whether it has to be written for that. What
// is not newer than what is known is an echo. The caller holds mu.
func (w *Writer) saw(key string, h have) bool {
	_, wanted := w.desired[key]
	known, stored := w.stored[key]
	if !wanted && !stored || h.rev <= known.rev {
		return false
	}
	w.stored[key] = h
	if w.during != nil {
		w.during[key] = h
	}
	return w.disturbed(key)
}

// disturbed marks a wanted key dirty that somebody else changed, and reports
// whether it did. The caller holds mu.
func (w *Writer) disturbed(key string) bool {
	d, wanted := w.desired[key]
	if _, dirty := w.dirty[key]; dirty || !wanted || d.gone || w.satisfied(key, d) {
		return false
	}
	w.dirty[key] = span{}
	now, r := w.cfg.Now(), w.repairs[key]
	if now.Before(r.next.Add(r.gap)) { // again, soon after the last time
		r.next, r.gap = r.next.Add(r.gap), 2*r.gap
	} else {
		r.next, r.gap = now, repairGap
	}
	w.repairs[key] = r
	return true
}

// waits is how long a dirty key is left alone, because others change it again and
// again. What the owner set itself never is. The caller holds mu.
func (w *Writer) waits(key string, s span) time.Duration {
	if s.last != 0 {
		return 0
	}
	r, damped := w.repairs[key]
	if !damped {
		return 0
	}
	return r.next.Sub(w.cfg.Now())
}

// loaded takes over what was listed, but for what Observe heard meanwhile and is
// newer. The caller holds mu.
func (w *Writer) loaded(listed map[string]have) {
	for key, h := range w.during {
		if h.rev > listed[key].rev {
			listed[key] = h
		}
	}
	w.stored, w.during = listed, nil
	clear(w.repairs)
}

// listing has Observe remember what it hears until loaded.
func (w *Writer) listing() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.during = map[string]have{}
}

func fromKV(kv kvstore.KV) have { return have{value: kv.Value, rev: kv.ModRevision} }
