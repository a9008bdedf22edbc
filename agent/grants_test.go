// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const westBase = 2 << 16 // of its numbers

func ipOf(cluster, ip string, number uint32) store.Change {
	return changeOf(kvstore.NewKey(kvstore.State, cluster, kvstore.KindIP, ip),
		&keyspacev1.IPEntry{Prefix: ip, Identity: number, Node: "n", Namespace: "demo"})
}

func changeOf(k kvstore.Key, m proto.Message) store.Change {
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return store.Change{Key: k, KV: kvstore.KV{Key: k.String(), Value: raw, ModRevision: 1}, Record: m}
}

func sliceOf(name string, backends int) store.Change {
	r := &keyspacev1.BackendSlice{Namespace: "demo", Service: "echo", Name: name}
	for i := range backends {
		r.Backends = append(r.Backends, &keyspacev1.Backend{Ip: fmt.Sprintf("10.2.9.%d", i+1)})
	}
	return changeOf(kvstore.NewKey(kvstore.State, "west", kvstore.KindSlice, "demo", "echo", name), r)
}

// admitted is the PeerView of a cluster as an API server of before writes it:
// ranges alone.
func admitted(cluster string, id uint32, pods ...string) store.Change {
	return changeOf(kvstore.NewKey(kvstore.Local, "east", kvstore.KindPeerView, cluster),
		&keyspacev1.PeerView{Peer: cluster, ClusterId: id, PodCidrs: pods})
}

// granting is the PeerView of west with its grant.
func granting(t *testing.T, edit func(*keyspacev1.Grant)) store.Change {
	t.Helper()
	g, err := peering.GrantFor(&keyspacev1.Cluster{
		Name: "west", Id: 2, PodCidrs: []string{"10.2.0.0/16"}, NodeCidrs: []string{"192.168.2.0/24"}, ServiceCidrs: []string{"172.18.0.0/16"},
		Mesh: &keyspacev1.MeshParameters{ClusterBits: 8},
	})
	if err != nil {
		t.Fatal(err)
	}
	edit(g)
	c := admitted("west", 2)
	v := c.Record.(*keyspacev1.PeerView)
	v.Grant, v.PodCidrs, v.NodeCidrs = g, g.GetPodCidrs(), g.GetNodeCidrs()
	return c
}

func without(c store.Change) store.Change {
	c.Deleted, c.Record = true, nil
	return c
}

// bench is a grants under test, the store behind it, and what reached the tables.
type bench struct {
	*grants
	t    *testing.T
	logs bytes.Buffer

	mu      sync.Mutex
	stored  map[string]kvstore.KV
	seen    map[string]bool
	ranges  []string // of west, by its Cluster record
	refused int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	space, err := identity.NewSpace(8)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, stored: map[string]kvstore.KV{}, seen: map[string]bool{}}
	b.grants = newGrants("east", space, slog.New(slog.NewTextHandler(&b.logs, nil)), func(batch store.Batch) {
		for _, c := range batch.Changes {
			name := strings.TrimPrefix(c.KV.Key, kvstore.Root+"state/")
			if b.seen[name] = true; c.Deleted {
				delete(b.seen, name)
			}
			if r, ok := c.Record.(*keyspacev1.Cluster); ok {
				b.ranges = slices.Concat(r.GetPodCidrs(), r.GetServiceCidrs())
			}
		}
	}, func(...string) { b.refused++ })
	b.tell(store.Batch{Listed: true})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.run(ctx, b, kvstore.Limits{Space: space}); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

// List implements lister.
func (b *bench) List(_ context.Context, prefix, after string, limit, _ int64) (p kvstore.Page, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(b.stored)) {
		if !strings.HasPrefix(k, prefix) || k <= after {
			continue
		}
		if p.More = len(p.KVs) == int(limit); p.More {
			break
		}
		p.KVs = append(p.KVs, b.stored[k])
	}
	return p, nil
}

// put has the reader bring changes, as the store has them from now on.
func (b *bench) put(cs ...store.Change) {
	b.mu.Lock()
	for _, c := range cs {
		if b.stored[c.KV.Key] = c.KV; c.Deleted {
			delete(b.stored, c.KV.Key)
		}
	}
	b.mu.Unlock()
	b.state(store.Batch{Changes: cs})
}

func (b *bench) tell(batch store.Batch) { b.local(batch) }

