// SPDX-License-Identifier: Apache-2.0

package allocator_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// allocateAll has every node allocate every label set at the same time, and
// returns what each got.
func allocateAll(t *testing.T, e *etcdtest.Etcd, nodes []*node, sets int) []map[string]identity.Number {
	t.Helper()
	out := make([]map[string]identity.Number, len(nodes))
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, n := range nodes {
		out[i] = map[string]identity.Number{}
		for s := range sets {
			all.Go(func() {
				set := setOf(e, fmt.Sprintf("app-%d", s))
				num, err := n.Allocate(t.Context(), set)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				out[i][set.Hash()] = num
			})
		}
	}
	all.Wait()
	return out
}

// Callers that come at once share transactions, and each gets a number of its
// own with all that belongs to it.
func TestManyNewLabelsShareTransactions(t *testing.T) {
	const sets = 200
	e := etcdtest.Start(t)
	n := newNode(t, e, "n1", last)
	got := allocateAll(t, e, []*node{n}, sets)[0]
	if c := n.client.count(); c > sets/2 {
		t.Errorf("%d transactions for %d label sets: they did not share any", c, sets)
	}
	checkStored(t, e, n, got, sets)
}

// checkStored compares what was given with what is stored.
func checkStored(t *testing.T, e *etcdtest.Etcd, n *node, got map[string]identity.Number, sets int) {
	t.Helper()
	numbers := map[identity.Number]bool{}
	ids := keys(t, n.client, kvstore.KindPrefix(kvstore.State, e.Cluster, kvstore.KindIdentity))
	byLabels := keys(t, n.client, kvstore.KindPrefix(kvstore.State, e.Cluster, kvstore.KindIdentityLabels))
	refs := keys(t, n.client, kvstore.KindPrefix(kvstore.Local, e.Cluster, kvstore.KindRef))
	for hash, num := range got {
		numbers[num] = true
		name := kvstore.NumberName(uint32(num))
		for what, k := range map[string]struct {
			key kvstore.Key
			in  map[string]kvstore.KV
		}{
			"number":    {kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, name), ids},
			"labels":    {kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentityLabels, hash), byLabels},
			"reference": {kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRef, name, "n1"), refs},
		} {
			if _, ok := k.in[k.key.String()]; !ok {
				t.Errorf("the %s of %d is not stored", what, num)
			}
		}
	}
	if len(numbers) != sets {
		t.Errorf("%d label sets got %d different numbers", sets, len(numbers))
	}
	if len(byLabels) != sets {
		t.Errorf("%d label sets are stored, not %d", len(byLabels), sets)
	}
}

// Nodes that want the same labels at once, out of hardly more numbers than
// there are labels, agree on every one of them.
func TestNodesThatGroupAgree(t *testing.T) {
	const sets = 100
	e := etcdtest.Start(t)
	nodes := []*node{newNode(t, e, "n1", first+sets+20), newNode(t, e, "n2", first+sets+20)}
	for _, n := range nodes {
		n.feed(t, e)
	}
	got := allocateAll(t, e, nodes, sets)
	for hash, num := range got[0] {
		if other := got[1][hash]; other != num {
			t.Errorf("one node has %d for %s, the other %d", num, hash, other)
		}
	}
	checkStored(t, e, nodes[0], got[0], sets)
}

// blocked is a client whose transactions wait until they are let go.
type blocked struct {
	kvstore.Client
	entered chan struct{}
	release chan struct{}
}

func (b *blocked) Txn(ctx context.Context, cmps []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	b.entered <- struct{}{}
	<-b.release
	return b.Client.Txn(ctx, cmps, thens, elses)
}

// Who gives up while it waits for its turn leaves nothing behind.
func TestGivingUpInTheQueue(t *testing.T) {
	e := etcdtest.Start(t)
	n := newNode(t, e, "n1", last)
	b := &blocked{Client: n.client.Client, entered: make(chan struct{}, 10), release: make(chan struct{})}
	n.client.Client = b
	var busy sync.WaitGroup
	for _, app := range []string{"a", "b"} { // as many as may be under way
		busy.Go(func() { allocate(t, n, setOf(e, app)) })
		<-b.entered
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Allocate(ctx, setOf(e, "c")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
	busy.Go(func() { allocate(t, n, setOf(e, "d")) }) // would share what is left of c's
	close(b.release)
	busy.Wait()
	if got := keys(t, b.Client, kvstore.KindPrefix(kvstore.State, e.Cluster, kvstore.KindIdentityLabels)); len(got) != 3 {
		t.Errorf("%d label sets are stored, not those of the three who waited", len(got))
	}
}
