// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

func TestMirrorsBothWays(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	a.fill(0, 2500) // before the join: the snapshot has several batches
	b.ip(1, "one")
	b.identity(2<<16+7, "id=app", "mesh:cluster="+b.name) // refused: no source
	joinPeers(t, a, b)
	eventually(t, "snapshot arrived", func() bool { return sameKeys(a.keys(a), b.keys(a)) })
	if s := copied(t, b, a, 1); s.GetChangesReceived() != 2500 || s.GetKeys() != 2500 {
		t.Errorf("b's status of a: %v", s)
	}

	key := a.ip(7000, "new")
	other := b.ip(2, "two")
	eventually(t, "changes arrived", func() bool { return b.get(key) != nil && a.get(other) != nil })
	a.ip(7000, "renamed")
	eventually(t, "update arrived", func() bool {
		var e keyspacev1.IPEntry
		return proto.Unmarshal(b.get(key), &e) == nil && e.GetWorkload() == "renamed"
	})
	a.del(key)
	eventually(t, "deletion arrived", func() bool { return b.get(key) == nil })

	marker := kvstore.NewKey(kvstore.Local, b.name, kvstore.KindSynced, a.name, string(kvstore.KindIP)).String()
	var m keyspacev1.Synced
	if err := proto.Unmarshal(b.get(marker), &m); err != nil || m.GetState() != keyspacev1.Synced_STATE_COMPLETE || m.GetIncarnation() == "" || m.GetRevision() == 0 {
		t.Errorf("marker %s: %v %v", marker, &m, err)
	}
	var v keyspacev1.PeerView
	eventually(t, "peer view", func() bool {
		return proto.Unmarshal(b.get(kvstore.NewKey(kvstore.Local, b.name, kvstore.KindPeerView, a.name).String()), &v) == nil && v.GetConnected()
	})
	eventually(t, "no lag when idle", func() bool {
		s := b.status(a)
		return s.GetLagEvents() == 0 && s.GetLagSeconds() == 0 && s.GetLagP99Seconds() > 0
	})
	if a.status(b).GetRefused()["labels"] != 1 {
		t.Errorf("refused: %v %v", a.status(b).GetRefused(), a.status(b).GetLastRefused())
	}
}

func TestResumeSendsOnlyTheDifference(t *testing.T) {
	a, b := pair(t)
	a.fill(0, 1500)
	mirrored(t, a, b)
	eventually(t, "all counted", func() bool { return b.status(a).GetChangesReceived() == 1500 })
	before, sent := b.status(a), a.status(b).GetChangesSent()

	heal := isolate(a, b)
	eventually(t, "both lost", func() bool { return a.status(b).GetState() == stateLost && b.status(a).GetState() == stateLost })
	gone := a.ip(3, "w")
	a.del(gone)
	changed := a.ip(4, "changed")
	a.ip(9000, "new")
	if b.get(changed) == nil || len(b.keys(a)) != 1500 {
		t.Error("something was withdrawn while the peer was lost")
	}
	var v keyspacev1.PeerView
	eventually(t, "view says lost", func() bool {
		return proto.Unmarshal(b.get(kvstore.NewKey(kvstore.Local, b.name, kvstore.KindPeerView, a.name).String()), &v) == nil && !v.GetConnected() && v.GetData() == "fresh"
	})
	heal()
	connected(t, a, b)
	mirrored(t, a, b)
	after := b.status(a)
	if n := after.GetChangesReceived() - before.GetChangesReceived(); n != 3 {
		t.Errorf("%d changes came after the cut, not 3", n)
	}
	if n := a.status(b).GetChangesSent() - sent; n != 3 {
		t.Errorf("%d changes were sent after the cut, not 3", n)
	}
	if after.GetSnapshotsReceived() != 1 || after.GetResumesReceived() < 1 || after.GetLastSync() != "resume" {
		t.Errorf("not resumed: %v", after)
	}
}

func TestRestartResumes(t *testing.T) {
	a, b := pair(t)
	a.fill(0, 300)
	mirrored(t, a, b)
	key := kvstore.NewKey(kvstore.State, a.name, kvstore.KindIP, "10.1.0.5/32").String()
	at, _, _ := b.kv.Get(t.Context(), key)
	b.stop()
	a.ip(301, "while away")
	b.start()
	connected(t, a, b)
	mirrored(t, a, b)
	s := b.status(a)
	if s.GetSnapshotsReceived() != 0 || s.GetResumesReceived() == 0 || s.GetChangesReceived() != 1 {
		t.Errorf("b after its restart: %v", s)
	}
	a.restart()
	connected(t, a, b)
	b.ip(1, "after both")
	mirrored(t, a, b)
	if s := a.status(b); s.GetSnapshotsReceived() != 0 || s.GetSnapshotsSent() != 0 {
		t.Errorf("a after its restart: %v", s)
	}
	if now, _, _ := b.kv.Get(t.Context(), key); now == nil || now.ModRevision != at.ModRevision {
		t.Errorf("an unchanged key was written again: %v, before %v", now, at)
	}
}