// expect polls for what has to be in the tables.
func (b *bench) expect(step string, want ...string) {
	b.t.Helper()
	var got []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b.grants.mu.Lock()
		got = slices.Sorted(maps.Keys(b.seen))
		b.grants.mu.Unlock()
		if slices.Equal(got, want) {
			return
		}
	}
	b.t.Errorf("%s: %q, want %q", step, got, want)
}

func (b *bench) counted() int {
	b.grants.mu.Lock()
	defer b.grants.mu.Unlock()
	return b.refused
}

// settled waits until nothing is to be read again.
func (b *bench) settled() {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b.grants.mu.Lock()
		busy := slices.ContainsFunc(slices.Collect(maps.Values(b.clusters)), func(c *granted) bool { return c.due || c.touched != nil })
		b.grants.mu.Unlock()
		if !busy {
			return
		}
	}
	b.t.Fatal("it reads for ever")
}

// Another cluster may write what it likes below its own directory of a shared
// etcd, and an import that is mistaken may copy it. Only what is granted reaches
// the tables.
func TestGrantsJudgeOtherClusters(t *testing.T) {
	b := newBench(t)
	good, stolen := ipOf("west", "10.2.0.7/32", westBase+5), ipOf("west", "10.1.0.7/32", westBase+5)
	const east, west7, west9 = "east/ips/10.1.0.1%2F32", "west/ips/10.2.0.7%2F32", "west/ips/10.3.0.9%2F32"
	b.put(ipOf("east", "10.1.0.1/32", 1<<16+1), good, stolen, ipOf("west", "10.2.0.8/32", 1<<16+1))
	b.expect("before west is admitted", east)
	if b.counted() != 0 {
		t.Errorf("%d counted before a grant was known", b.counted())
	}
	b.tell(store.Batch{Changes: []store.Change{admitted("west", 2, "10.2.0.0/16")}})
	b.expect("admitted: another's address and another's number stay out", east, west7)
	if b.settled(); b.counted() != 2 {
		t.Errorf("%d counted, want the 2 records outside of the grant", b.counted())
	}
	lie := good
	lie.Record = &keyspacev1.IPEntry{Prefix: "10.2.0.7/32", Identity: 1<<16 + 1, Node: "n"}
	b.state(store.Batch{Changes: []store.Change{lie}})
	b.expect("a lie keeps the last good record", east, west7)
	b.put(good, ipOf("west", "10.3.0.1/32", westBase+5), ipOf("north", "10.3.0.2/32", 3<<16+1))
	b.expect("outside of the grant", east, west7)
	b.put(without(ipOf("west", "10.3.0.1/32", 0)))
	wide := store.Batch{Changes: []store.Change{admitted("west", 2, "10.2.0.0/16", "10.3.0.0/16")}}
	narrow := store.Batch{Changes: []store.Change{admitted("west", 2, "10.2.0.0/16")}}
	b.tell(wide)
	b.settled()
	b.expect("what is gone does not come back with a wider grant", east, west7)
	b.put(ipOf("west", "10.3.0.9/32", westBase+5))
	b.expect("a wider grant", east, west7, west9)
	b.tell(narrow)
	b.expect("a narrower grant takes back what passed", east, west7)
	b.tell(wide)
	b.expect("wide again", east, west7, west9)
	b.put(without(good))
	b.expect("a deletion", east, west9)
	b.tell(store.Batch{Changes: []store.Change{without(admitted("west", 2))}})
	b.expect("no longer admitted: all that passed is withdrawn", east)
	b.put(good)
	b.expect("nothing comes", east)
	b.tell(wide)
	b.expect("admitted again", east, west7, west9)
}

