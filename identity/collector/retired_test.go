// SPDX-License-Identifier: Apache-2.0

package collector_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/kvstore"
)

// A number that was given to others since, and is retired as theirs, is put back
// by nobody who had it before them: not by the labels key either.
func TestRetiredOfOthersIsNotPutBack(t *testing.T) {
	for _, stray := range []bool{false, true} {
		t.Run(fmt.Sprintf("labels key %t", stray), func(t *testing.T) {
			f := newFixture(t, 2)
			a, b, c := f.node("n1", false), f.node("n2", false), f.collector()
			f.allocate(b, "other")
			n := f.allocate(a, "web")
			f.forget("n1")
			f.pass(c, collector.Result{})
			f.pass(c, collector.Result{Retired: 1})
			f.pass(c, collector.Result{Freed: 1})
			if got := f.allocate(b, "db"); got != n {
				t.Fatalf("db has %d, not %d", got, n)
			}
			f.release(b, "db")
			f.setGate(collector.Gate{AtLeast: time.Hour})
			f.pass(c, collector.Result{})
			f.pass(c, collector.Result{Retired: 1})
			if stray {
				f.lead("web", n)
			}
			if moves, err := a.Confirm(t.Context()); !errors.Is(err, allocator.ErrExhausted) {
				t.Fatalf("confirmed while its number is retired of others: moves %v, %v", moves, err)
			}
			if stray { // it is remembered as that of both then
				f.pass(c, collector.Result{})
				f.pass(c, collector.Result{Stray: 1})
				if got := f.survey().Retired[n].LabelsHash; got != "" {
					t.Errorf("may be put back as that of %s", got)
				}
			}
			for _, set := range []string{"web", "db"} {
				if s := f.survey(); s.IDs[n].Labels.Hash() == f.set(set).Hash() || s.Used(n) {
					t.Errorf("put back as that of %s: %+v", set, s)
				}
			}
			f.setGate(collector.Gate{})
			f.pass(c, collector.Result{Freed: 1})
			if moves, err := a.Confirm(t.Context()); err != nil || len(moves) != 0 {
				t.Fatalf("moves %v, %v", moves, err)
			}
			judge(t, f.etcd, false)
		})
	}
}

// A retired number of which the store does not say whose it was, as API servers
// before this one wrote it, is put back by nobody.
func TestRetiredOfNobodyIsNotPutBack(t *testing.T) {
	f := newFixture(t, 2)
	a, _, n := f.retired()
	k := kvstore.NewKey(kvstore.Local, f.etcd.Cluster, kvstore.KindRetired, kvstore.NumberName(uint32(n)))
	f.put(k, &keyspacev1.IdentityRef{Number: uint32(n), UpdatedAt: time.Now().UnixNano()})
	moves, err := a.Confirm(t.Context())
	if err != nil || len(moves) != 1 || moves[0].Old != n || moves[0].New == n {
		t.Errorf("moves %v, %v", moves, err)
	}
}
