// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/hawser-mesh/hawser/kvstore"
)

// replica is another API server of the same cluster, on the same etcd.
func (c *testCluster) replica(name string) *testCluster {
	c.t.Helper()
	r := &testCluster{t: c.t, name: c.name, id: c.id, etcd: c.etcd, kv: c.etcd.APIServer(c.t), now: time.Now, creds: c.creds, proxy: newProxy(c.t), cfg: c.cfg}
	r.cfg.Replica = name
	r.start()
	c.t.Cleanup(func() { r.stop() })
	return r
}

// reachable has the peers of a cluster told of all its replicas.
func reachable(replicas ...*testCluster) {
	var eps []string
	for _, r := range replicas {
		eps = append(eps, r.proxy.addr())
	}
	rec := describe(replicas[0].name, replicas[0].id, "")
	rec.Endpoints = eps
	replicas[0].put(kvstore.NewKey(kvstore.State, replicas[0].name, kvstore.KindCluster), rec)
}

// holders are the replicas that have a stream with the peer.
func holders(peer *testCluster, replicas ...*testCluster) (out []*testCluster) {
	for _, r := range replicas {
		if run := r.m.runner(peer.name); run != nil {
			if cur, _ := run.current(); cur != nil {
				out = append(out, r)
			}
		}
	}
	return out
}

// holder waits for the one that has the stream.
func holder(t *testing.T, peer *testCluster, replicas ...*testCluster) *testCluster {
	t.Helper()
	var h []*testCluster
	eventually(t, "exactly one replica has the stream", func() bool {
		h = holders(peer, replicas...)
		return len(h) == 1 && h[0].status(peer).GetState() == stateConnected && len(h[0].status(peer).GetSyncedKinds()) > 0
	})
	return h[0]
}

// without is the other replicas.
func without(all []*testCluster, one *testCluster) []*testCluster {
	return slices.DeleteFunc(slices.Clone(all), func(c *testCluster) bool { return c == one })
}

// TestReplicaTakesOver: of three API servers on one etcd one has the peer's
// stream. When it ends another goes on where it stopped: a resume in both
// directions, no key lost, none written again.
func TestReplicaTakesOver(t *testing.T) {
	a, b := pair(t)
	all := []*testCluster{a, a.replica("b"), a.replica("c")}
	reachable(all...)
	a.fill(0, 500)
	b.fill(0, 500)
	mirrored(t, a, b)
	eventually(t, "b knows where they are", func() bool { return len(b.peer(a.name).GetEndpoints()) == 3 })
	key := kvstore.NewKey(kvstore.State, b.name, kvstore.KindIP, "10.2.0.5/32").String()
	at, _, err := a.kv.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	snapshots := b.status(a).GetSnapshotsReceived()

	first := holder(t, b, all...)
	// It stays where it is: nobody takes the stream from who has it.
	since, theirs := first.status(b).GetSince(), b.status(a).GetSince()
	calls := b.proxy.callers()
	b.ip(700, "while three live")
	mirrored(t, a, b)
	for _, r := range without(all, first) {
		eventually(t, "the others say what it says", func() bool {
			s := r.status(b)
			return s.GetState() == stateConnected && s.GetReplica() == first.cfg.Replica && len(s.GetSyncedKinds()) > 0 && s.GetData() == dataFresh
		})
		if err := r.m.Ready(); err != nil {
			t.Errorf("replica %s: %v", r.cfg.Replica, err)
		}
	}
	if now := first.status(b).GetSince(); now != since || b.status(a).GetSince() != theirs {
		t.Errorf("the stream was taken from the one that had it: %v", b.status(a))
	}

	time.Sleep(3 * a.cfg.BackoffMax) // in which a dialler would try again
	if n := b.proxy.callers() - calls; n != 0 {
		t.Errorf("the others dialled the peer %d times", n)
	}

	first.stop() // it ends
	rest := without(all, first)
	writer := rest[0]
	writer.t = t
	for n := range 50 {
		b.ip(1000+n, "meanwhile")
		writer.ip(1000+n, "meanwhile")
	}
	second := holder(t, b, rest...)
	mirrored(t, second, b)
	check := func(r *testCluster) {
		t.Helper()
		s := r.status(b)
		if s.GetSnapshotsReceived() != 0 || s.GetSnapshotsSent() != 0 || s.GetResumesReceived() == 0 {
			t.Errorf("replica %s did not resume: %v", r.cfg.Replica, s)
		}
		if n := s.GetChangesReceived(); n > 75 {
			t.Errorf("replica %s got %d changes", r.cfg.Replica, n)
		}
		if n := b.status(a).GetSnapshotsReceived(); n != snapshots {
			t.Errorf("the peer got another snapshot")
		}
		if now, _, _ := r.kv.Get(t.Context(), key); now == nil || now.ModRevision != at.ModRevision {
			t.Errorf("an unchanged key was written again: %v, before %v", now, at)
		}
	}
	check(second)

	// Its connection is cut, both ways; it lives.
	second.proxy.cut(true)
	b.proxy.cut(false)
	dialled := holders(b, second)
	third := without(rest, second)[0]
	for n := range 20 {
		b.ip(2000+n, "after the cut")
	}
	last := holder(t, b, second, third)
	mirrored(t, last, b)
	check(last)
	t.Logf("streams: %s, %s, %s (dialled %d)", first.cfg.Replica, second.cfg.Replica, last.cfg.Replica, len(dialled))
}

