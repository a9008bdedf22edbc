// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hawser-mesh/hawser/cli/session"
)

// A flag's value is one word in the help: what stands in backquotes in its text
// takes the value's place.
func TestFlagsHaveShortValues(t *testing.T) {
	flags := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			flags++
			if value, _ := pflag.UnquoteUsage(f); strings.Contains(value, " ") {
				t.Errorf("%s: --%s %s", cmd.CommandPath(), f.Name, value)
			}
		})
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	if walk(New("hawser")); flags == 0 {
		t.Error("no command has flags")
	}
}

// TestWrongUse are command lines that are refused before anybody is asked: the
// context's clusters do not exist.
func TestWrongUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	text := "name: x\nclusters: [{name: east, socket: /nowhere.sock, nodes: [{name: n1, socket: /nowhere.sock}]}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	labFile := filepath.Join(t.TempDir(), "lab.yaml")
	if err := os.WriteFile(labFile, []byte("clusters: [{serviceCIDR: 172.31.9.0/32}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, says := range map[string]string{
		"status --timeout 0":        "must be above zero",
		"status --timeout=-1s":      "must be above zero",
		"status --timeout soon":     "invalid duration",
		"vtep add 10.1.5.0/24":      `required flag(s) "tunnel" not set`,
		"policy trace":              `required flag(s) "dport", "dst", "src" not set`,
		"policy list x":             `hawser policy list takes no arguments: ["x"]`,
		"policy lint --filename=":   "-f needs a FILE",
		"policy delete":             "say what to delete",
		"policy delete a -f b":      "and not both",
		"policy delete -n a -f b":   "objects in files say their own",
		"policy delete a/b -n c":    `--namespace says "c"`,
		"service delete a/b/c":      "or NAMESPACE/NAME",
		"service delete a/":         "or NAMESPACE/NAME",
		"monitor --count -1":        "may not be negative",
		"monitor --for -1s":         "may not be negative",
		"monitor --type=":           "--type not empty",
		"cleanup --node ../x":       `"../x" is no node's name`,
		"identity get abc":          "give its number",
		"mesh join garbage":         "hawser mesh invite",
		"mesh preflight Garbage":    "hawser mesh invite",
		"lab up --nodes 0":          "between 1 and 200",
		"lab up --clusters 0":       "between 1 and 255",
		"lab up --clusters 256":     "between 1 and 255",
		"lab up --name no-good":     "lab name",
		"lab up --file " + labFile:  "serviceCIDR",
		"lab status":                "not a lab's",
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
