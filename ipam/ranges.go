// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"

	"go4.org/netipx"
)

// ErrNoRange says that pools hold no free range of the wanted length.
var ErrNoRange = errors.New("no free range")

// NextRange is a free range of so many bits out of the pools of one family,
// IPv4 or IPv6, that overlaps none that is taken. It fills gaps before it breaks
// larger free ranges. Equal input gives equal ranges. The error wraps ErrNoRange
// when there is none.
func NextRange(pools []netip.Prefix, bits int, taken []netip.Prefix) (netip.Prefix, error) {
	var b netipx.IPSetBuilder
	for _, p := range pools {
		b.AddPrefix(p)
	}
	for _, p := range taken {
		b.RemovePrefix(p)
	}
	free, err := b.IPSet()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("free ranges of %v: %w", pools, err)
	}
	if bits < 1 || bits > 128 {
		return netip.Prefix{}, fmt.Errorf("a range of /%d is none", bits)
	}
	p, _, ok := free.RemoveFreePrefix(uint8(bits))
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%w of /%d in %v (%d taken)", ErrNoRange, bits, pools, len(taken))
	}
	return p, nil
}
