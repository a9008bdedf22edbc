// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
)

// What a listing says of the kernel: what is missing, also where it was put in
// its own place, and what is hidden; ipBlocks are not listed.
func TestWithheldStates(t *testing.T) {
	key := func(cluster uint32, p string) datapath.IPKey {
		return datapath.IPKey{ClusterID: cluster, Prefix: netip.MustParsePrefix(p)}
	}
	got := withheld(reconcile.Withheld{
		Missing: []datapath.IPKey{key(0, "50.0.1.0/24"), key(0, "50.0.2.0/24"), key(datapath.BlockSpace, "50.0.3.0/24")},
		Around:  []datapath.IPKey{key(0, "50.0.0.0/8"), key(0, "50.0.2.0/24"), key(datapath.BlockSpace, "50.0.0.0/9")},
	})
	want := map[netip.Prefix]string{}
	for p, state := range map[string]string{"50.0.0.0/8": kernelHidden, "50.0.1.0/24": kernelMissing, "50.0.2.0/24": kernelMissing} {
		want[netip.MustParsePrefix(p)] = state
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
