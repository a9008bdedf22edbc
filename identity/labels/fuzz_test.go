// SPDX-License-Identifier: Apache-2.0

package labels

import (
	"strings"
	"testing"
)

// FuzzParseSet is what a peer or a workload can call its labels: what is taken
// is canonical, and no other set has its text.
func FuzzParseSet(f *testing.F) {
	f.Add("k8s:app=web\nmesh:cluster=east", "any")
	f.Add("app=web\napp=web\n:=", "k8s")
	f.Add("a:b:c=d=e;f=g", "k8s")
	f.Add("reserved:host", "")
	f.Fuzz(func(t *testing.T, text, def string) {
		set, err := ParseSet(strings.Split(text, "\n"), def)
		if err != nil {
			return
		}
		again, err := ParseSet(set.Strings(), Any)
		if err != nil || !again.Equal(set) || again.Hash() != set.Hash() {
			t.Fatalf("%q is %v, and that is %v, %v", text, set, again, err)
		}
		if n := strings.Count(set.Canonical(), ";"); n != len(set) {
			t.Fatalf("%d labels, canonical %q", len(set), set.Canonical())
		}
	})
}

// FuzzFilter is a pattern of an operator on labels of a workload.
func FuzzFilter(f *testing.F) {
	f.Add("!k8s:rev", "k8s:app=web\nk8s:rev=1")
	f.Add("k8s:app.kubernetes.io/", "k8s:app.kubernetes.io/name=x")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		flt, err := ParseFilter([]string{pattern})
		if err != nil {
			return
		}
		set, err := ParseSet(strings.Split(text, "\n"), Kubernetes)
		if err != nil {
			return
		}
		once := flt.Apply(set)
		if twice := flt.Apply(once); !twice.Equal(once) {
			t.Fatalf("filtered %v, and again %v", once, twice)
		}
	})
}
