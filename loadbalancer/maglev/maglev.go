// SPDX-License-Identifier: Apache-2.0

// Package maglev makes the tables by which a service's flows find their backend:
// equal on every node that knows the same backends, with nearly equal shares, and
// with few flows that move when a backend comes or goes (Eisenbud et al., NSDI
// 2016).
//
// Start with Table. It knows nothing of maps or packets.
package maglev

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
)

// DefaultSize is the length of a table, a prime: 1 % of it is more than a
// hundred entries. SmallSize is for labs.
const (
	DefaultSize = 16381
	SmallSize   = 1021
)

// ID is what makes a backend the same one on all nodes.
type ID struct {
	Cluster uint32
	Addr    netip.Addr
	Port    uint16
}

func (i ID) compare(o ID) int {
	return cmp.Or(cmp.Compare(i.Cluster, o.Cluster), i.Addr.Compare(o.Addr), cmp.Compare(i.Port, o.Port))
}

// preference is the order in which a backend asks for places: from offset on, in
// steps of skip.
type preference struct{ offset, skip uint32 }

func (i ID) preference(size uint32) preference {
	h := fnv.New64a()
	var b [6]byte
	binary.BigEndian.PutUint32(b[:], i.Cluster)
	binary.BigEndian.PutUint16(b[4:], i.Port)
	addr := i.Addr.As16()
	_, _ = h.Write(addr[:])
	_, _ = h.Write(b[:])
	x := h.Sum64()
	x ^= x >> 33 // FNV leaves the high bits of short inputs alike
	x *= 0xFF51AFD7ED558CCD
	x ^= x >> 33
	x *= 0xC4CEB9FE1A85EC53
	x ^= x >> 33
	return preference{uint32(x>>32) % size, uint32(x)%(size-1) + 1}
}

// Table has for each of size places the index in ids of its backend. size is a
// prime; ids may be in any order, and are each there once. Without ids it is nil.
func Table(size uint32, ids []ID) []uint32 {
	if len(ids) == 0 {
		return nil
	}
	order := make([]uint32, len(ids))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return ids[a].compare(ids[b]) })
	next := make([]preference, len(ids))
	for i, n := range order {
		next[i] = ids[n].preference(size)
	}
	const free = 1<<32 - 1
	table := make([]uint32, size)
	for i := range table {
		table[i] = free
	}
	for filled := uint32(0); ; {
		for i := range next {
			p := &next[i]
			for table[p.offset] != free {
				p.offset = (p.offset + p.skip) % size
			}
			table[p.offset] = order[i]
			if filled++; filled == size {
				return table
			}
		}
	}
}
