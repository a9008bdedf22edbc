// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"sync"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// observed collects stages. It is safe for concurrent use.
type observed struct {
	mu   sync.Mutex
	took map[stages.Stage][]time.Duration
}

func (o *observed) add(s stages.Stage, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.took == nil {
		o.took = map[stages.Stage][]time.Duration{}
	}
	o.took[s] = append(o.took[s], took)
}

func (o *observed) of(s stages.Stage) []time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]time.Duration(nil), o.took[s]...)
}

// TestStages: between clusters whose clocks differ by an hour each stage is
// told at the right side, without the hour, and nodes are told of it.
func TestStages(t *testing.T) {
	var left, arrived observed
	off := &clock{}
	a := newCluster(t, 1, func(c *testCluster) {
		c.observe = func(_ string, s stages.Stage, took time.Duration) { left.add(s, took) }
	})
	b := newCluster(t, 2, func(c *testCluster) {
		c.now = off.now
		c.observe = func(peer string, s stages.Stage, took time.Duration) {
			if peer != a.name {
				t.Errorf("observed for %q", peer)
			}
			arrived.add(s, took)
		}
	})
	joinPeers(t, a, b)
	b.stop()
	off.advance(time.Hour)
	b.start()
	connected(t, a, b)
	eventually(t, "the offset is known", func() bool { return b.status(a).GetClockOffsetSeconds() < -3590 })
	a.ip(1, "w")
	mirrored(t, a, b)
	for _, want := range []struct {
		at *observed
		s  stages.Stage
	}{{&left, stages.Etcd}, {&left, stages.Queue}, {&arrived, stages.Stream}, {&arrived, stages.Apply}} {
		eventually(t, "stage "+string(want.s), func() bool { return len(want.at.of(want.s)) > 0 })
		for _, took := range want.at.of(want.s) {
			if took < 0 || took > time.Minute {
				t.Errorf("stage %s took %v", want.s, took)
			}
		}
	}
	if n := len(left.of(stages.Stream)) + len(left.of(stages.Apply)); n != 0 {
		t.Errorf("%d stages of b's records at a: b has sent snapshots only", n)
	}
	// b's own records are older than TooOld by its clock.
	b.ip(1, "w")
	mirrored(t, a, b)
	eventually(t, "b's change is queued", func() bool { return len(arrived.of(stages.Queue)) > 0 })
	if took := arrived.of(stages.Etcd); len(took) != 0 {
		t.Errorf("records an hour old count as news: %v", took)
	}
	eventually(t, "nodes of b know a's clock", func() bool {
		return time.Duration(b.viewOf(a.name).GetClockOffset()) < -59*time.Minute
	})
}

func TestWrittenAt(t *testing.T) {
	rec := &keyspacev1.IPEntry{Prefix: "10.1.0.1/32", Identity: 1<<16 + 1, Workload: "w", UpdatedAt: 1 << 60,
		NamedPorts: []*keyspacev1.NamedPort{{Name: "http", Port: 80}}}
	// Fields of a later version, before and behind.
	unknown := []byte{0xfa, 0x3e, 2, 15 << 3, 1}
	for name, c := range map[string]struct {
		value []byte
		want  int64
	}{
		"record":         {encode(rec), 1 << 60},
		"unknown fields": {append(append(append([]byte{}, unknown...), encode(rec)...), unknown...), 1 << 60},
		"none":           {encode(&keyspacev1.IPEntry{Prefix: "10.1.0.1/32"}), 0},
		"empty":          {nil, 0},
		"cut":            {encode(rec)[:len(encode(rec))-1], 0},
		"garbage":        {[]byte{0xff, 0xff, 0xff}, 0},
	} {
		if got := writtenAt(c.value); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	p := newPeerState(time.Now)
	p.observe = func(stages.Stage, time.Duration) {}
	w := kvstore.WatchBatch{Events: []kvstore.Event{{KV: kvstore.KV{Value: encode(rec)}}}}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() { p.seen(w, now) }); n != 0 {
		t.Errorf("%v allocations for a batch", n)
	}
}