// TestUnreachableReplicaGivesWay: a replica that can neither dial the peer nor be
// dialled loses the peer to one with whom that speaks.
func TestUnreachableReplicaGivesWay(t *testing.T) {
	// The peer cannot be dialled: its side must find the replica that it reaches.
	a := newCluster(t, 1)
	b := newCluster(t, 2, func(c *testCluster) { c.cfg.Cluster.Endpoints = nil })
	joinPeers(t, a, b)
	other := a.replica("b")
	reachable(a, other)
	eventually(t, "b knows where they are", func() bool { return len(b.peer(a.name).GetEndpoints()) == 2 })
	b.ip(1, "w")
	mirrored(t, a, b)
	a.proxy.cut(true) // alive, and holds the office
	b.ip(2, "w")
	eventually(t, "the other replica has the stream", func() bool { return holder(t, b, a, other) == other })
	mirrored(t, other, b)
	if s := other.status(b); s.GetSnapshotsReceived() != 0 || s.GetDialledBy() != "them" {
		t.Errorf("not resumed: %v", s)
	}
	eventually(t, "the former holder knows", func() bool { return a.status(b).GetReplica() == "b" && a.status(b).GetState() == stateConnected })
	// The office of the former is over: what it would write is refused.
	if term, _ := a.m.runner(b.name).office.current(); term != nil {
		t.Error("the former holder thinks that it has the office")
	}
}

// TestStreamIsNotTaken: what calls another replica while one has the stream is
// sent away.
func TestStreamIsNotTaken(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	other := hub.replica("b")
	for _, id := range []uint32{2, 3} { // one with a lower name than ours, or not
		p := hub.admit(id, 8)
		p.connect()
		p.first()
		eventually(t, "its view", func() bool { return hub.viewOf(p.name).GetConnected() })
		again := &player{t: t, hub: other, name: p.name, id: p.id, bits: p.bits, creds: p.creds, trust: p.trust, now: time.Now}
		var err error
		eventually(t, "the other replica knows it", func() bool {
			err = again.open()
			return err == nil || strings.Contains(err.Error(), "try the other endpoints")
		})
		if err == nil || p.status().GetState() != stateConnected {
			t.Errorf("%s: taken by the other replica: %v, %v", p.name, err, p.status())
		}
	}
}

// TestOldImporterIsFenced: a replica that lost the office without noticing writes
// nothing more.
func TestOldImporterIsFenced(t *testing.T) {
	a, b := pair(t)
	b.ip(1, "w")
	mirrored(t, a, b)
	run := a.m.runner(b.name)
	term, _ := run.office.current()
	stale := term.Fence()
	other := a.replica("b")
	reachable(a, other)
	a.proxy.cut(true)
	a.stop()
	holder(t, b, other)
	res, err := a.kv.Txn(t.Context(), stale, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.State, b.name)+"ips/late", []byte("x"))}, nil)
	if err != nil || res.Succeeded {
		t.Errorf("the old importer still writes: %v %v", res, err)
	}
	b.ip(2, "w")
	mirrored(t, other, b)
}

