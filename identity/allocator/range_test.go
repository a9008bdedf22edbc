// SPDX-License-Identifier: Apache-2.0

package allocator_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func TestExhaustion(t *testing.T) {
	e := etcdtest.Start(t)
	n := newNode(t, e, "n1", first+3) // numbers 1, 2 and 3
	r := n.feed(t, e)
	a := allocate(t, n, setOf(e, "a"))
	allocate(t, n, setOf(e, "b"))
	allocate(t, n, setOf(e, "c"))
	// Neither a view that knows all are taken nor one that knows nothing
	// hands out a number twice.
	if _, err := newNode(t, e, "n2", first+3).Allocate(t.Context(), setOf(e, "d")); !errors.Is(err, allocator.ErrExhausted) {
		t.Errorf("a fourth number of three, without a view: %v", err)
	}
	etcdtest.Eventually(t, 30*time.Second, "the view is complete", func() bool { return r.Status().Keys == 6 })
	before := n.client.count()
	_, err := n.Allocate(t.Context(), setOf(e, "d"))
	if !errors.Is(err, allocator.ErrExhausted) || n.client.count() != before {
		t.Errorf("a fourth number of three: %v after %d transactions", err, n.client.count()-before)
	}
	if got := allocate(t, n, setOf(e, "a")); got != a {
		t.Errorf("a number in use cannot be used once more: %d, %d", got, a)
	}
}

// The numbers given are the cluster's own, all of them but the first, with each
// division of the wire's bits.
func TestWholeRangeByClusterBits(t *testing.T) {
	for bits, id := range map[uint32]uint32{8: 255, 9: 300, 10: 1023} {
		space, err := identity.NewSpace(bits)
		if err != nil {
			t.Fatal(err)
		}
		lo, hi := space.Range(id)
		e := etcdtest.Start(t)
		index := allocator.NewIndex(e.Cluster)
		a, err := allocator.New(allocator.Config{Cluster: e.Cluster, First: lo, Last: hi, Node: "n1", Client: e.Agent(t, "n1"), Cache: index})
		if err != nil {
			t.Fatal(err)
		}
		// All but the last three are taken.
		var b store.Batch
		for n := lo + 1; n <= hi-3; n++ {
			b.Changes = append(b.Changes, store.Change{Key: kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRetired, kvstore.NumberName(uint32(n)))})
		}
		index.Apply(b)
		limits := kvstore.Limits{Space: space, ClusterID: func(string) uint32 { return id }}
		got := map[identity.Number]bool{}
		for i := range 3 {
			set := setOf(e, fmt.Sprintf("app%d", i))
			n, err := a.Allocate(t.Context(), set)
			if err != nil {
				t.Fatalf("%d bits: %v", bits, err)
			}
			got[n] = true
			k := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(n)))
			kv, _, err := e.APIServer(t).Get(t.Context(), k.String())
			if err != nil || kv == nil {
				t.Fatalf("%d bits: %s: %v, %v", bits, k, kv, err)
			}
			if _, err := limits.Decode(k, kv.Value); err != nil {
				t.Errorf("%d bits: readers refuse %d: %v", bits, n, err)
			}
		}
		if !got[hi] || !got[hi-1] || !got[hi-2] || len(got) != 3 {
			t.Errorf("%d bits: got %v of %d-%d", bits, got, hi-2, hi)
		}
		_, err = a.Allocate(t.Context(), setOf(e, "more"))
		if !errors.Is(err, allocator.ErrExhausted) {
			t.Errorf("%d bits: one more: %v", bits, err)
		}
	}
}

// One number that has to move and cannot does not keep the others from being put
// back.
func TestConfirmGoesOnWhenNumbersRunOut(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	n := newNode(t, e, "n1", first+2) // two numbers
	sets := []labels.Set{setOf(e, "a"), setOf(e, "b")}
	nums := []identity.Number{allocate(t, n, sets[0]), allocate(t, n, sets[1])}
	for i := range sets { // whichever is confirmed first
		collect(t, e, api, nums[0], sets[0])
		collect(t, e, api, nums[1], sets[1])
		taken := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(nums[i])))
		v, err := kvstore.Encode(taken, &keyspacev1.Identity{Number: uint32(nums[i]), Labels: setOf(e, "other").Strings()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(taken.String(), v)}, nil); err != nil {
			t.Fatal(err)
		}
		moves, err := n.Confirm(t.Context())
		if !errors.Is(err, allocator.ErrExhausted) || len(moves) != 0 {
			t.Errorf("moves %v, %v", moves, err)
		}
		back := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(nums[1-i]))).String()
		if kv, _, err := api.Get(t.Context(), back); err != nil || kv == nil {
			t.Errorf("the number that can be put back is not: %v", err)
		}
	}
}
