// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// A prefix that comes, changes or goes has the established flows of all its
// addresses judged again, without any change of policy.
func TestPrefixMovesEstablishedFlows(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"prefix", func(t *testing.T) { prefixMovesFlows(t, f) })
	}
}

func prefixMovesFlows(t *testing.T, f family) {
	h := newHarness(t)
	const good, bad = identity.LocalBase + 1, identity.LocalBase + 2
	wide, narrow, format := key("50.0.0.0/8"), key("50.0.0.0/24"), "50.0.0.%d"
	if isIPv6(f.a.ip) {
		wide, narrow, format = key("2001:db8:5::/48"), key("2001:db8:5::/64"), "2001:db8:5::%x"
	}
	set := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{}}
	for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
		set.Entries[datapath.PolicyKey{Direction: d, Identity: good}] = datapath.PolicyEntry{}
	}
	h.tables.IPCache.Set(wide, datapath.IPEntry{Identity: good})
	h.rules(f.a, set)
	const flows = 8 // in different buckets of epochs
	packet := func(i int, flags string) result {
		return h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, fmt.Sprintf(format, i+1), uint16(1000+i), 80, flags)))
	}
	for i := range flows {
		out := packet(i, "S").act != actShot
		in := h.fromOverlay(h.plain(segment(fmt.Sprintf(format, i+1), f.a.ip, 80, uint16(1000+i), "SA"))).act != actShot
		if again := packet(i, "A").act != actShot; !out || !in || !again {
			t.Fatalf("the flow does not pass: %v %v %v", out, in, again)
		}
	}
	for _, step := range []struct {
		name   string
		change func()
		pass   bool
	}{
		{"a denied prefix comes", func() { h.tables.IPCache.Set(narrow, datapath.IPEntry{Identity: bad}) }, false},
		{"it goes", func() { h.tables.IPCache.Delete(narrow) }, true},
		{"the prefix changes", func() { h.tables.IPCache.Set(wide, datapath.IPEntry{Identity: bad}) }, false},
		{"and back", func() { h.tables.IPCache.Set(wide, datapath.IPEntry{Identity: good}) }, true},
	} {
		step.change()
		h.sync()
		for i := range flows {
			if r := packet(i, "A"); (r.act != actShot) != step.pass {
				t.Errorf("%s: flow %d passes: %v", step.name, i, !step.pass)
			}
		}
		if events := h.events(); !step.pass && (len(events) != flows || events[0].Reason != maps.DropPolicyDenied) {
			t.Errorf("%s: %d drops told", step.name, len(events))
		}
	}
}
