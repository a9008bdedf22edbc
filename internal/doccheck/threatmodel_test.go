// SPDX-License-Identifier: Apache-2.0

package doccheck

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// The threat model backs what it says with names of tests: there has to be one of
// each name, and one for each attack.
func TestThreatModelNamesTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := tests(t)
	name := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`|([a-z0-9-]+\\.txtar)")
	named := 0
	for _, m := range name.FindAllStringSubmatch(string(text), -1) {
		named++
		if n := m[1] + m[2]; !there[n] {
			t.Errorf("the threat model names %s, which is no test", n)
		}
	}
	if named < 50 {
		t.Errorf("only %d names found: is the pattern still right?", named)
	}
	stolen, attacks, ok := strings.Cut(string(text), "## Attacks\n")
	attacks, _, _ = strings.Cut(attacks, "\n## ")
	for table, want := range map[string]struct{ columns, rows int }{stolen: {4, 14}, attacks: {3, 30}} {
		rows := 0
		for line := range strings.Lines(table) {
			cells := strings.Split(strings.TrimSpace(line), "|")
			if len(cells) != want.columns+2 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[want.columns]) == "test" {
				continue
			}
			if rows++; !name.MatchString(cells[want.columns]) {
				t.Errorf("no test is named for: %s", strings.TrimSpace(cells[1]))
			}
		}
		if !ok || rows < want.rows {
			t.Errorf("%d rows of %d columns found: is the table still there?", rows, want.columns)
		}
	}
}

// So does the guide of faults, and with names of scripts.
func TestFaultsNameTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "guide", "faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := tests(t)
	named := 0
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`").FindAllStringSubmatch(string(text), -1) {
		if named++; !there[m[1]] {
			t.Errorf("the guide names %s, which is no test", m[1])
		}
	}
	scripts := 0
	for _, m := range regexp.MustCompile("(?m)e2e `([a-z0-9-]+)`|\\| `([a-z0-9-]+)` \\|$").FindAllStringSubmatch(string(text), -1) {
		if scripts++; !there[m[1]+m[2]+".txtar"] {
			t.Errorf("the guide names the script %s, which is none", m[1]+m[2])
		}
	}
	if named < 50 || scripts < 10 {
		t.Errorf("only %d tests and %d scripts found: are the patterns still right?", named, scripts)
	}
}

// tests are the names of all tests, fuzz tests and scripts.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".txtar"):
			out[d.Name()] = true
		case strings.HasSuffix(path, "_test.go"):
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range declared.FindAllSubmatch(text, -1) {
				out[string(m[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
