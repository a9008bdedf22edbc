// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"math"
)

// numbering gives things numbers from 1 on. A released number is used again only
// when the counter has come round, as late as possible.
type numbering[K comparable] struct {
	numbers map[K]uint32
	taken   map[uint32]struct{}
	last    uint32
	limit   uint32 // exclusive
}

var errNoNumber = errors.New("all numbers are taken")

func newNumbering[K comparable](limit uint32) *numbering[K] {
	if limit == 0 {
		limit = math.MaxUint32
	}
	return &numbering[K]{numbers: map[K]uint32{}, taken: map[uint32]struct{}{}, limit: limit}
}

// adopt takes over a number that is in use.
func (n *numbering[K]) adopt(k K, number uint32) {
	n.numbers[k] = number
	n.taken[number] = struct{}{}
	n.last = max(n.last, number)
}

func (n *numbering[K]) of(k K) (uint32, error) {
	if number, ok := n.numbers[k]; ok {
		return number, nil
	}
	if uint32(len(n.taken)) >= n.limit-1 {
		return 0, errNoNumber
	}
	for {
		n.last++
		if n.last >= n.limit {
			n.last = 1
		}
		if _, ok := n.taken[n.last]; !ok {
			break
		}
	}
	n.numbers[k] = n.last
	n.taken[n.last] = struct{}{}
	return n.last, nil
}

func (n *numbering[K]) release(k K) {
	delete(n.taken, n.numbers[k])
	delete(n.numbers, k)
}

// keep releases everything that ok does not want.
func (n *numbering[K]) keep(ok func(K) bool) {
	for k := range n.numbers {
		if !ok(k) {
			n.release(k)
		}
	}
}
