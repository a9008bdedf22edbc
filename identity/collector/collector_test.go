// SPDX-License-Identifier: Apache-2.0

package collector_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const first identity.Number = 1 << 16

type fixture struct {
	t    *testing.T
	etcd *etcdtest.Etcd
	api  kvstore.Client
	last identity.Number

	mu   sync.Mutex
	gate collector.Gate
}

// newFixture is a cluster with numbers for count label sets.
func newFixture(t *testing.T, count int) *fixture {
	t.Helper()
	e := etcdtest.Start(t)
	return &fixture{t: t, etcd: e, api: e.APIServer(t), last: first + identity.Number(count)}
}

// retired is an agent that was away, and the number of its label set "web", which
// was retired meanwhile and is not freed for an hour.
func (f *fixture) retired() (*allocator.Allocator, *collector.Collector, identity.Number) {
	f.t.Helper()
	f.setGate(collector.Gate{AtLeast: time.Hour})
	a, c := f.node("n1", false), f.collector()
	n := f.allocate(a, "web")
	f.forget("n1")
	f.pass(c, collector.Result{})
	f.pass(c, collector.Result{Retired: 1})
	return a, c, n
}

func (f *fixture) set(app string) labels.Set {
	return labels.New(
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: app},
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: f.etcd.Cluster},
	)
}

func (f *fixture) setGate(g collector.Gate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = g
}