// The whole grant counts: maxima, namespaces and service ranges as well, and what
// is refused is shown.
func TestGrantsHaveAllParts(t *testing.T) {
	b := newBench(t)
	view := granting(t, func(g *keyspacev1.Grant) { g.MaxBackends, g.Namespaces = 3, []string{"demo"} })
	b.tell(store.Batch{Changes: []store.Change{view}})
	const two, one = "west/slices/demo/echo/a", "west/slices/demo/echo/b"
	b.put(sliceOf("a", 2), sliceOf("b", 2))
	b.expect("more backends than granted", two)
	b.put(sliceOf("b", 1))
	b.expect("as many as granted", two, one)
	b.put(without(sliceOf("b", 0)), sliceOf("c", 2))
	b.expect("too many again", two)
	b.put(without(sliceOf("a", 0)))
	b.retryLimited()
	b.expect("there is room now", "west/slices/demo/echo/c")

	other := ipOf("west", "10.2.0.9/32", westBase+1)
	other.Record.(*keyspacev1.IPEntry).Namespace = "kube-system"
	cluster := &keyspacev1.Cluster{Name: "west", Id: 2, PodCidrs: []string{"10.2.0.0/16"}, ServiceCidrs: []string{"8.0.0.0/8"}}
	b.put(other, changeOf(kvstore.NewKey(kvstore.State, "west", kvstore.KindCluster), cluster))
	b.expect("another namespace; service ranges that cut off the world", "west/cluster", "west/slices/demo/echo/c")
	if b.settled(); !slices.Equal(b.ranges, []string{"10.2.0.0/16"}) {
		t.Errorf("believed of the ranges: %q", b.ranges)
	}
	ps := b.problems()
	if len(ps) != 1 || ps[0].GetObject() != "records of west" || !strings.Contains(ps[0].GetProblem(), "2 are outside") ||
		!strings.Contains(ps[0].GetProblem(), "8.0.0.0/8: not within") {
		t.Errorf("shown: %v", ps)
	}
	b.put(without(other), without(changeOf(kvstore.NewKey(kvstore.State, "west", kvstore.KindCluster), cluster)))
	if ps := b.problems(); len(ps) != 0 {
		t.Errorf("still shown: %v", ps)
	}
}

// A cluster that declares more than is granted, or of which less is granted than
// before, keeps what is granted: without its record nothing of it would pass.
func TestRangesAreCutToTheGrant(t *testing.T) {
	b := newBench(t)
	b.tell(store.Batch{Changes: []store.Change{granting(t, func(*keyspacev1.Grant) {})}})
	is := func(step string, shown bool, want ...string) {
		t.Helper()
		var got []string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			b.grants.mu.Lock()
			if got = nil; b.seen["west/cluster"] {
				got = slices.Clone(b.ranges)
			}
			b.grants.mu.Unlock()
			if slices.Equal(got, want) && (len(b.problems()) > 0) == shown {
				return
			}
		}
		t.Errorf("%s: %q, want %q; shown: %v", step, got, want, b.problems())
	}
	say := func(more ...string) {
		b.put(changeOf(kvstore.NewKey(kvstore.State, "west", kvstore.KindCluster), &keyspacev1.Cluster{
			Name: "west", Id: 2, PodCidrs: append([]string{"10.2.0.0/16"}, more...), ServiceCidrs: []string{"172.18.0.0/16"},
			Mesh: &keyspacev1.MeshParameters{ClusterBits: 8, TunnelPort: 8472},
		}))
	}
	grant := func(pods ...string) {
		b.tell(store.Batch{Changes: []store.Change{granting(t, func(g *keyspacev1.Grant) { g.PodCidrs = pods })}})
	}
	say()
	is("as granted", false, "10.2.0.0/16", "172.18.0.0/16")
	say("10.1.0.0/16", "10.66.0.0/16")
	is("grown", true, "10.2.0.0/16", "172.18.0.0/16")
	grant("10.2.1.0/24", "10.66.0.0/16")
	is("another grant", true, "10.2.1.0/24", "10.66.0.0/16", "172.18.0.0/16")
	say()
	is("narrowed to a part", true, "10.2.1.0/24", "172.18.0.0/16")
	grant("10.2.0.0/16")
	is("granted again", false, "10.2.0.0/16", "172.18.0.0/16")
}

// A peer that lies without end fills neither the log nor the store's time.
func TestRefusalsAreLoggedNowAndThen(t *testing.T) {
	b := newBench(t)
	now := time.Unix(1e9, 0)
	b.now = func() time.Time { return now }
	b.tell(store.Batch{Changes: []store.Change{granting(t, func(*keyspacev1.Grant) {})}})
	flood := func() {
		for i := range 200 {
			b.put(ipOf("west", fmt.Sprintf("10.1.0.%d/32", i), westBase+1))
		}
	}
	flood()
	now = now.Add(2 * refusalsLogged)
	b.put(ipOf("west", "10.1.1.1/32", westBase+1))
	if lines := strings.Count(b.logs.String(), "record refused"); lines != refusalsTold+1 || !strings.Contains(b.logs.String(), "untold_before=197") {
		t.Errorf("%d lines for 201 refusals:\n%s", lines, b.logs.String())
	}
	if flood(); b.counted() != 201 {
		t.Errorf("%d counted, want each record once: 201", b.counted())
	}
}
