// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// maxPassed is how many that do not fit are passed over at a time in search of one
// that does: a cluster must not have all that it has waiting looked at for each
// address that it takes back.
const maxPassed = 1 << 10

// waiting are the names at addresses of a cluster that wait for room, in the order
// of addresses, then of names: who gets it depends on nothing else.
type waiting struct {
	at    bart.Table[[]namedPort] // by address; lists are replaced, not changed
	calls int
}

func compareNames(a, b namedPort) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.proto, b.proto))
}

func compareCalls(a, b call) int {
	return cmp.Or(a.addr.Compare(b.addr), compareNames(a.name, b.name))
}

// wait has a call wait for room in its cluster.
func (x *asker) wait(cluster string, c call) {
	w := x.waiting[cluster]
	if w == nil {
		w = &waiting{}
		x.waiting[cluster] = w
	}
	p := block(c.addr).Prefix
	list, _ := w.at.Get(p)
	if i, ok := slices.BinarySearchFunc(list, c.name, compareNames); !ok {
		w.at.Insert(p, slices.Insert(slices.Clone(list), i, c.name))
		w.calls++
	}
}

// leave undoes wait.
func (x *asker) leave(cluster string, c call) {
	w := x.waiting[cluster]
	if w == nil {
		return
	}
	p := block(c.addr).Prefix
	list, _ := w.at.Get(p)
	i, ok := slices.BinarySearchFunc(list, c.name, compareNames)
	if !ok {
		return
	}
	if list = slices.Delete(slices.Clone(list), i, i+1); len(list) > 0 {
		w.at.Insert(p, list)
	} else {
		w.at.Delete(p)
	}
	if w.calls--; w.calls == 0 {
		delete(x.waiting, cluster)
	}
}

// all are the calls that wait, in order. None may come or leave meanwhile.
func (w *waiting) all() iter.Seq[call] {
	return func(yield func(call) bool) {
		for p, list := range w.at.AllSorted() {
			for _, n := range list {
				if !yield(call{p.Addr(), n}) {
					return
				}
			}
		}
	}
}

// refill gives room to those of a cluster that wait for it.
func (e *Engine) refill(x *asker, cluster string) {
	w, room := x.waiting[cluster], MaxBlockPorts-x.ports[cluster]
	if w == nil || room <= 0 {
		return
	}
	var fit []call
	passed := 0
	for c := range w.all() {
		if n := e.names.count(c); n <= room {
			fit = append(fit, c)
			room -= n
		} else {
			passed++
		}
		if room == 0 || passed == maxPassed {
			break
		}
	}
	for _, c := range fit {
		e.hear(x, c)
	}
}