func (f *fixture) collector(fence ...kvstore.Cmp) *collector.Collector {
	f.t.Helper()
	c, err := collector.New(collector.Config{
		Cluster: f.etcd.Cluster, First: first, Last: f.last, Client: f.api, Fence: fence,
		Gate: func(context.Context) (collector.Gate, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			g := f.gate
			g.Now = time.Now()
			return g, nil
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// node is an allocator; with a view it follows the store.
func (f *fixture) node(name string, view bool) *allocator.Allocator {
	f.t.Helper()
	kv, index := f.etcd.Agent(f.t, name), allocator.NewIndex(f.etcd.Cluster)
	a, err := allocator.New(allocator.Config{
		Cluster: f.etcd.Cluster, First: first, Last: f.last, Node: name, Client: kv, Cache: index,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if !view {
		return a
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	for _, prefix := range []string{kvstore.SubtreePrefix(kvstore.State), kvstore.Prefix(kvstore.Local, f.etcd.Cluster)} {
		r, err := store.NewReader(store.ReaderConfig{Client: kv, Prefix: prefix, Apply: index.Apply})
		if err != nil {
			f.t.Fatal(err)
		}
		done.Go(func() { _ = r.Run(ctx) })
	}
	f.t.Cleanup(func() { cancel(); done.Wait() })
	return a
}

func (f *fixture) allocate(a *allocator.Allocator, app string) identity.Number {
	f.t.Helper()
	n, err := a.Allocate(f.t.Context(), f.set(app))
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

func (f *fixture) release(a *allocator.Allocator, app string) {
	f.t.Helper()
	if err := a.Release(f.t.Context(), f.set(app)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) pass(c *collector.Collector, want collector.Result) {
	f.t.Helper()
	got, err := c.Pass(f.t.Context())
	if err != nil || got != want {
		f.t.Fatalf("pass: %+v, %v; want %+v", got, err, want)
	}
}

func (f *fixture) survey() *collector.Survey {
	f.t.Helper()
	s, err := collector.Look(f.t.Context(), f.api, f.etcd.Cluster)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func TestUnusedInTwoPasses(t *testing.T) {
	f := newFixture(t, 10)
	a, c := f.node("n1", false), f.collector()
	n := f.allocate(a, "web")
	kept := f.allocate(a, "db")
	f.pass(c, collector.Result{})
	f.release(a, "web")
	f.pass(c, collector.Result{})
	// In use for a moment between two passes, and at the second again.
	f.allocate(a, "web")
	f.pass(c, collector.Result{})
	f.release(a, "web")
	f.pass(c, collector.Result{})
	f.pass(c, collector.Result{Retired: 1})
	s := f.survey()
	if _, live := s.IDs[kept]; !live || len(s.IDs) != 1 || s.Retired[n].Number != n || len(s.Retired) != 1 {
		t.Errorf("left: %+v", s)
	}
	if free := s.Free(first, f.last); free != 8 {
		t.Errorf("%d of 10 numbers are free, with one in use and one retired", free)
	}
	f.pass(c, collector.Result{Freed: 1}) // nothing to wait for
	judge(t, f.etcd, true)
}

// Numbers are too few: those who come wait for retired ones, and say so.
func TestExhaustedUntilFreed(t *testing.T) {
	f := newFixture(t, 2)
	f.setGate(collector.Gate{AtLeast: time.Hour})
	a, c := f.node("n1", true), f.collector()
	f.allocate(a, "a")
	n := f.allocate(a, "b")
	f.release(a, "b")
	f.pass(c, collector.Result{})
	f.pass(c, collector.Result{Retired: 1})
	if got, err := a.Allocate(t.Context(), f.set("c")); !errors.Is(err, allocator.ErrExhausted) || !strings.Contains(err.Error(), "in use or retired") {
		t.Fatalf("got %d, %v while the only other number is retired", got, err)
	}
	// The labels that it had do not bring it back either.
	if got, err := a.Allocate(t.Context(), f.set("b")); !errors.Is(err, allocator.ErrExhausted) {
		t.Fatalf("got %d, %v", got, err)
	}
	f.pass(c, collector.Result{})
	f.setGate(collector.Gate{})
	f.pass(c, collector.Result{Freed: 1})
	etcdtest.Eventually(t, 30*time.Second, "the view knows that it is free", func() bool {
		got, err := a.Allocate(t.Context(), f.set("c"))
		return err == nil && got == n
	})
	judge(t, f.etcd, true)
}

// An agent that was away puts its number back, and the retirement ends.
func TestPutBackEndsRetirement(t *testing.T) {
	f := newFixture(t, 10)
	a, c, n := f.retired()
	if moves, err := a.Confirm(t.Context()); err != nil || len(moves) != 0 {
		t.Fatalf("moves %v, %v", moves, err)
	}
	f.pass(c, collector.Result{PutBack: 1})
	s := f.survey()
	if len(s.Retired) != 0 || !s.Used(n) {
		t.Errorf("left: %+v", s)
	}
	f.pass(c, collector.Result{})
}

// lead has the labels key of an app name a number.
func (f *fixture) lead(app string, n identity.Number) {
	f.t.Helper()
	k := kvstore.NewKey(kvstore.State, f.etcd.Cluster, kvstore.KindIdentityLabels, f.set(app).Hash())
	f.put(k, &keyspacev1.IdentityRef{Number: uint32(n)})
}

func (f *fixture) put(k kvstore.Key, m proto.Message) {
	f.t.Helper()
	v, err := kvstore.Encode(k, m)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.api.Txn(f.t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), v)}, nil); err != nil {
		f.t.Fatal(err)
	}
}

// forget deletes a node's references, as after a node that was long away.
func (f *fixture) forget(node string) {
	f.t.Helper()
	for n, nodes := range f.survey().Nodes {
		for _, x := range nodes {
			if x != node {
				continue
			}
			ref := kvstore.NewKey(kvstore.Local, f.etcd.Cluster, kvstore.KindRef, kvstore.NumberName(uint32(n)), node)
			if _, err := f.api.Txn(f.t.Context(), nil, []kvstore.Op{kvstore.Delete(ref.String())}, nil); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

func TestStrayLabelsKeys(t *testing.T) {
	f := newFixture(t, 10)
	f.setGate(collector.Gate{AtLeast: time.Hour})
	a, c := f.node("n1", false), f.collector()
	n := f.allocate(a, "web")
	for app, to := range map[string]identity.Number{"nothing": first + 9, "other": n} {
		f.lead(app, to)
	}
	f.pass(c, collector.Result{})
	f.pass(c, collector.Result{Stray: 2})
	if s := f.survey(); len(s.IDs) != 1 || s.Retired[n].Number != 0 {
		t.Errorf("left: %+v", s)
	}
	f.pass(c, collector.Result{})
}

func TestReplacedCollectorWritesNothing(t *testing.T) {
	f := newFixture(t, 10)
	office := kvstore.NewKey(kvstore.Private, f.etcd.Cluster, kvstore.KindElection, "controllers").String()
	res, err := f.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(office, []byte("a"))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, c := f.node("n1", false), f.collector(kvstore.Cmp{Key: office, Target: kvstore.CmpCreateRev, Rev: res.Revision})
	n := f.allocate(a, "web")
	f.release(a, "web")
	f.pass(c, collector.Result{})
	if _, err := f.api.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(office)}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pass(t.Context()); !errors.Is(err, collector.ErrFenced) {
		t.Errorf("pass without the office: %v", err)
	}
	if _, live := f.survey().IDs[n]; !live {
		t.Error("deleted an identity without the office")
	}
}

// keepCollecting makes passes as fast as it can until the function that it
// returns is called; that counts what they did.
func (f *fixture) keepCollecting() (stop func() collector.Result) {
	c := f.collector()
	ctx, cancel := context.WithCancel(f.t.Context())
	var done sync.WaitGroup
	var sum collector.Result
	done.Go(func() {
		for ctx.Err() == nil {
			r, err := c.Pass(ctx)
			if err != nil && ctx.Err() == nil {
				f.t.Error(err)
			}
			sum.Retired += r.Retired
			sum.Freed += r.Freed
			sum.PutBack += r.PutBack
		}
	})
	return func() collector.Result {
		cancel()
		done.Wait()
		return sum
	}
}

// Allocators of four nodes, with and without a view, take and give back numbers
// of a range that is almost too small while the collector passes all the time.
func TestAllocatorsRaceCollector(t *testing.T) {
	const workers, sets, numbers = 12, 20, 16
	uses := 4000
	if testing.Short() {
		uses = 400
	}
	f := newFixture(t, numbers)
	stop := f.keepCollecting()
	var left, exhausted atomic.Int64
	left.Store(int64(uses))
	var wg sync.WaitGroup
	for i := range 4 {
		node := fmt.Sprintf("n%d", i)
		a := f.node(node, i%2 == 0)
		for range workers / 4 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					app := fmt.Sprintf("app%d", rand.IntN(sets))
					err := f.use(a, node, app)
					switch {
					case errors.Is(err, allocator.ErrExhausted), errors.Is(err, allocator.ErrContended):
						exhausted.Add(1)
					case err != nil:
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	sum := stop()
	h := judge(t, f.etcd, true)
	t.Logf("%d uses, %d times no number was free; %+v", uses, exhausted.Load(), sum)
	if sum.Retired < uses/100 || h.reuses < uses/100 || exhausted.Load() > int64(uses)*9/10 {
		t.Errorf("too little happened for the test to mean anything")
	}
}

// use takes a number, looks twice whether it is what it should be, and gives it
// back.
func (f *fixture) use(a *allocator.Allocator, node, app string) error {
	ctx := f.t.Context()
	set := f.set(app)
	n, err := a.Allocate(ctx, set)
	if err != nil {
		return err
	}
	for range 2 {
		if err := holds(ctx, f.api, f.etcd.Cluster, node, uint32(n), strings.Join(set.Strings(), ",")); err != nil {
			f.t.Error(err)
		}
	}
	return a.Release(ctx, set)
}

// Somebody deletes references of numbers in use, so that the collector takes
// those away and others may get them. Whoever confirms its identities keeps its
// number or is told of another one; nobody ends up with a number of others.
func TestConfirmRacesCollector(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	f := newFixture(t, 24)
	stop := f.keepCollecting()
	type held struct {
		node string
		a    *allocator.Allocator
		ours map[string]identity.Number
	}
	var all []*held
	for i := range 3 {
		h := &held{node: fmt.Sprintf("n%d", i), ours: map[string]identity.Number{}}
		h.a = f.node(h.node, i == 0)
		for j := range 5 {
			app := fmt.Sprintf("app%d-%d", i, j)
			h.ours[app] = f.allocate(h.a, app)
		}
		all = append(all, h)
	}
	busy := f.node("busy", true)
	moved := 0
	for r := range rounds {
		var wg sync.WaitGroup
		wg.Go(func() { f.forget(fmt.Sprintf("n%d", r%3)) })
		for i := range 4 { // others want numbers meanwhile
			wg.Go(func() { _ = f.use(busy, "busy", fmt.Sprintf("new%d-%d", r, i)) })
		}
		for _, h := range all {
			wg.Go(func() {
				if _, err := h.a.Confirm(t.Context()); err != nil && !errors.Is(err, allocator.ErrExhausted) && !errors.Is(err, allocator.ErrContended) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	sum := stop()
	owner := map[identity.Number]string{}
	for _, h := range all {
		if _, err := h.a.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
		for n, set := range h.a.InUse() {
			if other := owner[n]; other != "" {
				t.Errorf("%d is of %s and of %s", n, other, set)
			}
			owner[n] = set.String()
			app, _ := set.Get(labels.Kubernetes, "app")
			if h.ours[app] != n {
				moved++
			}
			if err := holds(t.Context(), f.api, f.etcd.Cluster, h.node, uint32(n), strings.Join(set.Strings(), ",")); err != nil {
				t.Error(err)
			}
		}
	}
	if len(owner) != 15 {
		t.Errorf("%d of 15 identities are left", len(owner))
	}
	judge(t, f.etcd, false)
	t.Logf("%+v, %d identities have another number in the end", sum, moved)
}
