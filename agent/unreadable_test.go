// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// Keys that cannot be read are told by name, with what to do, until they can be.
func TestUnreadableKeysAreTold(t *testing.T) {
	u := newUnreadable("east", false)
	policy := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPolicy, "demo", "closed")
	u.apply(kvstore.Local, store.Batch{Unreadable: []store.Unreadable{{Key: policy, Said: true}}})
	var many []store.Unreadable
	for i := range 12 {
		many = append(many, store.Unreadable{Key: kvstore.NewKey(kvstore.State, "east", kvstore.KindIP, fmt.Sprintf("10.1.0.%d/32", i))})
	}
	u.apply(kvstore.State, store.Batch{Unreadable: many})
	ps := u.problems()
	if !u.policies() || len(ps) != unreadableShown || ps[0].GetObject() != "key local/east/policies/demo/closed" ||
		!strings.Contains(ps[0].GetFix(), "hawser policy delete -n demo closed") {
		t.Errorf("policies %v, told %v", u.policies(), ps)
	}
	if last := ps[len(ps)-1]; !strings.Contains(last.GetFix(), "hawser kvstore del state/east/ips/") || !strings.Contains(last.GetProblem(), "more") {
		t.Errorf("the last one told is %v", last)
	}
	// What was never read since the agent started does not hold.
	if before, never := ps[0].GetProblem(), ps[1].GetProblem(); !strings.Contains(before, "still holds") || strings.Contains(never, "still holds") || !strings.Contains(never, "goes without") {
		t.Errorf("a key that was read before is told as %q, one that was not as %q", before, never)
	}
	// A copy of a peer's key is not to be removed: what cures it says where from.
	u.apply(kvstore.State, store.Batch{Unreadable: []store.Unreadable{{Key: kvstore.NewKey(kvstore.State, "west", kvstore.KindIP, "10.2.0.7/32")}}})
	if fix := u.problems()[1].GetFix(); strings.Contains(fix, "kvstore del") || !strings.Contains(fix, "hawser kvstore diff west") || !strings.Contains(fix, "copies all of west again by itself") {
		t.Errorf("of a peer's key it says: %s", fix)
	}
	// In a shared etcd there is no copy, and so nothing to compare or to copy again.
	u.shared = true
	if fix := u.problems()[1].GetFix(); strings.Contains(fix, "kvstore del") || strings.Contains(fix, "diff") || !strings.Contains(fix, "its writer in west") {
		t.Errorf("of another cluster's key in a shared etcd it says: %s", fix)
	}
	u.apply(kvstore.State, store.Batch{Unreadable: many[:1]})
	if fix := u.problems()[1].GetFix(); !strings.Contains(fix, "hawser kvstore del state/east/ips/") {
		t.Errorf("of an own key in a shared etcd it says: %s", fix)
	}
	u.apply(kvstore.Local, store.Batch{})
	u.apply(kvstore.State, store.Batch{})
	if u.policies() || len(u.problems()) != 0 {
		t.Errorf("still told: %v", u.problems())
	}
}