// TestAddressChange: a cluster is told of elsewhere, first beside the old address,
// then instead of it. Its peer, which alone dials, goes on there: nothing is
// withdrawn, and what changed meanwhile comes by a resume.
func TestAddressChange(t *testing.T) {
	a := newCluster(t, 1)
	b := newCluster(t, 2, func(c *testCluster) { c.cfg.Cluster.Endpoints = nil })
	joinPeers(t, a, b)
	a.fill(0, 200)
	b.fill(0, 200)
	mirrored(t, a, b)
	since := b.status(a).GetSince()

	moved := newProxy(t) // the same API server at another address
	moved.target(a.m.Addr().String())
	rec := describe(a.name, a.id, "")
	rec.Endpoints = []string{moved.addr()}
	a.put(kvstore.NewKey(kvstore.State, a.name, kvstore.KindCluster), rec)
	eventually(t, "the new address is stored", func() bool { return slices.Equal(b.peer(a.name).GetEndpoints(), rec.GetEndpoints()) })
	if s := b.status(a); s.GetSince() != since || s.GetState() != stateConnected || !slices.Equal(s.GetEndpoints(), rec.GetEndpoints()) {
		t.Errorf("learning the address ended the stream: %v", s)
	}
	a.proxy.cut(true) // the old one is gone
	eventually(t, "connected at the new one", func() bool {
		s := b.status(a)
		return s.GetState() == stateConnected && s.GetAddress() == moved.addr()
	})
	a.ip(500, "after the move")
	if n := len(b.keys(a)); n < 201 {
		t.Errorf("something was withdrawn: %d keys", n)
	}
	mirrored(t, a, b)
	for _, s := range []string{fmt.Sprint(b.status(a).GetSnapshotsReceived()), fmt.Sprint(a.status(b).GetSnapshotsReceived())} {
		if s != "1" {
			t.Errorf("%s snapshots received", s)
		}
	}
	if s := b.status(a); s.GetChangesReceived() > 210 || s.GetLastSync() != "resume" {
		t.Errorf("not resumed: %v", s)
	}

	// What nobody can dial is not taken, and said.
	rec.Endpoints = []string{"nowhere"}
	a.put(kvstore.NewKey(kvstore.State, a.name, kvstore.KindCluster), rec)
	eventually(t, "refused", func() bool { return b.status(a).GetRefused()[reasonEndpoint] == 1 })
	if s := b.status(a); !slices.Equal(s.GetEndpoints(), []string{moved.addr()}) || !strings.Contains(strings.Join(s.GetLastRefused(), ""), `"nowhere" is not HOST:PORT`) {
		t.Errorf("status: %v", s)
	}
	// The new address is known after a restart, too.
	b.restart()
	connected(t, a, b)
	if s := b.status(a); s.GetAddress() != moved.addr() || s.GetSnapshotsReceived() != 0 {
		t.Errorf("after a restart: %v", s)
	}
}

// TestDiallerTriesAllEndpoints: of several endpoints those that do not answer
// are passed over.
func TestDiallerTriesAllEndpoints(t *testing.T) {
	a := newCluster(t, 1)
	b := newCluster(t, 2, func(c *testCluster) { c.cfg.Cluster.Endpoints = nil })
	joinPeers(t, a, b)
	deaf := newProxy(t) // accepts and closes
	rec := describe(a.name, a.id, "")
	// Shows the right certificate, and serves nothing.
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	idle := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{a.creds.leaf}})))
	go func() { _ = idle.Serve(lis) }()
	t.Cleanup(idle.Stop)
	rec.Endpoints = []string{"127.0.0.1:1", deaf.addr(), lis.Addr().String(), a.proxy.addr()}
	a.put(kvstore.NewKey(kvstore.State, a.name, kvstore.KindCluster), rec)
	eventually(t, "learned", func() bool { return len(b.status(a).GetEndpoints()) == 4 })
	a.proxy.cut(false)
	a.ip(1, "w")
	eventually(t, "connected again", func() bool { return b.status(a).GetResumesReceived() > 0 })
	mirrored(t, a, b)
}

// TestReconnectBacksOff: a peer that closes every connection is dialled less and
// less often, however long that lasts.
func TestReconnectBacksOff(t *testing.T) {
	a := newCluster(t, 1)
	b := newCluster(t, 2, func(c *testCluster) { c.cfg.Cluster.Endpoints = nil })
	joinPeers(t, a, b)
	began := time.Now()
	a.proxy.cut(true)
	eventually(t, "several attempts", func() bool { return a.proxy.refusals() >= 12 })
	// 10 ms doubling to 200 ms, with a jitter of half: no twelfth attempt
	// before the waits in between, at their shortest.
	var least time.Duration
	for step, n := 10*time.Millisecond, 0; n < 11; n++ {
		least += step / 2
		step = min(2*step, 200*time.Millisecond)
	}
	if took := time.Since(began); took < least {
		t.Errorf("12 attempts within %s; the waits between them are %s at least", took, least)
	}
	a.proxy.heal()
	b.ip(1, "w")
	mirrored(t, a, b)
}
