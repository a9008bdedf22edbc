// SPDX-License-Identifier: Apache-2.0

package loader

import "testing"

// Refused flows are told until there have been none for a minute; what was counted
// before the agent began is not.
func TestRefusedFlowsAreTold(t *testing.T) {
	const hz = 100
	var r FlowReport
	for i, c := range []struct {
		total uint64
		at    uint32 // seconds
		want  uint64
	}{{500, 1, 0}, {500, 11, 0}, {507, 21, 7}, {507, 31, 7}, {510, 41, 10}, {510, 101, 10}, {510, 102, 0}, {511, 110, 1}, {3, 120, 1}, {4, 130, 2}} {
		if r.refuse(c.total, c.at*hz, hz); r.Refused != c.want {
			t.Errorf("pass %d: %d refused, want %d", i, r.Refused, c.want)
		}
	}
}

func TestPressed(t *testing.T) {
	for _, c := range []struct {
		FlowTable
		want bool
	}{{FlowTable{"ct4", 89, 100}, false}, {FlowTable{"ct4", 90, 100}, true}, {FlowTable{"ct4", 0, 0}, false}} {
		if c.Pressed() != c.want {
			t.Errorf("%+v is pressed: %v", c.FlowTable, !c.want)
		}
	}
}
