// SPDX-License-Identifier: Apache-2.0

package rangetext

import (
	"net/netip"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	got := Parse([]string{"10.1.2.3/8", "", "10.0.0.0", "fd00::1/64", "10.0.0.0/33"})
	if want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
