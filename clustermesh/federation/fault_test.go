// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// slowKV delays transactions and can refuse them.
type slowKV struct {
	kvstore.Client
	delay atomic.Int64
	fail  atomic.Bool
	txns  atomic.Int64
}

func (s *slowKV) Txn(ctx context.Context, cmps []kvstore.Cmp, thens, elses []kvstore.Op) (kvstore.TxnResult, error) {
	s.txns.Add(1)
	if s.fail.Load() {
		return kvstore.TxnResult{}, errors.New("store is away (test)")
	}
	time.Sleep(time.Duration(s.delay.Load())) // the slow store itself, not a wait for it
	return s.Client.Txn(ctx, cmps, thens, elses)
}

func TestSlowReceiverGetsNewestOnly(t *testing.T) {
	a := newCluster(t, 1)
	slow := &slowKV{}
	b := newCluster(t, 2, func(c *testCluster) {
		c.cfg.Window = 2
		c.wrap = func(kv kvstore.Client) kvstore.Client { slow.Client = kv; return slow }
	})
	joinPeers(t, a, b)
	slow.delay.Store(int64(150 * time.Millisecond))
	for i := range 600 {
		a.ip(i%3, fmt.Sprint("write ", i))
	}
	mirrored(t, a, b)
	sent := a.status(b).GetChangesSent()
	if sent >= 300 || sent < 3 {
		t.Errorf("%d changes were sent for 600 writes of 3 keys to a slow receiver", sent)
	}
	eventually(t, "backlog is gone", func() bool { return b.status(a).GetLagEvents() == 0 })
}

func TestReceiverSurvivesItsStoreBeingAway(t *testing.T) {
	a := newCluster(t, 1)
	flaky := &slowKV{}
	b := newCluster(t, 2, func(c *testCluster) {
		c.wrap = func(kv kvstore.Client) kvstore.Client { flaky.Client = kv; return flaky }
	})
	joinPeers(t, a, b)
	flaky.fail.Store(true)
	before := flaky.txns.Load()
	key := a.ip(1, "w")
	eventually(t, "several attempts", func() bool { return flaky.txns.Load() > before+3 })
	if b.get(key) != nil {
		t.Error("written although the store was away")
	}
	flaky.fail.Store(false)
	mirrored(t, a, b)
	if s := b.status(a); s.GetSnapshotsReceived() != 1 {
		t.Errorf("copied again: %v", s)
	}
}

func TestOneStreamStays(t *testing.T) {
	a, b := pair(t)
	lower, higher := a, b
	if b.name < a.name {
		lower, higher = b, a
	}
	for range 5 {
		heal := isolate(a, b)
		eventually(t, "both lost", func() bool { return a.status(b).GetState() == stateLost && b.status(a).GetState() == stateLost })
		heal()
		connected(t, a, b)
		eventually(t, "both see the same stream", func() bool {
			x, y := lower.status(higher).GetDialledBy(), higher.status(lower).GetDialledBy()
			return a.status(b).GetState() == stateConnected && b.status(a).GetState() == stateConnected && x != y
		})
	}
	// Streams open at each port and those that the runners hold must agree.
	eventually(t, "exactly one stream", func() bool { return lower.openStreams()+higher.openStreams() == 1 })
}

// openStreams counts federation connections that peers have to our port.
func (c *testCluster) openStreams() int {
	p := c.m.port
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, cs := range p.conns {
		n += len(cs)
	}
	return n
}

// TestOutboundOnly: a cluster that nobody can dial is a full member.
func TestOutboundOnly(t *testing.T) {
	a := newCluster(t, 1)
	b := newCluster(t, 2, func(c *testCluster) { c.cfg.Cluster.Endpoints = []string{"127.0.0.1:1"} })
	joinPeers(t, a, b)
	a.ip(1, "w")
	b.ip(1, "w")
	mirrored(t, a, b)
	if s := a.status(b); s.GetDialledBy() != "them" {
		t.Errorf("dialled by %s", s.GetDialledBy())
	}
	heal := isolate(a, b)
	eventually(t, "lost", func() bool { return a.status(b).GetState() == stateLost })
	heal()
	b.ip(2, "w")
	mirrored(t, a, b)
	if _, err := a.m.DiffPeer(t.Context(), b.name, DiffRange{}); err == nil || !strings.Contains(err.Error(), "ask on its side") {
		t.Errorf("diff with an unreachable peer: %v", err)
	}
}

