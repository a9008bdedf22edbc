// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"testing"

	"github.com/hawser-mesh/hawser/kvstore"
)

// TestUnreadableListedOnce: the list is made again only after a change, and what
// was handed out before stays as it was.
func TestUnreadableListedOnce(t *testing.T) {
	var u unreadable
	if got := u.all(); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
	for n := range 1000 {
		u.add(fmt.Sprint(n), Unreadable{Key: kvstore.Key{Names: []string{fmt.Sprint(n)}}})
	}
	before := u.all()
	u.add("1", Unreadable{})
	u.remove("other")
	if allocs := testing.AllocsPerRun(10, func() { u.all() }); allocs != 0 || len(before) != 1000 {
		t.Errorf("%d keys, listed again without a change: %v allocations", len(before), allocs)
	}
	u.remove("1")
	if got := u.all(); len(got) != 999 || len(before) != 1000 {
		t.Errorf("after a removal: %d keys, and %d in the list from before", len(got), len(before))
	}
}
