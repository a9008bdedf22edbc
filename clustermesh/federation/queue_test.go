// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

func all(string) bool { return true }

func change(key string, rev int64) kvstore.WatchBatch {
	return kvstore.WatchBatch{Revision: rev, Events: []kvstore.Event{{KV: kvstore.KV{Key: "p/" + key, Value: fmt.Append(nil, rev), ModRevision: rev}}}}
}

func TestQueueCoalesces(t *testing.T) {
	q := newQueue(10)
	for rev := int64(11); rev <= 110; rev++ {
		q.add(change([]string{"a", "b", "c"}[rev%3], rev), "p/", all, rev)
	}
	if q.len() != 3 || q.position() != 110 {
		t.Errorf("%d keys at %d", q.len(), q.position())
	}
	first := q.take(1, 1<<20)
	if len(first.changes) != 1 || first.changes[0].GetKey() != "c" || string(first.changes[0].GetValue()) != "110" || first.oldest != 11 {
		t.Errorf("first: %v", first)
	}
	// b waits with revision 109 and a with 108: nothing at or below 107 waits.
	if first.low != 107 {
		t.Errorf("low-water mark %d, not 107", first.low)
	}
	rest := q.take(10, 1<<20)
	if len(rest.changes) != 2 || rest.low != 110 || q.len() != 0 {
		t.Errorf("rest: %v", rest)
	}
	if t2 := q.take(1, 1); len(t2.changes) != 0 || t2.low != 110 {
		t.Errorf("empty queue gives %v", t2)
	}
}

func TestQueueBoundsBytes(t *testing.T) {
	q := newQueue(0)
	for rev := int64(1); rev <= 4; rev++ {
		q.add(kvstore.WatchBatch{Revision: rev, Events: []kvstore.Event{{KV: kvstore.KV{Key: fmt.Sprint("p/", rev), Value: make([]byte, 600), ModRevision: rev}}}}, "p/", all, 1)
	}
	if n := len(q.take(100, 1000).changes); n != 1 {
		t.Errorf("%d changes of 600 bytes in a batch of 1000", n)
	}
	if n := len(q.take(100, 1300).changes); n != 2 {
		t.Errorf("%d changes of 600 bytes in a batch of 1300", n)
	}
	if n := len(q.take(100, 10).changes); n != 1 {
		t.Errorf("a change larger than a batch is never sent: %d", n)
	}
}

func TestLagTakesClockDifferenceOut(t *testing.T) {
	var l lagMeter
	ours := time.Unix(1_000_000, 0)
	theirs := ours.Add(time.Hour)
	l.heartbeat(ours, ours.Add(-400*time.Millisecond), 0, theirs.Add(-10*time.Millisecond)) // slow and lopsided
	l.heartbeat(ours, ours.Add(-14*time.Millisecond), 10*time.Millisecond, theirs.Add(-2*time.Millisecond))
	if off := l.offset(); off != time.Hour {
		t.Errorf("offset %s, not 1h", off)
	}
	for i := range 100 {
		l.applied(ours, theirs.Add(-time.Duration(i+1)*time.Millisecond).UnixNano())
	}
	p50, p99 := l.quantiles(ours)
	if p50 != 51*time.Millisecond || p99 != 100*time.Millisecond {
		t.Errorf("p50 %s, p99 %s", p50, p99)
	}
	if p50, _ := l.quantiles(ours.Add(lagWindow + time.Second)); p50 != 0 {
		t.Errorf("old samples still count: %s", p50)
	}
}

// What was applied while the clocks' difference was not known, or only roughly,
// is corrected by what is known of it later, but not by that of clocks that were
// set meanwhile.
func TestLagIsCorrectedLater(t *testing.T) {
	ours := time.Unix(1_000_000, 0)
	theirs := ours.Add(-time.Hour)
	const took, off = 2 * time.Millisecond, 6 * time.Millisecond
	slow := func(l *lagMeter) { l.heartbeat(ours, ours.Add(-2*off), 0, theirs.Add(-2*off)) } // all of it on the way back
	quick := func(l *lagMeter, skew time.Duration) {
		l.heartbeat(ours, ours.Add(-100*time.Microsecond), 0, theirs.Add(skew-50*time.Microsecond))
	}
	for name, c := range map[string]struct {
		before, after func(*lagMeter)
		want          time.Duration
	}{
		"not known":             {func(*lagMeter) {}, func(l *lagMeter) { quick(l, 0) }, took},
		"known roughly":         {slow, func(l *lagMeter) { quick(l, 0) }, took},
		"never known better":    {slow, func(*lagMeter) {}, 0},
		"the clocks set since":  {func(l *lagMeter) { quick(l, 0) }, func(l *lagMeter) { l.rtts = nil; quick(l, time.Hour) }, took},
		"never known at all":    {func(*lagMeter) {}, func(*lagMeter) {}, time.Hour + took},
		"known all the time":    {func(l *lagMeter) { quick(l, 0) }, func(l *lagMeter) { quick(l, 0) }, took},
		"known worse meanwhile": {func(l *lagMeter) { quick(l, 0) }, slow, took},
	} {
		var l lagMeter
		c.before(&l)
		l.applied(ours, theirs.Add(-took).UnixNano())
		c.after(&l)
		if p50, _ := l.quantiles(ours); p50 != c.want {
			t.Errorf("%s: lag %s, not %s", name, p50, c.want)
		}
	}
}