func TestWipedSourceIsCopiedAgain(t *testing.T) {
	a, b := oneWay(t)
	a.fill(0, 100)
	mirrored(t, a, b)
	peer := b.etcdPeerRecord(a)
	a.stop()
	a.etcd.Stop()
	a.etcd.Wipe(t)
	a.etcd.Restart(t)
	a.kv = a.etcd.APIServer(t)
	for n := range 400 { // the wiped store gets past its former revision
		a.ip(n%40, fmt.Sprint(n))
	}
	a.put(kvstore.NewKey(kvstore.Private, a.name, kvstore.KindPeerView, b.name), peer)
	a.start()
	mirrored(t, a, b)
	if s := copied(t, b, a, 2); s.GetKeys() != 40 || !strings.Contains(s.GetLastSync(), "incarnation changed") {
		t.Errorf("status: %v", s)
	}
}

// etcdPeerRecord is what of has stored about c.
func (c *testCluster) etcdPeerRecord(of *testCluster) *keyspacev1.Peer { return of.peer(c.name) }

func TestImportIsFenced(t *testing.T) {
	a, b := pair(t)
	a.ip(1, "w")
	mirrored(t, a, b)
	key := kvstore.NewKey(kvstore.Private, b.name, kvstore.KindElection, "import", a.name).String()
	b.del(key)
	b.putRaw(key, []byte("another-replica/x"))
	stolen := a.ip(2, "w")
	eventually(t, "the former holder noticed", func() bool { return b.status(a).GetState() != stateConnected })
	if b.get(stolen) != nil {
		t.Error("written without the lock")
	}
	b.del(key) // the other one gives it back
	mirrored(t, a, b)
	if s := b.status(a); s.GetSnapshotsReceived() != 1 {
		t.Errorf("copied again: %v", s)
	}
}

func lockImport(ctx context.Context, c *testCluster, replica string) (*election.Term, error) {
	return election.Acquire(ctx, election.Config{Client: c.kv, Cluster: c.name, Office: []string{"import", "west"}, Replica: replica})
}

func TestLockIsTakenOverByTheSameReplicaOnly(t *testing.T) {
	c := newCluster(t, 1)
	first, err := lockImport(t.Context(), c, "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := lockImport(ctx, c, "b"); err == nil {
		t.Error("another replica took a lock that is held")
	}
	second, err := lockImport(t.Context(), c, "a") // after kill -9
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.kv.Txn(t.Context(), first.Fence(), []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.State, "west")+"ips/x", nil)}, nil)
	if err != nil || res.Succeeded {
		t.Errorf("the former holder can still write: %v %v", res, err)
	}
	second.Release(t.Context())
	third, err := lockImport(t.Context(), c, "b")
	if err != nil {
		t.Fatal(err)
	}
	third.Release(t.Context())
}

// TestInterruptedSnapshot cuts the stream in the middle of the first copy.
func TestInterruptedSnapshot(t *testing.T) {
	a := newCluster(t, 1)
	slow := &slowKV{}
	b := newCluster(t, 2, func(c *testCluster) {
		c.wrap = func(kv kvstore.Client) kvstore.Client { slow.Client = kv; return slow }
	})
	a.fill(0, 5000)
	if res, err := b.m.Join(t.Context(), invite(t, a, b.name), false); err != nil || !res.Joined {
		t.Fatalf("join: %v %v", res, err)
	}
	slow.delay.Store(int64(100 * time.Millisecond))
	eventually(t, "some keys are there", func() bool { n := len(b.keys(a)); return n > 500 })
	if n := len(b.keys(a)); n >= 5000 {
		t.Fatalf("the copy was too quick to be interrupted: %d keys", n)
	}
	var m keyspacev1.Synced
	marker := kvstore.NewKey(kvstore.Local, b.name, kvstore.KindSynced, a.name, string(kvstore.KindIP)).String()
	if err := proto.Unmarshal(b.get(marker), &m); err != nil || m.GetState() != keyspacev1.Synced_STATE_COPYING || b.get(marker) == nil {
		t.Errorf("marker while copying: %v %v", &m, err)
	}
	heal := isolate(a, b)
	for n := range 100 {
		k, _ := a.ipRecord(n, "")
		a.del(k.String())
	}
	slow.delay.Store(0)
	heal()
	mirrored(t, a, b)
	eventually(t, "marker complete", func() bool {
		return proto.Unmarshal(b.get(marker), &m) == nil && m.GetState() == keyspacev1.Synced_STATE_COMPLETE
	})
}

func BenchmarkFirstSync(t *testing.B) {
	for t.Loop() {
		a, b := newCluster(t, 1), newCluster(t, 2)
		a.fill(0, 57_000)
		if res, err := b.m.Join(t.Context(), invite(t, a, b.name), false); err != nil || !res.Joined {
			t.Fatalf("join: %v %v", res, err)
		}
		began := time.Now()
		for b.status(a).GetSnapshotsReceived() == 0 {
			time.Sleep(time.Millisecond)
		}
		t.ReportMetric(57_000/time.Since(began).Seconds(), "keys/s")
	}
}

