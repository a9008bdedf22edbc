// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	steadyRate    = 1000 // writes a second
	steadySeconds = 5
	rushSeconds   = 2
	// A rate is sustained while what is not acknowledged when the writes end
	// is less than this much of them, in seconds.
	rushBehind = 0.1
)

// TestPerfFederationSteady measures how soon single writes arrive, and how many
// a second can go on arriving.
func TestPerfFederationSteady(t *testing.T) {
	if !inside(t) {
		return
	}
	r := newReport(t, "federation-steady", aboutFederation+"; the mirror has a large cluster; latency is until the event of a watch of the local etcd; with the generator from the time in the record, with a real source from the commit there, which is when the writer has its answer or a watch of the source's etcd has the event, whichever is first")
	for range min(flags.rounds, 3) {
		for _, store := range []storage{onTmpfs, onDisk} {
			t.Run("generator, "+string(store), func(t *testing.T) { steadyGenerated(t, r, store) })
			t.Run("real source, "+string(store), func(t *testing.T) { steadyReal(t, r, store) })
		}
	}
	r.finish(t)
}

// lag is what a watch of an etcd saw.
type lag struct {
	mu   sync.Mutex
	ms   []float64       // how old each record was when its event came
	at   map[int64]int64 // when the record of a time came, both Unix ns
	stop context.CancelFunc
	done chan struct{}
}

// watchLag follows the addresses of a cluster in this one's etcd and notes when
// the event of each comes.
func (c *cluster) watchLag(t *testing.T, name string) *lag {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &lag{stop: stop, done: make(chan struct{}), at: map[int64]int64{}}
	ready := make(chan struct{})
	rev := c.revision(t)
	go func() { // ends with the context
		defer close(l.done)
		var once sync.Once
		_ = c.kv.Watch(ctx, kvstore.KindPrefix(kvstore.State, name, kvstore.KindIP), rev+1, func(b kvstore.WatchBatch) error {
			now := time.Now().UnixNano()
			once.Do(func() { close(ready) })
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, e := range b.Events {
				var ip keyspacev1.IPEntry
				if proto.Unmarshal(e.Value, &ip) == nil {
					l.ms = append(l.ms, float64(now-ip.GetUpdatedAt())/1e6)
					l.at[ip.GetUpdatedAt()] = now
				}
			}
			return nil
		})
	}()
	<-ready
	return l
}

func (l *lag) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ms)
}

// end waits for so many events and returns their ages.
func (l *lag) end(t *testing.T, total int) []float64 {
	t.Helper()
	etcdtest.Eventually(t, within, "all changes are in the local etcd", func() bool { return l.count() >= total })
	l.stop()
	<-l.done
	return l.ms
}

func (c *cluster) syncWith(t *testing.T, worlds []world) *generator {
	t.Helper()
	g := startGenerator(t)
	c.join(t, g, worlds)
	done := c.synced(t, worlds)
	g.do(t, order{Op: "connect"})
	if _, ok := <-done; !ok {
		t.FailNow()
	}
	return g
}

func steadyGenerated(t *testing.T, r *report, store storage) {
	c := startCluster(t, nearID, store, hostOf(near()), "")
	worlds := remotes(1, bigWorld("", 0))
	g := c.syncWith(t, worlds)
	what := fmt.Sprintf("%d writes/s, generator → local etcd, %s", steadyRate, store)
	cpu := c.server.seconds()
	l := c.watchLag(t, worlds[0].Name)
	g.do(t, order{Op: "change", Rate: steadyRate, Millis: steadySeconds * 1000})
	ms := l.end(t, steadyRate*steadySeconds)
	addLag(r, what, goalOf(store, "≤ 1.5"), goalOf(store, "≤ 8"), ms)
	r.append(what+": CPU of the API server", "% of a CPU", "", 100*(c.server.seconds()-cpu)/steadySeconds)
	if store == onTmpfs {
		rush(t, r, c, g, store)
	}
}

func addLag(r *report, what, goal50, goal99 string, ms []float64) {
	r.append(what+": p50 of a round", "ms", goal50, quantile(ms, 0.5))
	r.append(what+": p99 of a round", "ms", goal99, quantile(ms, 0.99))
}

