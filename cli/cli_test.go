// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/cli/session"
)

// TestWrongUse are command lines that are refused before anybody is asked: the
// context's clusters do not exist.
func TestWrongUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	text := "name: x\nclusters: [{name: east, socket: /nowhere.sock, nodes: [{name: n1, socket: /nowhere.sock}]}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, says := range map[string]string{
		"status --timeout 0":        "must be above zero",
		"status --timeout=-1s":      "must be above zero",
		"status --timeout soon":     "invalid duration",
		"identity get abc":          "give its number",
		"mesh join garbage":         "hawser mesh invite",
		"mesh preflight garbage":    "hawser mesh invite",
		"endpoint list --node nope": "there are: n1",
	} {
		cmd := New("hawser")
		cmd.SetArgs(append([]string{"--context", file}, strings.Fields(line)...))
		var out, errs bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&errs)
		code := Report(&errs, cmd.ExecuteContext(t.Context()))
		if code != session.WrongUse || !strings.Contains(errs.String(), says) {
			t.Errorf("hawser %s: exit code %d, want %d, and %q in: %s", line, code, session.WrongUse, says, errs.String())
		}
	}
}
