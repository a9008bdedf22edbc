// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity/collector"
)

// A peer counts as cut off for as long as this process has seen it so, whatever
// hour the clocks of those who wrote its view, or of this host, show.
func TestCutOffsCountByThemselves(t *testing.T) {
	var c cutOffs
	begin := time.Now() // with a monotonic reading, which is what counts
	view := func(connected bool, since time.Time) []*keyspacev1.PeerView {
		return []*keyspacev1.PeerView{{Peer: "west", Connected: connected, Since: since.UnixNano()}}
	}
	cut := begin.Add(-time.Hour) // written by a replica whose clock is an hour behind
	if d := c.note(view(false, cut), begin)["west"]; d != 0 {
		t.Errorf("at once: %v", d)
	}
	if d := c.note(view(false, cut), begin.Add(10*time.Minute))["west"]; d != 10*time.Minute {
		t.Errorf("after ten minutes: %v", d)
	}
	if len(c.note(view(true, begin), begin.Add(11*time.Minute))) != 0 {
		t.Error("a connected peer is cut off")
	}
	again := begin.Add(12 * time.Minute)
	c.note(view(false, again), again)
	if d := c.note(view(false, again.Add(time.Second)), again.Add(time.Minute))["west"]; d != 0 {
		t.Errorf("cut off anew between two looks: %v", d)
	}

	// What that is for: the number of a peer that is still to expire is kept.
	const expire = 30 * time.Minute
	retired := collector.Retired{Number: 70000, Since: begin.Add(-2 * time.Hour), Revision: 100}
	for name, x := range map[string]struct {
		wall, seen time.Duration
		want       string
	}{
		"clocks are right":                    {expire, expire, ""},
		"this host's clock is an hour ahead":  {time.Hour + time.Minute, time.Minute, "peer west"},
		"this host's clock is an hour behind": {expire - time.Hour, expire, "peer west"},
	} {
		g := collector.Gate{ExpireAfter: expire, Peers: view(false, begin), Now: begin.Add(x.wall), CutOff: map[string]time.Duration{"west": x.seen}}
		if got := g.WaitsFor(retired); got != x.want {
			t.Errorf("%s: waits for %q, want %q", name, got, x.want)
		}
	}
}
