// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"fmt"
	"math"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/ipam"
)

// Free counts down to the allocation that fails.
func TestFree(t *testing.T) {
	for text, want := range map[string]uint64{"10.1.1.0/29": 5, "10.1.1.0/30": 1, "fd00::/125": 6, "fd00::/64": math.MaxUint64} {
		p, err := ipam.New(netip.MustParsePrefix(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Free(); got != want {
			t.Errorf("%s: %d free, want %d", text, got, want)
		}
		if want > 10 {
			continue
		}
		for i := range want {
			if _, err := p.Allocate(fmt.Sprint(i)); err != nil || p.Free() != want-i-1 {
				t.Errorf("%s: %v, %d free after %d", text, err, p.Free(), i+1)
			}
		}
	}
}

func TestFreeRanges(t *testing.T) {
	pre := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for _, c := range []struct {
		pool  string
		bits  int
		taken []netip.Prefix
		want  uint64
	}{
		{"10.1.0.0/16", 24, nil, 256},
		{"10.1.0.0/16", 24, pre("10.1.0.0/24", "10.1.7.0/25", "10.9.0.0/24"), 254},
		{"10.1.0.0/23", 24, pre("10.1.0.0/24", "10.1.1.9/32"), 0},
		{"10.1.0.0/24", 20, nil, 0},
		{"fd00::/48", 112, nil, math.MaxUint64},
	} {
		if got := ipam.FreeRanges(netip.MustParsePrefix(c.pool), c.bits, c.taken); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
