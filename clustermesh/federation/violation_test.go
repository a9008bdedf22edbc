// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/kvstore"
)

// What is counted under a reason that the list does not have is seen only after
// its first time.
func TestReasonsAreComplete(t *testing.T) {
	all := Reasons()
	if sorted := slices.Sorted(slices.Values(all)); len(slices.Compact(sorted)) != len(all) {
		t.Errorf("one is there twice: %q", all)
	}
	for dir, from := range map[string][]string{"../../kvstore": kvstore.Reasons(), "../peering": all, ".": all} {
		found := reasonsIn(t, dir)
		if len(found) == 0 {
			t.Errorf("%s: no constant is a reason", dir)
		}
		for name, reason := range found {
			if !slices.Contains(from, reason) {
				t.Errorf("%s: %s (%q) is not in the list", dir, name, reason)
			}
		}
	}
}

// reasonsIn are the constants of a package that are called a reason.
func reasonsIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 || !strings.HasPrefix(strings.ToLower(v.Names[0].Name), "reason") {
				return true
			}
			if lit, ok := v.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if found[v.Names[0].Name], err = strconv.Unquote(lit.Value); err != nil {
					t.Error(err)
				}
			}
			return true
		})
	}
	return found
}
