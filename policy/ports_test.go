// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy/api"
)

// A range is its first port, its last, what is between and nothing else.
func TestRangeBoundaries(t *testing.T) {
	for _, r := range [][2]uint16{
		{80, 82}, {80, 83}, {80, 84}, {79, 83}, {81, 83}, {80, 81}, {1, 2}, {1, 3}, {1, 4}, {3, 4}, {4, 7}, {4, 8}, {15, 16}, {16, 31}, {16, 32},
		{63, 64}, {1023, 1025}, {1024, 2047}, {1024, 2048}, {32767, 32768}, {1, 65534}, {2, 65535}, {65534, 65535}, {65532, 65535}, {65531, 65535},
		{30000, 32767}, {443, 443}, {65535, 65535}, {1, 1}, {1, 65535},
	} {
		first, last := r[0], r[1]
		for _, deny := range []bool{false, true} {
			section, peers := "ingress", `"fromEndpoints":[{}]`
			source := fmt.Sprintf(`"%s":[{%s,"toPorts":[{"ports":[{"port":%d,"endPort":%d,"protocol":"TCP"}]}]}]`, section, peers, first, last)
			if deny {
				source = `"ingress":[{"fromEndpoints":[{}]}],` + fmt.Sprintf(`"ingressDeny":[{"fromEndpoints":[{}],"toPorts":[{"ports":[{"port":%d,"endPort":%d,"protocol":"TCP"}]}]}]`, first, last)
			}
			e := demo(t, Config{})
			apply(t, e, ruleOf(source))
			id, err := e.AcquireRuleSet(app1(t))
			if err != nil {
				t.Fatal(err)
			}
			e.Changes()
			rs, _ := e.RuleSet(id)
			for _, port := range boundaries(first, last) {
				want := (port >= first && port <= last) != deny
				if got := Decide(rs, datapath.Ingress, Peer{Identity: eastApp2}, api.TCP, port); got.Allow != want {
					t.Errorf("%d-%d deny=%v: port %d: allow=%v (%+v)", first, last, deny, port, got.Allow, got.Key)
				}
			}
			if got := Decide(rs, datapath.Ingress, Peer{Identity: eastApp2}, api.UDP, first); got.Allow != deny {
				t.Errorf("%d-%d deny=%v: the same port of UDP: allow=%v", first, last, deny, got.Allow)
			}
			if got := Decide(rs, datapath.Ingress, Peer{Identity: identity.World}, api.TCP, first); got.Allow {
				t.Errorf("%d-%d deny=%v: somebody else is let in", first, last, deny)
			}
		}
	}
}

// boundaries are the ports at the ends of a range, on both sides, and the far ones.
func boundaries(first, last uint16) []uint16 {
	ports := []uint16{1, first, last, first + (last-first)/2, 65535}
	if first > 1 {
		ports = append(ports, first-1)
	}
	if last < 65535 {
		ports = append(ports, last+1)
	}
	return ports
}