// A peer whose record is broken is not taken for one that was removed: it is
// shown, its stream goes on, and only a new process cannot know it any more.
func TestUnreadablePeerIsShown(t *testing.T) {
	a, b := pair(t)
	key := kvstore.NewKey(kvstore.Private, a.name, kvstore.KindPeerView, b.name).String()
	good := a.get(key)
	told := func() bool {
		for _, f := range a.status(b).GetFindings() {
			if strings.Contains(f.GetProblem(), key) && strings.Contains(f.GetFix(), "hawser kvstore del private/"+a.name+"/peers/"+b.name) {
				return true
			}
		}
		return false
	}
	a.putRaw(key, []byte("zzz"))
	eventually(t, "it is told", told)
	b.ip(1, "written meanwhile")
	mirrored(t, a, b)
	if s := a.status(b); s.GetState() != stateConnected || a.status(b).GetSnapshotsReceived() != 1 {
		t.Errorf("the stream did not go on: %v", s)
	}
	a.restart()
	eventually(t, "it is told after a restart", told)
	if s := a.status(b); s.GetState() != stateUnreadable || a.m.Ready() == nil {
		t.Errorf("status %v, ready: %v", s, a.m.Ready())
	}
	if _, err := a.m.Leave(t.Context(), b.name); err == nil || !strings.Contains(err.Error(), "kvstore del") {
		t.Errorf("leave: %v", err)
	}
	a.putRaw(key, good)
	connected(t, a, b)
	if told() {
		t.Error("told although it can be read again")
	}
}

// While one peer's record is broken, other clusters join and are granted ranges:
// what the broken one is seen to use is still its own, and it cannot join anew
// over its record.
func TestUnreadablePeerBlocksNoOther(t *testing.T) {
	a, b := pair(t)
	b.put(kvstore.NewKey(kvstore.State, b.name, kvstore.KindVTEP, "10.2.7.0/24"), &keyspacev1.VTEP{Prefix: "10.2.7.0/24", TunnelAddress: "192.168.2.7", Node: "n"})
	mirrored(t, a, b)
	key := kvstore.NewKey(kvstore.Private, a.name, kvstore.KindPeerView, b.name).String()
	good := a.get(key)
	a.putRaw(key, []byte("zzz"))

	c, d, e := newCluster(t, 3), newCluster(t, 4, func(c *testCluster) { c.cfg.Cluster.PodCidrs = []string{"10.2.0.0/15"} }), newCluster(t, 5)
	res, err := c.m.Join(t.Context(), invite(t, a, c.name), false)
	if err != nil || !res.Joined {
		t.Fatalf("join of another cluster: %v %v", err, res)
	}
	told := false
	for _, f := range res.Findings {
		told = told || !f.GetBlocking() && strings.Contains(f.GetProblem(), b.name)
	}
	if !told {
		t.Errorf("findings %v do not name %s", res.Findings, b.name)
	}
	connected(t, a, c)
	// And a joins another one.
	if res, err := a.m.Join(t.Context(), invite(t, e, a.name), false); err != nil || !res.Joined {
		t.Fatalf("joining another cluster: %v %v", err, res)
	}
	if res, err := d.m.Join(t.Context(), invite(t, a, d.name), false); err == nil && res.Joined || !blocked(res, b.name) {
		t.Errorf("join with ranges of the unreadable peer: %v %v", err, res)
	}
	if _, changed, err := a.m.ChangeGrant(t.Context(), c.name, peering.GrantChange{AddPods: []string{"10.9.0.0/16"}}); err != nil || !changed {
		t.Errorf("grant to another: %v %v", changed, err)
	}
	if _, _, err := a.m.ChangeGrant(t.Context(), c.name, peering.GrantChange{AddPods: []string{"10.2.7.0/25"}}); err == nil {
		t.Error("granted what the unreadable peer uses")
	}
	if _, _, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{AddPods: []string{"10.8.0.0/16"}}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("grant to the unreadable peer: %v", err)
	}
	if res, err := b.m.Join(t.Context(), invite(t, a, ""), false); err == nil && res.Joined || !blocked(res, "cannot be read") {
		t.Error("the unreadable peer joined over its record")
	}
	if ps, bad, err := a.m.Peers(t.Context()); err != nil || len(ps) != 2 || bad[b.name] == nil {
		t.Errorf("peers %v, unreadable %v, %v", ps, bad, err)
	}
	a.putRaw(key, good)
	connected(t, a, b)
}

func blocked(r peering.Result, text string) bool {
	for _, f := range r.Findings {
		if f.GetBlocking() && strings.Contains(f.GetProblem(), text) {
			return true
		}
	}
	return false
}
