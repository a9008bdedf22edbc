// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"math"
	"net/netip"

	"go4.org/netipx"
)

// Free is how many addresses can still be handed out; of a pool with more than
// can be counted the largest number.
func (p *Pool) Free() uint64 {
	const reserved = 2 // network and gateway
	p.mu.Lock()
	used := uint64(len(p.owners))
	p.mu.Unlock()
	bits := p.prefix.Addr().BitLen() - p.prefix.Bits()
	if bits >= 64 {
		return math.MaxUint64
	}
	all := uint64(1)<<bits - reserved
	if p.prefix.Addr().Is4() {
		all-- // broadcast
	}
	return all - min(used, all)
}

// FreeRanges is how many ranges of so many bits a pool still holds beside those
// that are taken; of more than can be counted the largest number.
func FreeRanges(pool netip.Prefix, bits int, taken []netip.Prefix) uint64 {
	var b netipx.IPSetBuilder
	b.AddPrefix(pool)
	for _, t := range taken {
		b.RemovePrefix(t)
	}
	left, err := b.IPSet()
	if err != nil {
		return 0 // never: all are prefixes
	}
	var n uint64
	for _, p := range left.Prefixes() {
		switch more := bits - p.Bits(); {
		case more >= 64:
			return math.MaxUint64
		case more >= 0:
			n += 1 << more
		}
	}
	return n
}
