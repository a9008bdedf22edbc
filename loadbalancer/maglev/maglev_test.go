// SPDX-License-Identifier: Apache-2.0

package maglev

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func backends(n int) []ID {
	out := make([]ID, n)
	for i := range out {
		out[i] = ID{Cluster: uint32(i%3 + 1), Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Port: 8080}
	}
	return out
}

func TestSharesAreEqual(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 100} {
		share := map[uint32]int{}
		for _, b := range Table(DefaultSize, backends(n)) {
			share[b]++
		}
		want := DefaultSize / n
		for b := range n {
			if got := share[uint32(b)]; got < want-2 || got > want+2 {
				t.Errorf("backend %d of %d has %d places, want %d", b, n, got, want)
			}
		}
	}
	if Table(DefaultSize, nil) != nil {
		t.Error("a table of no backends")
	}
}

// Nodes hear of backends in any order.
func TestEqualOnEveryNode(t *testing.T) {
	a := backends(20)
	b := slices.Clone(a)
	rand.Shuffle(len(b), func(i, j int) { b[i], b[j] = b[j], b[i] })
	ta, tb := Table(SmallSize, a), Table(SmallSize, b)
	for i := range ta {
		if a[ta[i]] != b[tb[i]] {
			t.Fatalf("place %d has %v here and %v there", i, a[ta[i]], b[tb[i]])
		}
	}
}

// Losing one of n backends moves its own flows and about 1 % of the others: here
// at most 1.25 %.
func TestFewFlowsMove(t *testing.T) {
	for _, n := range []int{3, 10, 50} {
		all := backends(n)
		before := Table(DefaultSize, all)
		for gone := range all {
			left := slices.Delete(slices.Clone(all), gone, gone+1)
			after := Table(DefaultSize, left)
			moved := 0
			for i := range before {
				if all[before[i]] != left[after[i]] {
					moved++
				}
			}
			if limit := DefaultSize/n + DefaultSize/80; moved > limit {
				t.Errorf("backend %d of %d went: %d of %d places moved, want at most %d", gone, n, moved, DefaultSize, limit)
			}
		}
	}
}
