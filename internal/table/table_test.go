// SPDX-License-Identifier: Apache-2.0

package table

import (
	"testing"
)

func newInts() *Table[string, int] {
	return New[string, int]("ints", func(a, b int) bool { return a == b })
}

func TestUnchangedRowIsNoChange(t *testing.T) {
	tb := newInts()
	if !tb.Set("a", 1) || tb.Set("a", 1) || tb.Revision() != 1 {
		t.Fatalf("revision %d after storing the same row twice, want 1", tb.Revision())
	}
	if tb.Delete("b") || tb.Revision() != 1 {
		t.Fatal("deleting a missing row changed the table")
	}
}

func TestSubscriptionCoalescesByKey(t *testing.T) {
	tb := newInts()
	tb.Set("old", 1)
	c := tb.Subscribe()
	defer c.Close()
	for i := range 1000 {
		tb.Set("a", i)
	}
	tb.Delete("old")
	<-c.C()
	dirty, rev := c.Take()
	if len(dirty) != 2 || rev != tb.Revision() {
		t.Fatalf("took %d keys at revision %d, want 2 at %d", len(dirty), rev, tb.Revision())
	}
	if dirty, _ := c.Take(); len(dirty) != 0 {
		t.Fatalf("a second take returned %v", dirty)
	}
	c.Requeue("a")
	if dirty, _ := c.Take(); len(dirty) != 1 {
		t.Fatal("requeued key is lost")
	}
}

func TestClosedSubscriptionGetsNothing(t *testing.T) {
	tb := newInts()
	c := tb.Subscribe()
	c.Close()
	tb.Set("a", 1)
	if dirty, _ := c.Take(); len(dirty) != 0 {
		t.Fatal("closed subscription still collects")
	}
}
