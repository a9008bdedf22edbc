// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// What the engine makes of a range of ports is, in the kernel, its first port, its
// last, what is between and nothing else; both families.
func TestRangeBoundaries(t *testing.T) {
	h := newHarness(t)
	ls := func(app string) labels.Set {
		return labels.New(labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"}, labels.Label{Source: labels.Kubernetes, Key: "app", Value: app})
	}
	source := uint16(2000)
	for _, r := range [][2]uint16{
		{80, 82}, {80, 83}, {80, 84}, {79, 83}, {81, 83}, {1, 4}, {4, 7}, {16, 32}, {1023, 1025}, {1024, 2047}, {32767, 32768},
		{30000, 32767}, {1, 65534}, {2, 65535}, {65531, 65535}, {443, 443}, {65535, 65535}, {1, 65535},
	} {
		first, last := r[0], r[1]
		e, err := policy.New(policy.Config{Cluster: "east"})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.UpsertIdentity(idR, "east", ls("peer")); err != nil {
			t.Fatal(err)
		}
		objects, err := api.Parse(fmt.Appendf(nil, `[{"labels":[{"key":"name","value":"range"}],"endpointSelector":{"matchLabels":{"app":"self"}},
			"egress":[{"toEndpoints":[{}],"toPorts":[{"ports":[{"port":%d,"endPort":%d,"protocol":"TCP"}]}]}]}]`, first, last))
		if err != nil {
			t.Fatal(err)
		}
		e.UpsertObject(objects[0])
		id, err := e.AcquireRuleSet(ls("self"))
		if err != nil {
			t.Fatal(err)
		}
		e.Changes()
		rs, _ := e.RuleSet(id)
		for _, f := range families() {
			h.rules(f.a, rs)
			ports := []uint16{1, first, last, first + (last-first)/2, 65535}
			if first > 1 {
				ports = append(ports, first-1)
			}
			if last < 65535 {
				ports = append(ports, last+1)
			}
			for _, port := range ports {
				source++
				got := h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, source, port, "S")))
				if port >= first && port <= last {
					h.passed(got)
				} else if d := h.dropped(got, maps.DropPolicyDenied); d.Direction != datapath.Egress {
					t.Errorf("%d-%d: port %d: %+v", first, last, port, d)
				}
			}
		}
	}
}