func TestChunksKeepOrderAndBounds(t *testing.T) {
	var ops []planned
	for i := range 300 {
		ops = append(ops, planned{key: fmt.Sprint(i), rank: i / 100})
	}
	last := -1
	for _, c := range chunks(ops, 1) {
		if len(c.ops) > maxTxnOps-1 || c.rank < last {
			t.Errorf("chunk of rank %d with %d operations after rank %d", c.rank, len(c.ops), last)
		}
		last = c.rank
	}
	if n := len(chunks(ops[50:150], 1)); n != 1 {
		t.Errorf("%d transactions for what fits into one", n)
	}
	big := []planned{{key: "a", value: make([]byte, maxTxnBytes-10)}, {key: "b", value: make([]byte, 100)}}
	if n := len(chunks(big, 0)); n != 2 {
		t.Errorf("%d transactions for more than a transaction's bytes", n)
	}
	order := []int{
		rankOf(kvstore.KindIdentity, false), rankOf(kvstore.KindNode, false), rankOf(kvstore.KindIP, false),
		rankOf(kvstore.KindService, false), rankOf(kvstore.KindSlice, true), rankOf(kvstore.KindIP, true),
		rankOf(kvstore.KindIdentity, true),
	}
	if !slices.IsSorted(order) || len(slices.Compact(order)) != 7 {
		t.Errorf("kinds are not in order: %v", order)
	}
}

// FuzzChanges is what a hostile peer can put into a batch.
func FuzzChanges(f *testing.F) {
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.close)
	guard, err := peering.NewGuard(&keyspacev1.Peer{Name: "west", ClusterId: 2, Grant: &keyspacev1.Grant{PodCidrs: []string{"10.2.0.0/16"}, IdentityMin: 2 << 16, IdentityMax: 2<<16 + 65535}}, nil)
	if err != nil {
		f.Fatal(err)
	}
	seed, err := c.pack([]*federationv1.Change{{Key: "ips/10.2.0.1%2F32", Value: []byte{1}}, {Key: "../east/ips/x"}, {Key: "hawser/v1/state/east/cluster", Deleted: true}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, packed []byte) {
		c, err := newCodec()
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		changes, err := c.unpack(packed)
		if err != nil {
			return
		}
		for _, ch := range changes {
			j := judge("west", guard, ch)
			if j.err == nil && (!strings.HasPrefix(j.full, "hawser/v1/state/west/") || strings.Contains(j.full, "..")) {
				t.Errorf("accepted key %q", j.full)
			}
		}
	})
}

func TestWhichStreamStays(t *testing.T) {
	for _, tc := range []struct {
		own, peer         string
		curByUs, nextByUs bool
		silent, nextStays bool
	}{
		{own: "east", peer: "west", curByUs: true, nextByUs: false},                   // ours: east is lower
		{own: "east", peer: "west", curByUs: false, nextByUs: true, nextStays: true},  // ours again
		{own: "west", peer: "east", curByUs: true, nextByUs: false, nextStays: true},  // theirs
		{own: "west", peer: "east", curByUs: false, nextByUs: true},                   // theirs again
		{own: "east", peer: "west", curByUs: false, nextByUs: false, nextStays: true}, // they lost the first
		{own: "east", peer: "west", curByUs: true, nextByUs: false, silent: true, nextStays: true},
	} {
		r := &runner{cfg: &Config{Cluster: &keyspacev1.Cluster{Name: tc.own}, LostAfter: time.Minute}, peer: &keyspacev1.Peer{Name: tc.peer},
			st: newPeerState(time.Now), stopped: make(chan struct{}), change: make(chan struct{})}
		var cur *session
		cur = newSession(tc.peer, tc.curByUs, "", nil, func() { // its serve ends when it is severed
			r.mu.Lock()
			r.setLocked(nil)
			r.mu.Unlock()
			close(cur.done)
		})
		r.st.heard = time.Now()
		if tc.silent {
			r.st.heard = time.Now().Add(-time.Hour)
		}
		if err := r.attach(cur); err != nil {
			t.Fatal(err)
		}
		next := newSession(tc.peer, tc.nextByUs, "", nil, func() {})
		err := r.attach(next)
		if (err == nil) != tc.nextStays {
			t.Errorf("%+v: %v", tc, err)
		}
		if now, _ := r.current(); (now == next) != tc.nextStays || (now == cur) == tc.nextStays {
			t.Errorf("%+v: the wrong stream stayed", tc)
		}
	}
}