func TestOtherIncarnationIsCopiedAndSwept(t *testing.T) {
	a, b := oneWay(t)
	a.fill(0, 200)
	mirrored(t, a, b)
	kept := kvstore.NewKey(kvstore.State, a.name, kvstore.KindIP, "10.1.0.150/32").String()
	at, _, _ := b.kv.Get(t.Context(), kept)
	b.ip(1, "b's own")

	// What a restore from a backup does: other data, another incarnation.
	a.stop()
	for n := range 100 {
		k, _ := a.ipRecord(n, "")
		a.del(k.String())
	}
	a.putRaw(kvstore.NewKey(kvstore.Private, a.name, kvstore.KindIncarnation).String(), []byte("restored"))
	a.start()
	connected(t, a, b)
	mirrored(t, a, b)
	s := copied(t, b, a, 2)
	if s.GetPositionIncarnation() != "restored" || s.GetKeys() != 100 ||
		s.GetLastSync() != "snapshot (the store is another one: its incarnation changed)" {
		t.Errorf("status: %v", s)
	}
	if now, _, _ := b.kv.Get(t.Context(), kept); now == nil || now.ModRevision != at.ModRevision {
		t.Errorf("the snapshot wrote an unchanged key: %v, before %v", now, at)
	}
}

func TestCompactedHistoryIsCopied(t *testing.T) {
	a, b := oneWay(t)
	a.fill(0, 50)
	mirrored(t, a, b)
	heal := isolate(a, b)
	eventually(t, "lost", func() bool { return b.status(a).GetState() == stateLost })
	k, _ := a.ipRecord(7, "")
	a.del(k.String())
	a.fill(60, 70)
	_, rev, err := a.kv.Get(t.Context(), k.String())
	if err != nil {
		t.Fatal(err)
	}
	compact(t, a, rev)
	heal()
	connected(t, a, b)
	mirrored(t, a, b)
	if s := copied(t, b, a, 2); !strings.Contains(s.GetLastSync(), "compacted") {
		t.Errorf("status: %v", s)
	}
}

func TestPositionAheadOfStoreIsCopied(t *testing.T) {
	a, b := oneWay(t)
	a.fill(0, 20)
	mirrored(t, a, b)
	inc, err := a.m.Incarnation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	grant := peering.GrantHash(peerOf(t, b, a).GetGrant())
	b.stop()
	b.put(kvstore.NewKey(kvstore.Private, b.name, kvstore.KindProgress, a.name), &keyspacev1.Position{
		Incarnation: inc, Revision: 1 << 40, Grant: grant})
	b.start()
	connected(t, a, b)
	mirrored(t, a, b)
	if s := copied(t, b, a, 1); !strings.Contains(s.GetLastSync(), "ahead of the store") {
		t.Errorf("status: %v", s)
	}
}

func TestForeignRecordsAreRefused(t *testing.T) {
	// Only b dials: a stream that another one replaces would have what it did not
	// acknowledge sent, and refused, again.
	a, b := newCluster(t, 1), newCluster(t, 2, neverRepairs, func(c *testCluster) { c.cfg.Cluster.Endpoints = nil })
	joinPeers(t, a, b)
	good, rec := b.ipRecord(1, "good")
	bad := func(n int, edit func(*keyspacev1.IPEntry)) {
		k, e := b.ipRecord(n, "bad")
		edit(e)
		k.Names[0] = e.GetPrefix()
		b.put(k, e)
	}
	bad(2, func(e *keyspacev1.IPEntry) { e.Identity = 1<<16 + 5 })            // a's range
	bad(3, func(e *keyspacev1.IPEntry) { e.Identity = 2 })                    // reserved
	bad(4, func(e *keyspacev1.IPEntry) { e.Prefix = "10.1.0.9/32" })          // a's pod
	bad(5, func(e *keyspacev1.IPEntry) { e.Prefix = "0.0.0.0/0" })            // everything
	bad(6, func(e *keyspacev1.IPEntry) { e.TunnelAddress = "192.168.1.1" })   // a's node
	b.identity(1<<16+9, "mesh:cluster="+b.name)                               // a's number
	b.identity(2<<16+9, "k8s:id=app", "mesh:cluster="+a.name)                 // poses as a
	b.identity(2<<16+10, "mesh:cluster="+b.name, "reserved:host")             // a reserved label
	b.putRaw(kvstore.Prefix(kvstore.State, b.name)+"ips/garbage", []byte{99}) // no record
	b.putRaw(kvstore.Prefix(kvstore.State, b.name)+"hawser/v1/state/"+a.name+"/ips/10.1.0.9%2F32", []byte("x"))
	b.putRaw(kvstore.Prefix(kvstore.State, b.name)+"laterkind/x", []byte("kept as it is"))
	b.putRaw(kvstore.Prefix(kvstore.State, a.name)+"ips/10.1.0.77%2F32", []byte("in b's mirror only"))
	b.put(good, rec)
	eventually(t, "the good key beside them landed", func() bool { return a.get(good.String()) != nil })
	want := map[string]string{good.String(): string(b.get(good.String())), kvstore.Prefix(kvstore.State, b.name) + "laterkind/x": "kept as it is"}
	if got := a.keys(b); !sameKeys(got, want) {
		t.Errorf("a holds of b: %q", got)
	}
	if got := a.keys(a); len(got) != 0 {
		t.Errorf("b wrote to a's own subtree: %q", got)
	}
	s := a.status(b)
	n := uint64(0)
	for _, c := range s.GetRefused() {
		n += c
	}
	if n != 10 || s.GetRefused()["range"] < 3 || s.GetRefused()["address"] < 2 || s.GetRefused()["labels"] != 2 || s.GetRefused()["foreign"] != 1 || len(s.GetLastRefused()) != 10 {
		t.Errorf("refused %d: %v\n%s", n, s.GetRefused(), strings.Join(s.GetLastRefused(), "\n"))
	}
	if s.GetState() != stateConnected || s.GetSnapshotsReceived() != 1 {
		t.Errorf("the stream did not stay: %v", s)
	}
	// A record that turns bad takes its former value with it.
	rec.Identity = 5 << 16
	b.put(good, rec)
	eventually(t, "old value gone", func() bool { return a.get(good.String()) == nil })
}

