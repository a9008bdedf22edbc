// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"hash/maphash"
	"iter"
	"net/netip"
)

// workload is what has addresses.
type workload struct{ cluster, namespace, name string }

// none is no row.
const none = int32(-1)

// addresses is which workloads have which addresses, in all clusters: of each
// cluster one has an address at most. There may be hundreds of thousands, so the
// rows lie in one slice, and rows of one address or name are linked in it.
type addresses struct {
	seed   maphash.Seed
	rows   []addressRow
	unused int32                // first of the rows that are not used, linked by sameAddr
	byAddr map[netip.Addr]int32 // first row
	byName map[uint64]int32     // first row of a workload's hash
}

type addressRow struct {
	workload
	addr               netip.Addr
	sameAddr           int32 // next of the address
	sameName, beforeIt int32 // next and previous of the hash
}

func newAddresses() *addresses {
	return &addresses{seed: maphash.MakeSeed(), unused: none, byAddr: map[netip.Addr]int32{}, byName: map[uint64]int32{}}
}

func (x *addresses) len() int { return len(x.byAddr) }

// set has the workload have the address, in place of the cluster's that had it.
func (x *addresses) set(a netip.Addr, w workload) {
	x.remove(a, w.cluster)
	i := x.unused
	if i == none {
		i = int32(len(x.rows)) //nolint:gosec // a row is 88 bytes
		x.rows = append(x.rows, addressRow{})
	} else {
		x.unused = x.rows[i].sameAddr
	}
	h := maphash.Comparable(x.seed, w)
	x.rows[i] = addressRow{workload: w, addr: a, sameAddr: first(x.byAddr, a), sameName: first(x.byName, h), beforeIt: none}
	if next := x.rows[i].sameName; next != none {
		x.rows[next].beforeIt = i
	}
	x.byAddr[a], x.byName[h] = i, i
}

func first[K comparable](m map[K]int32, k K) int32 {
	if i, ok := m[k]; ok {
		return i
	}
	return none
}

// remove takes the address from the cluster's workload that has it, and returns
// that.
func (x *addresses) remove(a netip.Addr, cluster string) (workload, bool) {
	before := none
	i := first(x.byAddr, a)
	for ; i != none && x.rows[i].cluster != cluster; i = x.rows[i].sameAddr {
		before = i
	}
	if i == none {
		return workload{}, false
	}
	r := x.rows[i]
	switch {
	case before != none:
		x.rows[before].sameAddr = r.sameAddr
	case r.sameAddr != none:
		x.byAddr[a] = r.sameAddr
	default:
		delete(x.byAddr, a)
	}
	if r.sameName != none {
		x.rows[r.sameName].beforeIt = r.beforeIt
	}
	switch h := maphash.Comparable(x.seed, r.workload); {
	case r.beforeIt != none:
		x.rows[r.beforeIt].sameName = r.sameName
	case r.sameName != none:
		x.byName[h] = r.sameName
	default:
		delete(x.byName, h)
	}
	x.rows[i] = addressRow{sameAddr: x.unused}
	x.unused = i
	return r.workload, true
}

// workloads are those that have the address.
func (x *addresses) workloads(a netip.Addr) iter.Seq[workload] {
	return func(yield func(workload) bool) {
		for i := first(x.byAddr, a); i != none; i = x.rows[i].sameAddr {
			if !yield(x.rows[i].workload) {
				return
			}
		}
	}
}

// of are the workload's addresses.
func (x *addresses) of(w workload) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for i := first(x.byName, maphash.Comparable(x.seed, w)); i != none; i = x.rows[i].sameName {
			if x.rows[i].workload == w && !yield(x.rows[i].addr) {
				return
			}
		}
	}
}
