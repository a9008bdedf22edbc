// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
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

// A record's way is told stage by stage, by its origin's clock; of what is not
// news, or changes nothing, nothing is told.
func TestPropagationIsToldByStage(t *testing.T) {
	v, c := testView(t), &ticks{at: time.Unix(1000, 0)}
	v.propagation.now = c.now
	got := map[stages.Stage]time.Duration{}
	v.propagation.observe = func(cluster string, s stages.Stage, took time.Duration) {
		if cluster != "west" {
			t.Errorf("told of %q", cluster)
		}
		got[s] = took
	}
	apply := func(b store.Batch) map[stages.Stage]time.Duration {
		clear(got)
		v.apply(b)
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
