// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// A device without an endpoint: its pod is not made yet, or gone.
func TestUnknownEndpoint(t *testing.T) {
	h := newHarness(t)
	packet := h.sent(podA, segment(podA.ip, podB.ip, 1005, 80, "S"))
	h.passed(h.fromPod(podA, packet))
	h.tables.Endpoints.Delete(h.eps[podA.name].ID)
	h.sync()
	if err := h.r.MarkComplete(h.tables.Endpoints.Name()); err != nil {
		t.Fatal(err)
	}
	h.dropped(h.fromPod(podA, packet), maps.DropUnknownEndpoint)
}

// TestEveryReasonHasATest looks for a test of this package that wants each drop
// reason there is.
func TestEveryReasonHasATest(t *testing.T) {
	excused := map[string]string{
		"DropReasons":       "it is how many there may be",
		"DropRewriteFailed": "the kernel refuses to change a packet only when it is out of memory",
	}
	source, err := os.ReadFile("../../datapath/maps/reasons.go")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := ""
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		tests += string(raw)
	}
	reasons := regexp.MustCompile(`(?m)^\s+((?:Drop|Audit)[A-Za-z]+)\b`).FindAllStringSubmatch(string(source), -1)
	if len(reasons) < 20 {
		t.Fatalf("only %d reasons found", len(reasons))
	}
	for _, r := range reasons {
		name := r[1]
		wanted := strings.Contains(tests, "maps."+name+")") || strings.Contains(tests, "maps."+name+",") || strings.Contains(tests, "maps."+name+"}")
		if _, ok := excused[name]; !ok && !wanted {
			t.Errorf("no test wants %s", name)
		}
	}
}
