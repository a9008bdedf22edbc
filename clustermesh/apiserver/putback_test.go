// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// leading runs the controllers of an API server until the test ends, or it is
// stopped.
func leading(t *testing.T, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.lead(ctx) }()
	stop = func() {
		if cancel(); done != nil {
			if err := <-done; err != nil {
				t.Errorf("leading ended with %v", err)
			}
			done = nil
		}
	}
	t.Cleanup(stop)
	return stop
}

// damage does to a key what somebody with etcdctl can do.
func (s *Server) damage(t *testing.T, ops ...kvstore.Op) {
	t.Helper()
	if _, err := s.kv.Txn(t.Context(), nil, ops, nil); err != nil {
		t.Fatal(err)
	}
}

func decided(t *testing.T, s *Server, node string) *keyspacev1.NodeConfig {
	t.Helper()
	r, _, err := get[*keyspacev1.NodeConfig](t.Context(), s, s.nodeConfigKey(node))
	if err != nil {
		return nil
	}
	return r.msg
}

// The cluster's record is as its leader says again, at once, whatever somebody
// did to it; what says the same is left alone.
func TestClusterRecordIsPutBack(t *testing.T) {
	s := start(t, testConfig(t))
	key := kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster)
	want := s.cfg.record()
	isBack := func(what string, count uint64) {
		t.Helper()
		etcdtest.Eventually(t, ownRecordEvery/2, what, func() bool {
			r, ok, err := get[*keyspacev1.Cluster](t.Context(), s, key)
			if !ok || err != nil {
				return false
			}
			r.msg.UpdatedAt = 0
			return proto.Equal(r.msg, want) && s.back.counts()[kvstore.KindCluster] == count
		})
	}
	// What was done to it while nobody led is found when somebody does.
	s.damage(t, kvstore.Delete(key.String()))
	leading(t, s)
	isBack("a record that is missing", 1)
	s.damage(t, kvstore.Put(key.String(), []byte("zzz")))
	isBack("an unreadable one", 2)
	lie := proto.CloneOf(want)
	lie.PodCidrs = []string{"10.0.0.0/8"}
	s.write(t, key, lie)
	isBack("one that says something else", 3)
	same := proto.CloneOf(want)
	same.UpdatedAt = 7
	s.write(t, key, same)
	s.damage(t, kvstore.Delete(key.String()))
	isBack("one that is missing", 4)
}

// The leader that was replaced without knowing it insists on nothing: its record
// may be that of an earlier time.
func TestClusterRecordIsPutBackInOfficeOnly(t *testing.T) {
	s := start(t, testConfig(t))
	key := kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster)
	office := kvstore.NewKey(kvstore.Private, "east", kvstore.KindElection, "controllers").String()
	s.damage(t, kvstore.Delete(key.String()), kvstore.Put(office, []byte("another/1")))
	former := []kvstore.Cmp{{Key: office, Target: kvstore.CmpCreateRev, Rev: 1}}
	if err := s.compareClusterRecord(t.Context(), key, former); err != nil {
		t.Fatal(err)
	}
	if kv, _, err := s.kv.Get(t.Context(), key.String()); kv != nil || err != nil || s.back.counts()[kvstore.KindCluster] != 0 {
		t.Errorf("a former leader wrote %v, %v; counted %v", kv, err, s.back.counts())
	}
	kv, _, err := s.kv.Get(t.Context(), office)
	if err != nil {
		t.Fatal(err)
	}
	now := []kvstore.Cmp{{Key: office, Target: kvstore.CmpCreateRev, Rev: kv.CreateRevision}}
	if err := s.compareClusterRecord(t.Context(), key, now); err != nil || s.back.counts()[kvstore.KindCluster] != 1 {
		t.Errorf("the leader did not put it back: %v", err)
	}
}

