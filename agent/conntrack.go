// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/loader"
)

// fullConntrack says which tables of flows have no room left, or soon have none,
// and that new flows were refused.
func fullConntrack(r loader.FlowReport) (out []*hawserv1.Problem) {
	const fix = "see who opens so many: hawser monitor --type verdict; if that is as it should be, give it more room: hawser-agent --map-sizes default, " +
		"or more nodes for the pods; flows that live go on"
	for _, t := range r.Tables {
		if !t.Pressed() {
			continue
		}
		out = append(out, &hawserv1.Problem{
			Object:  "conntrack " + t.Map,
			Problem: fmt.Sprintf("%d of %d flows: at all of them new connections are dropped; silent ones are forgotten earlier until then", t.Flows, t.Room),
			Fix:     fix,
		})
	}
	if r.Refused > 0 {
		out = append(out, &hawserv1.Problem{
			Object: "conntrack", Problem: fmt.Sprintf("%d packets of new connections were dropped as conntrack full", r.Refused), Fix: fix,
		})
	}
	return out
}
