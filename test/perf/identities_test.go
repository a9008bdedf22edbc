// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const (
	newIdentities = 10000 // per round and number of callers; fewer where there is no goal
	sameLabels    = 500_000
)

// TestPerfIdentities measures how many new label sets a second get a number.
func TestPerfIdentities(t *testing.T) {
	if !inside(t) {
		return
	}
	r := newReport(t, "identities", "allocators of agents over an etcd (TLS, access control, default settings, no HTTP on its port but where it says so), each with its view of the cluster kept by a watch, all callers in one process")
	for range min(flags.rounds, 3) {
		for _, kind := range []allocations{
			{name: string(onTmpfs), store: onTmpfs, goals: true, grpcOnly: true},
			{name: string(onTmpfs) + " with HTTP on its port", store: onTmpfs},
			{name: string(onDisk), store: onDisk, grpcOnly: true},
			{name: string(embedded), store: embedded},
		} {
			t.Run(kind.name, func(t *testing.T) { kind.measure(t, r) })
		}
	}
	r.finish(t)
}

// allocations is an etcd in which identities are allocated.
type allocations struct {
	name     string
	store    storage
	grpcOnly bool
	goals    bool

	cluster string
	agent   func(t *testing.T, node string) *etcd.Client
}

func (k *allocations) start(t *testing.T) {
	t.Helper()
	if k.store == embedded {
		c := startCluster(t, nearID, embedded, hostOf(near()), "")
		k.cluster = c.Name
		k.agent = func(t *testing.T, node string) *etcd.Client { return c.connect(t, c.issue(t, "agent", node)) }
		return
	}
	e := etcdtest.StartProcess(t, etcdtest.Process{DataDir: scratchDir(t, k.store) + "/etcd", Fsync: true, GRPCOnly: k.grpcOnly})
	k.cluster = e.Cluster
	k.agent = func(t *testing.T, node string) *etcd.Client { return e.Agent(t, node) }
}

func (k *allocations) goal(g string) string {
	if k.goals {
		return g
	}
	return ""
}

// total is how many identities so many callers allocate.
func (k *allocations) total(callers int) int {
	total := newIdentities
	if !k.goals {
		total /= 4
	}
	if callers == 1 {
		total /= 2
	}
	return total
}

// measure takes the rates of callers and of the bare transaction, which stand
// beside each other: what one etcd gives differs from minute to minute.
func (k *allocations) measure(t *testing.T, r *report) {
	k.start(t)
	bare := k.agent(t, "bare")
	var offset int
	for _, shape := range []struct{ agents, callers int }{{1, 1}, {1, 32}, {4, 8}} {
		var as []*allocator.Allocator
		ctx, cancel := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		for n := range shape.agents {
			as = append(as, newAllocator(ctx, t, k.agent(t, fmt.Sprintf("node-%d", n)), k.cluster, fmt.Sprintf("node-%d", n), &readers))
		}
		total := k.total(shape.callers)
		took := callers(t, as, shape.callers, total, offset, k.cluster)
		offset += total
		goal := map[int]string{1: "≥ 3000", 32: "≥ 7000"}[shape.agents*shape.callers]
		r.append(fmt.Sprintf("new identities, %d caller(s) on each of %d agent(s), %s", shape.callers, shape.agents, k.name), "/s", k.goal(goal), float64(total)/took.Seconds())
		if shape.callers == 1 {
			k.inUse(t, r, as[0], bare)
		}
		cancel()
		readers.Wait()
	}
	for _, parallel := range []int{1, 32} { // last: its records are none that a reader takes
		r.append(fmt.Sprintf("the allocation's transaction alone, %d at a time, %s", parallel, k.name), "/s", k.goal("a limit to come near"), bareAllocations(t, bare, k.cluster, parallel, k.total(parallel)))
	}
}

// inUse is the rate of labels that the node uses already.
func (k *allocations) inUse(t *testing.T, r *report, a *allocator.Allocator, kv *etcd.Client) {
	t.Helper()
	revision := func() int64 {
		_, rev, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.State, k.cluster, kvstore.KindCluster).String())
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	before := revision()
	start := time.Now()
	set := bigWorld(k.cluster, 7).labels(0)
	for range sameLabels {
		if _, err := a.Allocate(t.Context(), set); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(start)
	if k.goals {
		r.append("labels in use on the node, one caller", "/s", "", sameLabels/took.Seconds())
		r.append("labels in use on the node, revisions that it took", "revisions", "0", float64(revision()-before))
	}
}

// newAllocator is an agent's, with the readers that feed its view.
func newAllocator(ctx context.Context, t *testing.T, kv *etcd.Client, cluster, node string, readers *sync.WaitGroup) *allocator.Allocator {
	t.Helper()
	index := allocator.NewIndex(cluster)
	for _, prefix := range []string{kvstore.SubtreePrefix(kvstore.State), kvstore.Prefix(kvstore.Local, cluster)} {
		rd, err := store.NewReader(store.ReaderConfig{Client: kv, Prefix: prefix, Apply: index.Apply})
		if err != nil {
			t.Fatal(err)
		}
		readers.Go(func() { _ = rd.Run(ctx) })
		if err := rd.WaitRevision(ctx, 1); err != nil {
			t.Fatal(err)
		}
	}
	space, err := identity.NewSpace(identity.DefaultClusterBits)
	if err != nil {
		t.Fatal(err)
	}
	first, last := space.Range(7)
	a, err := allocator.New(allocator.Config{Cluster: cluster, First: first, Last: last, Node: node, Client: kv, Cache: index})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// callers has so many callers of each allocator allocate total label sets that
// nobody has.
func callers(t *testing.T, as []*allocator.Allocator, each, total, offset int, cluster string) time.Duration {
	t.Helper()
	w := bigWorld(cluster, 7)
	sets := make([]labels.Set, total)
	for n := range sets {
		sets[n] = w.labels(offset + n)
	}
	var next atomic.Int64
	var g errgroup.Group
	start := time.Now()
	for _, a := range as {
		for range each {
			g.Go(func() error {
				for {
					n := int(next.Add(1)) - 1
					if n >= total {
						return nil
					}
					if _, err := a.Allocate(t.Context(), sets[n]); err != nil {
						return err
					}
				}
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// bareAllocations is the rate of the transaction of an allocation with nothing
// around it.
func bareAllocations(t *testing.T, kv *etcd.Client, cluster string, parallel, total int) float64 {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(parallel)
	w := bigWorld(cluster, 7)
	encoded := func(k kvstore.Key, m proto.Message) []byte {
		value, err := kvstore.Encode(k, m)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	idValue, byLabels := encoded(w.identity(1)), encoded(w.identityRef(1))
	start := time.Now()
	for n := range total {
		g.Go(func() error {
			name := fmt.Sprintf("bare-%d-%d", parallel, n)
			idKey := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIdentity, name).String()
			labelsKey := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIdentityLabels, name).String()
			retired := kvstore.NewKey(kvstore.Local, cluster, kvstore.KindRetired, name).String()
			res, err := kv.Txn(t.Context(), []kvstore.Cmp{kvstore.Absent(labelsKey), kvstore.Absent(idKey), kvstore.Absent(retired)},
				[]kvstore.Op{kvstore.Put(idKey, idValue), kvstore.Put(labelsKey, byLabels),
					kvstore.Put(kvstore.NewKey(kvstore.Local, cluster, kvstore.KindRef, name, "bare").String(), nil)}, nil)
			if err == nil && !res.Succeeded {
				err = fmt.Errorf("number %s is taken", name)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return float64(total) / time.Since(start).Seconds()
}