// The own markers are as the API server said again, at once, whatever somebody did
// to them: an agent that starts waits for them. Those of a history that is over
// stay away.
func TestMarkersArePutBack(t *testing.T) {
	s := start(t, testConfig(t))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.keepMarkers(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	marks := store.SyncedMarkers{Client: s.kv, Own: "east"}
	kinds := []kvstore.Kind{kvstore.KindPolicy, kvstore.KindIdentity, kvstore.KindSlice}
	complete := func(what string, count uint64) {
		t.Helper()
		etcdtest.Eventually(t, ownRecordEvery/2, what, func() bool {
			for _, k := range kinds {
				if _, ok, err := marks.Complete(t.Context(), "east", k); !ok || err != nil {
					return false
				}
			}
			inc, err := marks.Incarnation(t.Context())
			return err == nil && inc == s.incarnation && s.back.counts()[kvstore.KindSynced] == count
		})
	}
	complete("the markers", 0)
	all := kvstore.Delete(kvstore.KindPrefix(kvstore.Local, "east", kvstore.KindSynced))
	all.Prefix = true
	s.damage(t, all)
	complete("all that are missing", 9)
	key := kvstore.SyncedKey("east", "east", kvstore.KindIdentity)
	s.damage(t, kvstore.Put(key.String(), []byte("zzz")))
	complete("an unreadable one", 10)
	s.write(t, key, &keyspacev1.Synced{Incarnation: s.incarnation, State: keyspacev1.Synced_STATE_COPYING})
	complete("one that says something else", 11)

	if _, err := store.Reincarnate(t.Context(), s.kv, "east"); err != nil {
		t.Fatal(err)
	}
	if err := s.mark(t.Context(), s.putBack, kvstore.KindPolicy); err == nil {
		t.Error("a marker of the former history was written")
	}
	if inc, err := marks.Incarnation(t.Context()); err != nil || inc != "" {
		t.Errorf("markers of the former history are back: %q, %v", inc, err)
	}
}

// What was decided for a node is put back, with what no other record says; not
// after the node was forgotten.
func TestDecisionsForNodesArePutBack(t *testing.T) {
	s := start(t, testConfig(t))
	for _, n := range []string{"n1", "n2"} {
		s.writeNode(t, n, "10.1."+n[1:]+".0/24")
		if _, err := s.changeNodeConfig(t.Context(), n, func(c *keyspacev1.NodeConfig) { c.Drained, c.DrainedSince = true, 7 }); err != nil {
			t.Fatal(err)
		}
	}
	leading(t, s)
	isBack := func(what, node string, count uint64) {
		t.Helper()
		etcdtest.Eventually(t, podCIDRsEvery/2, what, func() bool {
			c := decided(t, s, node)
			return c.GetDrained() && c.GetDrainedSince() == 7 && slices.Equal(c.GetPodCidrs(), []string{"10.1." + node[1:] + ".0/24"}) &&
				s.back.counts()[kvstore.KindNodeConfig] == count
		})
	}
	isBack("n1 is known", "n1", 0)
	isBack("n2 is known", "n2", 0)
	key := s.nodeConfigKey("n1")
	s.damage(t, kvstore.Delete(key.String()))
	isBack("a record that is missing", "n1", 1)
	s.damage(t, kvstore.Put(key.String(), []byte("zzz")))
	isBack("an unreadable one", "n1", 2)
	s.write(t, key, &keyspacev1.NodeConfig{Node: "n1", Drained: true, DrainedSince: 7, PodCidrs: []string{"10.1.9.0/24"}})
	isBack("another range", "n1", 3)
	// What says the same of ranges is believed: only this record knows it.
	if _, err := s.changeNodeConfig(t.Context(), "n1", func(c *keyspacev1.NodeConfig) { c.Drained, c.DrainedSince = false, 0 }); err != nil {
		t.Fatal(err)
	}
	s.damage(t, kvstore.Delete(s.nodeConfigKey("n2").String()))
	isBack("n2", "n2", 4)
	if c := decided(t, s, "n1"); c.GetDrained() {
		t.Errorf("n1 is drained again: %v", c)
	}

	if err := s.openEnrolment(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	s.damage(t, kvstore.Delete(s.nodeConfigKey("n2").String()))
	isBack("n2 again", "n2", 5)
	if kv, _, err := s.kv.Get(t.Context(), key.String()); kv != nil || err != nil {
		t.Errorf("what was decided for a forgotten node is back: %v, %v", kv, err)
	}
}

// A leader that never read what a record said puts back what other records tell.
func TestDecisionsForNodesOfANewLeader(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/16")
	s.come(t, "n1")
	step()
	s.damage(t, kvstore.Put(s.nodeConfigKey("n1").String(), []byte("zzz")))
	step()
	if got := s.rangesOf(t, "n1"); got != "10.1.0.0/24" {
		t.Errorf("n1 was told %q", got)
	}
	if n := s.back.counts()[kvstore.KindNodeConfig]; n != 1 {
		t.Errorf("%d records put back", n)
	}
}

// A node whose record cannot be read is listed, with what is wrong.
func TestUnreadableNodeIsListed(t *testing.T) {
	s := start(t, testConfig(t))
	s.writeNode(t, "n1", "10.1.1.0/24")
	s.writeNode(t, "n2", "10.1.2.0/24")
	s.damage(t, kvstore.Put(s.nodeKey("n2").String(), []byte("zzz")), kvstore.Put(kvstore.KindPrefix(kvstore.State, "east", kvstore.KindNode)+"a/b", []byte("no node's key")))
	r, err := s.ListNodes(t.Context(), &hawserv1.ListNodesRequest{})
	if err != nil || len(r.GetNodes()) != 2 {
		t.Fatalf("listed %v, %v", r, err)
	}
	if n := r.GetNodes()[0]; n.GetName() != "n1" || n.GetState() != nodeAbsent || n.GetProblem() != "" {
		t.Errorf("n1 is %v", n)
	}
	if n := r.GetNodes()[1]; n.GetCluster() != "east" || n.GetName() != "n2" || n.GetState() != nodeUnreadable || !strings.Contains(n.GetProblem(), "cannot be read: decode") {
		t.Errorf("n2 is %v", n)
	}
}
