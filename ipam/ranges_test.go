// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"net/netip"
	"testing"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestNextRange(t *testing.T) {
	for name, c := range map[string]struct {
		pools, taken []netip.Prefix
		bits         int
		want         string // empty: none
	}{
		"first":                {prefixes("10.1.0.0/16"), nil, 24, "10.1.0.0/24"},
		"next":                 {prefixes("10.1.0.0/16"), prefixes("10.1.0.0/24"), 24, "10.1.1.0/24"},
		"a gap":                {prefixes("10.1.0.0/16"), prefixes("10.1.0.0/24", "10.1.2.0/24"), 24, "10.1.1.0/24"},
		"around another size":  {prefixes("10.1.0.0/22"), prefixes("10.1.0.0/23", "10.1.2.128/25"), 24, "10.1.3.0/24"},
		"second pool":          {prefixes("10.1.0.0/24", "10.2.0.0/24"), prefixes("10.1.0.0/24"), 24, "10.2.0.0/24"},
		"full":                 {prefixes("10.1.0.0/23"), prefixes("10.1.0.0/24", "10.1.1.4/32"), 24, ""},
		"a pool that is small": {prefixes("10.1.0.0/26"), nil, 24, ""},
		"no pool":              {nil, nil, 24, ""},
		"IPv6":                 {prefixes("fd00:1::/48"), prefixes("fd00:1::/64"), 64, "fd00:1:0:1::/64"},
		"IPv6 full":            {prefixes("fd00:1::/63"), prefixes("fd00:1::/64", "fd00:1:0:1::/64"), 64, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := NextRange(c.pools, c.bits, c.taken)
			if c.want == "" && !errors.Is(err, ErrNoRange) || c.want != "" && (err != nil || p.String() != c.want) {
				t.Errorf("got %v, %v, want %q", p, err, c.want)
			}
		})
	}
}
