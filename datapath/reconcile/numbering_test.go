// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"testing"
)

func TestNumbersAreReusedLate(t *testing.T) {
	n := newNumbering[string](5) // 1 to 4
	n.adopt("pinned", 2)
	a, _ := n.of("a")
	b, _ := n.of("b")
	if a != 3 || b != 4 {
		t.Fatalf("a is %d, b is %d; want 3 and 4, behind the adopted number", a, b)
	}
	n.release("a")
	if c, _ := n.of("c"); c != 1 {
		t.Errorf("c is %d, want 1: the one released last is the last to be taken", c)
	}
	if d, _ := n.of("d"); d != 3 {
		t.Errorf("d is %d, want 3", d)
	}
	if _, err := n.of("e"); !errors.Is(err, errNoNumber) {
		t.Errorf("error %v, want that all are taken", err)
	}
	n.keep(func(k string) bool { return k == "pinned" })
	if again, _ := n.of("pinned"); again != 2 {
		t.Errorf("pinned is %d, want 2", again)
	}
	if _, err := n.of("e"); err != nil {
		t.Error(err)
	}
}