// rush looks for the highest rate at which what waits does not grow. No watch
// of the local etcd takes part: the generator goes by acknowledgements, which
// come after the commit.
func rush(t *testing.T, r *report, c *cluster, g *generator, store storage) {
	best := 0
	for rate := 20000; rate <= 100000; rate += 10000 {
		cpu, data, gen := c.server.seconds(), c.data.seconds(), g.group.seconds()
		start := time.Now()
		a := g.do(t, order{Op: "change", Rate: rate, Millis: rushSeconds * 1000})
		took := time.Since(start).Seconds()
		ok := float64(a.Behind) < rushBehind*float64(rate)
		t.Logf("%d writes/s: %d behind half-way, %d at the end, p50 %.1f ms, p99 %.1f ms; %.1f s; CPU of API server %.2f s, etcd %.2f s, generator %.2f s",
			rate, a.BehindMid, a.Behind, a.P50, a.P99, took, c.server.seconds()-cpu, c.data.seconds()-data, g.group.seconds()-gen)
		if rate == 20000 {
			what := fmt.Sprintf("%d writes/s, generator → acknowledgement, %s", rate, store)
			r.append(what+": p50 of a round", "ms", "", a.P50)
			r.append(what+": p99 of a round", "ms", "", a.P99)
		}
		if !ok {
			break
		}
		best = rate
	}
	r.append("highest rate at which nothing piles up, in steps of 10000, "+string(store), "writes/s", goalOf(store, "≥ 20000"), float64(best))
	same, err := sameAddress(t, c)
	if err != nil {
		t.Fatal(err)
	}
	r.append("plain writes of single keys, 64 at a time, "+string(store), "keys/s", "a limit of one write a transaction", same)
}

// sameAddress is how fast this etcd takes single writes, each a transaction.
func sameAddress(t *testing.T, c *cluster) (float64, error) {
	t.Helper()
	const total, parallel = 20000, 64
	w := bigWorld("filler-c", 203)
	start := time.Now()
	var g errgroup.Group
	g.SetLimit(parallel)
	for n := range total {
		g.Go(func() error {
			k, m := w.ip(n, n, 1)
			value, err := kvstore.Encode(k, m)
			if err == nil {
				_, err = c.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
			}
			return err
		})
	}
	err := g.Wait()
	return total / time.Since(start).Seconds(), err
}

// steadyReal is the same between two real clusters: each write is a transaction
// in the etcd of the other one. It is committed when the writer has its answer or
// a watch of that etcd its event, whichever is first.
func steadyReal(t *testing.T, r *report, store storage) {
	c := startCluster(t, nearID, store, hostOf(near()), "")
	o := startCluster(t, farID, store, secondHost(), "")
	fill(t, o.kv, o.world, 2)
	c.peerWith(t, o)
	source, local := o.watchLag(t, o.Name), c.watchLag(t, o.Name)
	settle(t, o, source, local)
	cpu := []float64{c.server.seconds(), o.server.seconds(), c.data.seconds(), o.data.seconds()}
	writes := writeSteadily(t, o, steadyRate, steadySeconds)
	whole := local.end(t, len(writes))
	source.end(t, len(writes))
	for i, g := range []*group{c.server, o.server, c.data, o.data} {
		who := []string{"the API server that imports", "the API server that exports", "its etcd", "the source's etcd"}[i]
		r.append(fmt.Sprintf("%d writes/s, real source, %s: CPU of %s", steadyRate, store, who), "% of a CPU", "", 100*(g.seconds()-cpu[i])/steadySeconds)
	}
	var crossed, committed, answered []float64
	for _, w := range writes {
		commit := min(w.answered, source.at[w.begun])
		crossed = append(crossed, float64(local.at[w.begun]-commit)/1e6)
		committed = append(committed, float64(commit-w.begun)/1e6)
		answered = append(answered, float64(w.answered-w.begun)/1e6)
	}
	addLag(r, fmt.Sprintf("%d writes/s, real source: commit → local etcd, %s", steadyRate, store), goalOf(store, "≤ 1.5"), goalOf(store, "≤ 8"), crossed)
	addLag(r, fmt.Sprintf("the same, from the beginning of the write, %s", store), "", "", whole)
	addLag(r, fmt.Sprintf("the write itself until it is committed, %s", store), "", "", committed)
	addLag(r, fmt.Sprintf("the write itself until its writer has the answer, %s", store), "", "", answered)
}

// settle writes until the mirror follows the source and forgets that. A stream
// begins with a watch from the past of etcd, which etcd brings up to now within
// 100 ms: what is written until then waits for it, once for each stream.
func settle(t *testing.T, o *cluster, watches ...*lag) {
	t.Helper()
	first := writeSteadily(t, o, steadyRate, 1)
	for _, l := range watches {
		etcdtest.Eventually(t, within, "the first changes have arrived", func() bool { return l.count() >= len(first) })
		l.forget()
	}
}

// forget drops what came until now.
func (l *lag) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ms = nil
	clear(l.at)
}

// write is one of a writer's: when it began and when it was answered, Unix ns.
// begun is in the record, too.
type write struct{ begun, answered int64 }

// writeSteadily writes addresses of a real cluster into its etcd, each a
// transaction of its own.
func writeSteadily(t *testing.T, o *cluster, rate, seconds int) []write {
	t.Helper()
	out := make([]write, rate*seconds)
	var writers sync.WaitGroup
	begin := time.Now()
	for n := range rate * seconds {
		time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(rate))))
		begun := time.Now().UnixNano()
		writers.Go(func() {
			k, m := o.ip(n, n, begun)
			value, err := kvstore.Encode(k, m)
			if err == nil {
				_, err = o.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
			}
			if err != nil {
				t.Error(err)
			}
			out[n] = write{begun, time.Now().UnixNano()}
		})
	}
	writers.Wait()
	return out
}
