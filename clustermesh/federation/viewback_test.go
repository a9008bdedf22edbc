// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// The view of a peer says again, at once, what the API server says of the peer,
// whatever somebody did to it; after a leave it is gone for good.
func TestViewIsPutBack(t *testing.T) {
	// One stream, on which the clocks are never compared: nothing else changes the
	// view meanwhile. Two clusters that dial each other may replace the first one.
	quiet := func(c *testCluster) {
		c.cfg.HeartbeatEvery, c.cfg.LostAfter, c.cfg.CloseAfter = 10*within, 10*within, 10*within
	}
	a := newCluster(t, 1, quiet)
	var mu sync.Mutex
	found := map[string]int{}
	b := newCluster(t, 2, quiet, func(c *testCluster) {
		c.cfg.Cluster.Endpoints = nil
		c.putBack = func(key kvstore.Key, was *kvstore.KV) {
			mu.Lock()
			defer mu.Unlock()
			if was == nil {
				was = &kvstore.KV{}
			}
			found[key.String()+" was "+string(was.Value)]++
		}
	})
	joinPeers(t, a, b)
	key := viewKey(b.name, a.name)
	eventually(t, "the view says fresh", func() bool { return b.viewOf(a.name).GetConnected() && b.viewOf(a.name).GetData() == dataFresh })
	want := b.viewOf(a.name)
	count := func(was string) int {
		mu.Lock()
		defer mu.Unlock()
		return found[key+" was "+was]
	}
	isBack := func(what, was string) {
		t.Helper()
		eventually(t, what+" is put back", func() bool {
			v := &keyspacev1.PeerView{}
			raw := b.get(key)
			return raw != nil && proto.Unmarshal(raw, v) == nil && sameView(v, want) && count(was) == 1
		})
	}
	b.del(key)
	isBack("one that is missing", "")
	b.putRaw(key, []byte("zzz"))
	isBack("an unreadable one", "zzz")
	lie := proto.CloneOf(want)
	lie.Grant.PodCidrs = []string{"10.0.0.0/8"}
	b.put(kvstore.NewKey(kvstore.Local, b.name, kvstore.KindPeerView, a.name), lie)
	isBack("one that says something else", string(encode(lie)))
	mu.Lock()
	if len(found) != 3 {
		t.Errorf("%d records put back, want 3: %v", len(found), found)
	}
	mu.Unlock()

	if _, err := b.m.Leave(t.Context(), a.name); err != nil {
		t.Fatal(err)
	}
	if raw := b.get(key); raw != nil {
		t.Errorf("the view is there after the leave: %x", raw)
	}
}

// An API server that has not yet seen that another one ends the peering puts
// nothing back.
func TestViewOfALeavingPeerIsNotPutBack(t *testing.T) {
	c := newCluster(t, 1)
	c.stop()
	term, err := lockImport(t.Context(), c, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer term.Release(t.Context())
	r := &runner{kv: c.kv, cfg: &c.cfg, peer: &keyspacev1.Peer{Name: "west"}, st: newPeerState(time.Now)}
	key := viewKey(c.name, "west")
	for _, step := range []struct {
		state keyspacev1.Peer_State
		back  bool
	}{
		{keyspacev1.Peer_STATE_UNSPECIFIED, false}, // no record at all
		{keyspacev1.Peer_STATE_LEAVING, false},
		{keyspacev1.Peer_STATE_CONFIRMED, true},
	} {
		if step.state != keyspacev1.Peer_STATE_UNSPECIFIED {
			c.put(kvstore.NewKey(kvstore.Private, c.name, kvstore.KindPeerView, "west"), &keyspacev1.Peer{Name: "west", State: step.state})
		}
		if err := r.putBackView(t.Context(), term, &keyspacev1.PeerView{Peer: "west"}); err != nil {
			t.Errorf("%s: %v", step.state, err)
		}
		if is := c.get(key) != nil; is != step.back {
			t.Errorf("%s: put back is %t, want %t", step.state, is, step.back)
		}
	}
}
