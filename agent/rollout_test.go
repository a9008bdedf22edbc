// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"
)

// What a node tells of its policies' problems is by their names, and bounded.
func TestToldProblems(t *testing.T) {
	a := &Agent{cfg: Config{Cluster: "east"}, view: testView(t)}
	if got := a.toldProblems(); len(got) != 0 {
		t.Errorf("without problems: %v", got)
	}
	for i := range 50 {
		a.view.policies[fmt.Sprintf("demo/p%02d", i)] = "unknown field\nand another"
	}
	got := a.toldProblems()
	if len(got) != 32 || got["demo/p32"] != "" || !strings.HasPrefix(got["demo/p31"], "unknown field; and another (apply it anew") {
		t.Errorf("%d of 50, %v", len(got), got)
	}
}