func TestLimitsHold(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	joinPeers(t, a, b)
	peerKey := kvstore.NewKey(kvstore.Private, a.name, kvstore.KindPeerView, b.name)
	var p keyspacev1.Peer
	if err := proto.Unmarshal(a.get(peerKey.String()), &p); err != nil {
		t.Fatal(err)
	}
	p.Grant.MaxIps = 10
	a.put(peerKey, &p)
	eventually(t, "grant taken up", func() bool { return a.status(b).GetSnapshotsReceived() > 1 })
	b.fill(0, 15)
	eventually(t, "surplus refused", func() bool { return a.status(b).GetRefused()["limit"] == 5 })
	eventually(t, "the others landed", func() bool { return len(a.keys(b)) == 10 })
}

func TestDiff(t *testing.T) {
	a, b := pair(t, neverRepairs)
	a.fill(0, 3)
	mirrored(t, a, b)
	if d, err := b.m.DiffPeer(t.Context(), a.name, DiffRange{}); err != nil || len(d.GetRows()) != 0 || d.GetCompared() != 3 {
		t.Fatalf("equal mirrors: %v %v", d, err)
	}
	prefix := kvstore.Prefix(kvstore.State, a.name) + "ips/10.1.0."
	b.del(prefix + "0%2F32")
	b.putRaw(prefix+"1%2F32", []byte("tampered"))
	b.putRaw(prefix+"9%2F32", []byte("extra"))
	d, err := b.m.DiffPeer(t.Context(), a.name, DiffRange{Prefix: "ips/"})
	if err != nil || len(d.GetRows()) != 3 || d.GetRows()[0].GetDifference() != diffMissing || d.GetRows()[1].GetDifference() != diffDiffers || d.GetRows()[2].GetDifference() != diffExtra {
		t.Errorf("diff: %v %v", d, err)
	}
}

// compact drops the history up to rev.
func compact(t *testing.T, c *testCluster, rev int64) {
	t.Helper()
	c.etcd.Compact(t, rev)
}

// The position acknowledged tells when a deletion has reached a peer's store: not
// while the peer is cut off, and also after a restart of either side.
func TestAcknowledgedPosition(t *testing.T) {
	a, b := pair(t, func(c *testCluster) { c.cfg.IdlePersist = 100 * time.Millisecond })
	a.fill(0, 1500)
	mirrored(t, a, b)
	acked := func() int64 {
		p, _ := a.m.Acknowledged(b.name)
		return p.GetRevision()
	}
	gone := func(key string) (rev int64) {
		a.del(key)
		_, rev, err := a.kv.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	d := gone(a.ip(9000, "w"))
	eventually(t, "a deletion is acknowledged", func() bool { return acked() >= d })
	if p, ok := a.m.Acknowledged(b.name); !ok || p.GetIncarnation() == "" {
		t.Errorf("acknowledged %v, %v on an open stream", p, ok)
	}

	heal := isolate(a, b)
	eventually(t, "lost", func() bool { return a.status(b).GetState() == stateLost })
	d = gone(a.ip(9001, "w"))
	if acked() >= d {
		t.Error("acknowledged by a peer that cannot have heard of it")
	}
	heal()
	connected(t, a, b)
	eventually(t, "acknowledged after the cut", func() bool { return acked() >= d })

	a.restart()
	connected(t, a, b)
	eventually(t, "known again after a restart, by where the peer resumes", func() bool { return acked() >= d })
	inView := func() bool {
		var v keyspacev1.PeerView
		key := kvstore.NewKey(kvstore.Local, a.name, kvstore.KindPeerView, b.name).String()
		return proto.Unmarshal(a.get(key), &v) == nil && v.GetAcknowledged().GetRevision() >= d
	}
	eventually(t, "in the view of the peer", inView)
	d = gone(a.ip(9002, "w"))
	eventually(t, "also while nothing else of the view changes", inView)
}
