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
	_, table, ok := strings.Cut(string(text), "## Attacks\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[3]) == "test" {
			continue
		}
		if rows++; !name.MatchString(cells[3]) {
			t.Errorf("no test is named for: %s", strings.TrimSpace(cells[1]))
		}
	}
	if !ok || rows < 30 {
		t.Errorf("%d attacks found: is the table still there?", rows)
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
