// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// The status says that conntrack is full, or that it refused flows, and what to do.
func TestFullConntrackIsAProblem(t *testing.T) {
	tables := func(flows4, flows6 int) []loader.FlowTable {
		return []loader.FlowTable{{Map: "ct4", Flows: flows4, Room: 32768}, {Map: "ct6", Flows: flows6, Room: 16384}}
	}
	for _, c := range []struct {
		loader.FlowReport
		want []string
	}{
		{loader.FlowReport{}, nil},
		{loader.FlowReport{Tables: tables(100, 0)}, nil},
		{loader.FlowReport{Tables: tables(32768, 0)}, []string{"conntrack ct4: 32768 of 32768 flows"}},
		{loader.FlowReport{Tables: tables(0, 16000)}, []string{"conntrack ct6: 16000 of 16384 flows"}},
		{loader.FlowReport{Tables: tables(100, 0), Refused: 7}, []string{"conntrack: 7 packets of new connections were dropped"}},
		{loader.FlowReport{Tables: tables(32768, 16384), Refused: 7}, []string{"conntrack ct4", "conntrack ct6", "conntrack: 7"}},
	} {
		got := fullConntrack(c.FlowReport)
		if len(got) != len(c.want) {
			t.Fatalf("%+v: problems %v, want %q", c.FlowReport, got, c.want)
		}
		for i, p := range got {
			if says := p.GetObject() + ": " + p.GetProblem(); !strings.HasPrefix(says, c.want[i]) || !strings.Contains(p.GetFix(), "--map-sizes") {
				t.Errorf("%q (%s), want %q", says, p.GetFix(), c.want[i])
			}
		}
	}
}
