// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"maps"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// ticks is a clock that moves by a second each time it is read.
type ticks struct{ at time.Time }

func (c *ticks) now() time.Time {
	c.at = c.at.Add(time.Second)
	return c.at
}

func podOf(cluster, prefix string, written time.Time) store.Change {
	k := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIP, prefix)
	return store.Change{Key: k, KV: kvstore.KV{Key: k.String()}, Record: &keyspacev1.IPEntry{
		Prefix: prefix, Identity: 2<<16 + 1, Node: "w1", TunnelAddress: "192.168.2.1", UpdatedAt: written.UnixNano(),
	}}
}

// stagesOf applies batches; it returns what is told of the way of one of
// west's records.
func stagesOf(t *testing.T, v *view, apply func(store.Batch)) func(store.Batch) map[stages.Stage]time.Duration {
	t.Helper()
	got := map[stages.Stage]time.Duration{}
	v.propagation.settle = 0
	v.propagation.observe = func(cluster string, s stages.Stage, took time.Duration) {
		if cluster != "west" {
			t.Errorf("told of %q", cluster)
		}
		got[s] = took
	}
	return func(b store.Batch) map[stages.Stage]time.Duration {
		clear(got)
		apply(b)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tables := 0
		if len(v.propagation.next) > 0 {
			err := v.propagation.run(ctx, func(_ context.Context, _ string, rev uint64) error {
				if tables++; tables == len(v.propagation.names()) {
					cancel()
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		return maps.Clone(got)
	}
}

// A record's way is told stage by stage, by its origin's clock; of what is not
// news, or changes nothing, nothing is told.
func TestPropagationIsToldByStage(t *testing.T) {
	v, c := testView(t), &ticks{at: time.Unix(1000, 0)}
	v.propagation.now = c.now
	apply := stagesOf(t, v, v.apply)
	// West's clock is an hour ahead.
	k := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPeerView, "west")
	apply(store.Batch{Revision: 1, Changes: []store.Change{{Key: k, KV: kvstore.KV{Key: k.String()},
		Record: &keyspacev1.PeerView{Peer: "west", Data: "fresh", ClockOffset: int64(time.Hour), UpdatedAt: 1}}}})
	base := c.at.Add(time.Hour)
	news := store.Batch{Revision: 2, Changes: []store.Change{podOf("west", "10.2.0.1/32", base.Add(-4*time.Second))}}
	want := map[stages.Stage]time.Duration{
		stages.Arrive: 5 * time.Second, stages.Table: time.Second, stages.Map: time.Second, stages.Total: 7 * time.Second,
	}
	if got := apply(news); !maps.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	if got := apply(news); len(got) != 0 {
		t.Errorf("of what changes nothing: %v", got)
	}
	if got := apply(store.Batch{Revision: 3, Changes: []store.Change{podOf("west", "10.2.0.2/32", base.Add(-stages.TooOld))}}); len(got) != 2 || got[stages.Table] == 0 || got[stages.Map] == 0 {
		t.Errorf("of a copy: %v, want table and map alone", got)
	}
	for name, b := range map[string]store.Batch{
		"a listing":            {Changes: []store.Change{podOf("west", "10.2.0.3/32", base)}},
		"the end of a listing": {Revision: 4, Listed: true, Changes: []store.Change{podOf("west", "10.2.0.4/32", base)}},
		"a deletion":           {Revision: 5, Changes: []store.Change{{Key: news.Changes[0].Key, KV: news.Changes[0].KV, Deleted: true}}},
	} {
		if got := apply(b); len(got) != 0 {
			t.Errorf("of %s: %v", name, got)
		}
	}
}

// A grant that is narrowed and widened has the API server copy all anew. What
// comes again is no news, however young its record is, nor is what of the copy is
// told only after its end; what is written next is.
func TestCopyAfterGrantIsNoNews(t *testing.T) {
	v, c := testView(t), &ticks{at: time.Unix(1000, 0)}
	v.propagation.now = c.now
	g := newGrants("east", v.space, slog.New(slog.DiscardHandler), v.apply, func(...string) {})
	local := func(b store.Batch) { v.apply(b); g.local(b) }
	told := stagesOf(t, v, g.state)
	pod := func(prefix string, rev int64, age time.Duration) store.Batch {
		ch := podOf("west", prefix, c.at.Add(-age))
		ch.KV.ModRevision = rev
		return store.Batch{Revision: rev, Changes: []store.Change{ch}}
	}
	grant := func(rev int64, pods string) {
		local(store.Batch{Revision: rev, Changes: []store.Change{granting(t, func(g *keyspacev1.Grant) { g.PodCidrs = []string{pods} })}})
	}
	local(store.Batch{Listed: true})
	local(synced("west", 1, keyspacev1.Synced_STATE_COMPLETE, allKinds...))
	grant(2, "10.2.0.0/16")
	const age = 396 * time.Second
	for _, step := range []struct {
		what   string
		before func()
		batch  store.Batch
		news   bool
	}{
		{"written for the first time", func() {}, pod("10.2.0.1/32", 3, 2*time.Second), true},
		{"withdrawn", func() {
			grant(4, "10.2.7.0/24")
			local(synced("west", 5, keyspacev1.Synced_STATE_COPYING, allKinds...))
		},
			store.Batch{Revision: 6, Changes: []store.Change{without(pod("10.2.0.1/32", 6, 0).Changes[0])}}, false},
		{"copied again", func() {
			local(synced("west", 7, keyspacev1.Synced_STATE_COMPLETE, allKinds...))
			grant(8, "10.2.0.0/16")
			local(synced("west", 9, keyspacev1.Synced_STATE_COPYING, allKinds...))
		}, pod("10.2.0.1/32", 10, age), false},
		{"copied, and told after the end of the copy", func() { local(synced("west", 12, keyspacev1.Synced_STATE_COMPLETE, allKinds...)) },
			pod("10.2.0.2/32", 11, age), false},
		{"written after the copy, and late", func() {}, pod("10.2.0.3/32", 13, age), true},
	} {
		step.before()
		got := told(step.batch)
		if _, arrive := got[stages.Arrive]; arrive != step.news {
			t.Errorf("%s: told %v, news %v", step.what, got, step.news)
		}
		if _, total := got[stages.Total]; total != step.news {
			t.Errorf("%s: told %v, news %v", step.what, got, step.news)
		}
		if _, table := got[stages.Table]; !table && !step.batch.Changes[0].Deleted {
			t.Errorf("%s: nothing has changed", step.what)
		}
	}
}

// The watch that tells of records may be ahead of the one that tells of copies.
func TestCopyIsKnownLater(t *testing.T) {
	v, c := testView(t), &ticks{at: time.Unix(1000, 0)}
	v.propagation.now = c.now
	for _, late := range []bool{true, false} {
		told := stagesOf(t, v, func(b store.Batch) {
			v.apply(b)
			if late {
				v.apply(synced("west", 4, keyspacev1.Synced_STATE_COPYING, allKinds...))
				v.apply(synced("west", 6, keyspacev1.Synced_STATE_COMPLETE, allKinds...))
			}
		})
		rev, prefix := int64(7), "10.2.0.2/32"
		if late {
			rev, prefix = 5, "10.2.0.1/32"
		}
		ch := podOf("west", prefix, c.at.Add(-396*time.Second))
		ch.KV.ModRevision = rev
		got := told(store.Batch{Revision: rev, Changes: []store.Change{ch}})
		if _, news := got[stages.Total]; news == late || got[stages.Map] == 0 {
			t.Errorf("late %v: told %v", late, got)
		}
	}
}

// A sample costs no allocation, and the kernel being late holds nothing up.
func TestPropagationIsCheap(t *testing.T) {
	v := testView(t)
	b := store.Batch{Revision: 2}
	for range 1000 {
		b.Changes = append(b.Changes, podOf("west", "10.2.0.1/32", time.Now()))
	}
	if n := testing.AllocsPerRun(100, func() {
		s, _ := v.propagation.begin(b)
		s.revisions[0]++ // as if a table had changed
		v.propagation.published(s)
	}); n != 0 {
		t.Errorf("%v allocations for a batch", n)
	}
	if n := len(v.propagation.next); n != 1 {
		t.Errorf("%d samples wait", n)
	}
}
