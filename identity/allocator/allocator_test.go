// SPDX-License-Identifier: Apache-2.0

package allocator_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

const (
	first identity.Number = 1 << 16
	last  identity.Number = 2<<16 - 1
)

func setOf(e *etcdtest.Etcd, app string) labels.Set {
	return labels.New(
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: app},
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: e.Cluster},
	)
}

// counter counts the transactions of a client.
type counter struct {
	kvstore.Client
	mu sync.Mutex
	n  int
}

func (c *counter) Txn(ctx context.Context, cmps []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.Client.Txn(ctx, cmps, thens, elses)
}

func (c *counter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

type node struct {
	*allocator.Allocator
	index  *allocator.Index
	client *counter
}

func newNode(t testing.TB, e *etcdtest.Etcd, name string, lastNumber identity.Number) *node {
	t.Helper()
	n := &node{index: allocator.NewIndex(e.Cluster), client: &counter{Client: e.Agent(t, name)}}
	a, err := allocator.New(allocator.Config{
		Cluster: e.Cluster, First: first, Last: lastNumber, Node: name, Client: n.client, Cache: n.index,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Allocator = a
	return n
}

// feed keeps the node's index up to date until the test ends.
func (n *node) feed(t testing.TB, e *etcdtest.Etcd) *store.Reader {
	t.Helper()
	r, err := store.NewReader(store.ReaderConfig{
		Client: n.client, Prefix: kvstore.SubtreePrefix(kvstore.State), Apply: n.index.Apply,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func allocate(t testing.TB, n *node, set labels.Set) identity.Number {
	t.Helper()
	num, err := n.Allocate(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	return num
}

func keys(t testing.TB, c kvstore.Client, prefix string) map[string]kvstore.KV {
	t.Helper()
	p, err := c.List(t.Context(), prefix, "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]kvstore.KV{}
	for _, kv := range p.KVs {
		out[kv.Key] = kv
	}
	return out
}

func refs(t testing.TB, e *etcdtest.Etcd, c kvstore.Client) int {
	t.Helper()
	return len(keys(t, c, kvstore.KindPrefix(kvstore.Local, e.Cluster, kvstore.KindRef)))
}

func TestUsesAreCounted(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	n := newNode(t, e, "n1", last)
	web := setOf(e, "web")
	num := allocate(t, n, web)
	if num <= first || num > last {
		t.Errorf("number %d is outside of %d-%d", num, first+1, last)
	}
	before := n.client.count()
	if again := allocate(t, n, web); again != num {
		t.Errorf("same labels got %d and %d", num, again)
	}
	if c := n.client.count(); c != before {
		t.Errorf("the second use on the node cost %d transactions", c-before)
	}
	if db := allocate(t, n, setOf(e, "db")); db == num {
		t.Error("different labels have the same number")
	}
	if err := n.Release(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	if r := refs(t, e, api); r != 2 {
		t.Errorf("%d references while both numbers are in use", r)
	}
	if err := n.Release(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	if r := refs(t, e, api); r != 1 {
		t.Errorf("%d references after the last use of one of two ended", r)
	}
	if _, used := n.InUse()[num]; used {
		t.Error("still in use")
	}
	if err := n.Release(t.Context(), web); err == nil {
		t.Error("released what is not in use")
	}
	if again := allocate(t, n, web); again != num {
		t.Errorf("the number changed from %d to %d although it was never collected", num, again)
	}
	if r := refs(t, e, api); r != 2 {
		t.Errorf("%d references after using it again", r)
	}
}

func TestLabelsThatMayNotBeStored(t *testing.T) {
	e := etcdtest.Start(t)
	n := newNode(t, e, "n1", last)
	for _, set := range []labels.Set{
		labels.New(labels.Label{Source: labels.Kubernetes, Key: "app", Value: "web"}),
		setOf(e, "web").With(labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "west"}),
		setOf(e, "web").With(labels.Label{Source: labels.Reserved, Key: "host"}),
		setOf(e, "web").With(labels.Label{Source: labels.Kubernetes, Key: "io.cilium.k8s.policy.cluster", Value: "west"}),
	} {
		var bad *kvstore.BadRecord
		if num, err := n.Allocate(t.Context(), set); !errors.As(err, &bad) {
			t.Errorf("%s got %d, %v", set, num, err)
		}
	}
	if n.client.count() != 0 {
		t.Error("asked the store")
	}
}

// Several nodes, with and without a view of the others, race for the same and
// for different labels.
func TestNodesRace(t *testing.T) {
	const nodes, callers, sets = 4, 32, 8
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	var all []*node
	for i := range nodes {
		n := newNode(t, e, fmt.Sprintf("n%d", i), last)
		if i%2 == 0 {
			n.feed(t, e)
		}
		all = append(all, n)
	}
	var mu sync.Mutex
	got := map[string]map[identity.Number]bool{}
	var wg sync.WaitGroup
	for _, n := range all {
		for c := range callers {
			wg.Go(func() {
				app := fmt.Sprintf("app%d", c%sets)
				num, err := n.Allocate(t.Context(), setOf(e, app))
				if err != nil {
					t.Errorf("%s: %v", app, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if got[app] == nil {
					got[app] = map[identity.Number]bool{}
				}
				got[app][num] = true
			})
		}
	}
	wg.Wait()
	numbers := map[identity.Number]bool{}
	for app, nums := range got {
		if len(nums) != 1 {
			t.Errorf("%s has numbers %v", app, nums)
		}
		for n := range nums {
			numbers[n] = true
		}
	}
	if len(numbers) != sets {
		t.Errorf("%d numbers for %d label sets", len(numbers), sets)
	}
	if ids := keys(t, api, kvstore.Prefix(kvstore.State, e.Cluster)+"identities/"); len(ids) != 2*sets {
		t.Errorf("%d identity keys for %d label sets", len(ids), sets)
	}
	if r := refs(t, e, api); r != nodes*sets {
		t.Errorf("%d references of %d nodes to %d numbers", r, nodes, sets)
	}
}

func TestUsersComeAndGo(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	n := newNode(t, e, "n1", last)
	var wg sync.WaitGroup
	for c := range 6 { // few for each set, so that the last use often ends
		wg.Go(func() {
			for range 50 {
				set := setOf(e, fmt.Sprintf("app%d", c%3))
				num, err := n.Allocate(t.Context(), set)
				if err != nil {
					t.Error(err)
					continue
				}
				ref := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRef, kvstore.NumberName(uint32(num)), "n1")
				if kv, _, err := api.Get(t.Context(), ref.String()); kv == nil {
					t.Errorf("no reference while in use: %v", err)
				}
				if err := n.Release(t.Context(), set); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if in := n.InUse(); len(in) != 0 {
		t.Errorf("in use after the last release: %v", in)
	}
	if r := refs(t, e, api); r != 0 {
		t.Errorf("%d references are left", r)
	}
}

// stalled holds up deletions until it is let go.
type stalled struct {
	kvstore.Client
	begun, goOn chan struct{}
}

func (s *stalled) Txn(ctx context.Context, cmps []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	if len(thens) == 1 && thens[0].Kind == kvstore.OpDelete {
		close(s.begun)
		<-s.goOn
	}
	return s.Client.Txn(ctx, cmps, thens, elses)
}

func TestUseBeginsWhileTheLastOneEnds(t *testing.T) {
	e := etcdtest.Start(t)
	slow := &stalled{Client: e.Agent(t, "n1"), begun: make(chan struct{}), goOn: make(chan struct{})}
	a, err := allocator.New(allocator.Config{
		Cluster: e.Cluster, First: first, Last: last, Node: "n1", Client: slow, Cache: allocator.NewIndex(e.Cluster),
	})
	if err != nil {
		t.Fatal(err)
	}
	web := setOf(e, "web")
	num, err := a.Allocate(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	released, allocated := make(chan error, 1), make(chan error, 1)
	go func() { released <- a.Release(t.Context(), web) }()
	<-slow.begun
	go func() {
		n, err := a.Allocate(t.Context(), web)
		if n != num {
			err = fmt.Errorf("got %d after %d: %w", n, num, err)
		}
		allocated <- err
	}()
	// Whether the second use waits already or comes later, it must end up
	// with a reference; give it the chance to wait.
	time.Sleep(20 * time.Millisecond)
	close(slow.goOn)
	if err := errors.Join(<-released, <-allocated); err != nil {
		t.Fatal(err)
	}
	if r := refs(t, e, e.APIServer(t)); r != 1 {
		t.Errorf("%d references while in use", r)
	}
}

func TestKnownNumberCostsOneTransaction(t *testing.T) {
	e := etcdtest.Start(t)
	a, b := newNode(t, e, "n1", last), newNode(t, e, "n2", last)
	num := allocate(t, a, setOf(e, "web"))
	b.feed(t, e)
	etcdtest.Eventually(t, 30*time.Second, "the other node knows it", func() bool { return b.index.Taken(num) })
	before := b.client.count()
	if got := allocate(t, b, setOf(e, "web")); got != num {
		t.Errorf("nodes have %d and %d", num, got)
	}
	if c := b.client.count() - before; c != 1 {
		t.Errorf("first use of a known number cost %d transactions", c)
	}
}

// A cache that is behind names a number that was collected meanwhile.
func TestStaleCacheIsNotBelieved(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	a, b := newNode(t, e, "n1", first+1), newNode(t, e, "n2", first+1) // one number in all
	set := setOf(e, "web")
	num := allocate(t, a, set)
	id := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(num)))
	kv, _, err := api.Get(t.Context(), id.String())
	if err != nil || kv == nil {
		t.Fatal(kv, err)
	}
	b.index.Apply(store.Batch{Changes: []store.Change{{Key: id, KV: *kv, Record: &keyspacev1.Identity{Number: uint32(num), Labels: set.Strings()}}}})
	if err := a.Release(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	collect(t, e, api, num, set)
	if got, err := b.Allocate(t.Context(), set); !errors.Is(err, allocator.ErrExhausted) {
		t.Errorf("got %d, %v, but the only number is retired", got, err)
	}
	blind := newNode(t, e, "n3", first+1)
	if got, err := blind.Allocate(t.Context(), set); !errors.Is(err, allocator.ErrExhausted) {
		t.Errorf("got %d, %v without a view, but the only number is retired", got, err)
	}
}

// collect does what the leader does with an unused number.
func collect(t testing.TB, e *etcdtest.Etcd, api kvstore.Client, n identity.Number, set labels.Set) {
	t.Helper()
	name := kvstore.NumberName(uint32(n))
	retired := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindRetired, name)
	v, err := kvstore.Encode(retired, &keyspacev1.IdentityRef{Number: uint32(n), LabelsHash: set.Hash()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = api.Txn(t.Context(), nil, []kvstore.Op{
		kvstore.Delete(kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, name).String()),
		kvstore.Delete(kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentityLabels, set.Hash()).String()),
		kvstore.Put(retired.String(), v),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

func TestConfirmPutsBackWhatVanished(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	n := newNode(t, e, "n1", last)
	sets := []labels.Set{setOf(e, "a"), setOf(e, "b"), setOf(e, "c")}
	var nums []identity.Number
	for _, s := range sets {
		nums = append(nums, allocate(t, n, s))
	}
	before := keys(t, api, kvstore.Root+"state/")
	collect(t, e, api, nums[0], sets[0])
	// Only one of the two keys of b vanished, and the reference.
	_, err := api.Txn(t.Context(), nil, []kvstore.Op{
		kvstore.Delete(kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(nums[1]))).String()),
		{Kind: kvstore.OpDelete, Key: kvstore.KindPrefix(kvstore.Local, e.Cluster, kvstore.KindRef), Prefix: true},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	moves, err := n.Confirm(t.Context())
	if err != nil || len(moves) != 0 {
		t.Fatalf("moves %v, %v", moves, err)
	}
	after := keys(t, api, kvstore.Root+"state/")
	if len(after) != len(before) || refs(t, e, api) != 3 {
		t.Errorf("%d keys of %d and %d references of 3 are back", len(after), len(before), refs(t, e, api))
	}
	c := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(nums[2]))).String()
	if after[c].ModRevision != before[c].ModRevision {
		t.Error("rewrote what was there")
	}
}

func TestConfirmMovesToTheNewerNumber(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	a, b := newNode(t, e, "n1", last), newNode(t, e, "n2", last)
	web, db := setOf(e, "web"), setOf(e, "db")
	old := allocate(t, a, web)
	collect(t, e, api, old, web)
	newer := allocate(t, b, web) // someone made another number for the labels
	moves, err := a.Confirm(t.Context())
	if err != nil || len(moves) != 1 || moves[0].Old != old || moves[0].New != newer {
		t.Fatalf("moves %v, %v; want %d to %d", moves, err, old, newer)
	}
	if _, ok := a.InUse()[newer]; !ok {
		t.Error("the newer number is not in use")
	}
	// Someone gave the number to other labels.
	c := newNode(t, e, "n3", last)
	c.Adopt(db, newer)
	moves, err = c.Confirm(t.Context())
	if err != nil || len(moves) != 1 || moves[0].New == newer {
		t.Fatalf("moves %v, %v; %d belongs to other labels", moves, err, newer)
	}
}

func TestAdoptAndPrune(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	before := newNode(t, e, "n1", last)
	other := newNode(t, e, "n2", last)
	web, db := setOf(e, "web"), setOf(e, "db")
	num := allocate(t, before, web)
	allocate(t, before, db)
	allocate(t, other, db)

	restarted := newNode(t, e, "n1", last)
	restarted.Adopt(web, num)
	if got := allocate(t, restarted, web); got != num || restarted.client.count() != 0 {
		t.Errorf("adopted %d, allocated %d, %d transactions", num, got, restarted.client.count())
	}
	if moves, err := restarted.Confirm(t.Context()); err != nil || len(moves) != 0 {
		t.Errorf("moves %v, %v", moves, err)
	}
	if n, err := restarted.PruneRefs(t.Context()); err != nil || n != 1 {
		t.Errorf("pruned %d references, %v; want the one to db", n, err)
	}
	if r := refs(t, e, api); r != 2 {
		t.Errorf("%d references are left, want n1's to web and n2's to db", r)
	}
}

func TestAllocationInAWipedStore(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	n := newNode(t, e, "n1", last)
	num := allocate(t, n, setOf(e, "web"))
	e.Stop()
	e.Wipe(t)
	e.Restart(t)
	etcdtest.Eventually(t, 20*time.Second, "put back", func() bool {
		moves, err := n.Confirm(t.Context())
		return err == nil && len(moves) == 0
	})
	if _, ok := keys(t, api, kvstore.Prefix(kvstore.State, e.Cluster))[kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(num))).String()]; !ok {
		t.Errorf("number %d is not back", num)
	}
}
