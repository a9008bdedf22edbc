// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// Of a dropped packet's ends both may be the one that is not known: the sender's
// when it arrives, the receiver's when it leaves. Only workloads have labels to read.
func TestBothEndsOfADropAreAskedFor(t *testing.T) {
	space, err := identity.NewSpace(identity.DefaultClusterBits)
	if err != nil {
		t.Fatal(err)
	}
	u := &unknowns{a: &Agent{space: space}, ask: make(chan identity.Number, 4)}
	west := identity.Number(2<<16 + 300)
	for _, e := range []datapath.Event{
		{SourceID: identity.World, DestID: west}, {SourceID: west + 1, DestID: identity.Host}, {DestID: identity.LocalBase + 1},
	} {
		u.seen(e)
	}
	close(u.ask)
	var asked []identity.Number
	for n := range u.ask {
		asked = append(asked, n)
	}
	if !slices.Equal(asked, []identity.Number{west, west + 1}) {
		t.Errorf("asked for %v", asked)
	}
}
