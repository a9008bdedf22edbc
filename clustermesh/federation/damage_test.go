// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// A record that becomes unreadable at its owner says nothing: what it said before
// stays, through changes and snapshots, until there is a good one, or one that
// breaks the rules, or none.
func TestUnreadableRecordKeepsWhatItSaid(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	p.batch(11, false, p.ip(2), p.ip(3), p.ip(4))
	base := kvstore.Prefix(kvstore.State, p.name)
	good := func(n int) bool { return p.seen()[base+p.ip(n).GetKey()] == string(p.ip(n).GetValue()) }
	eventually(t, "all good", func() bool { return len(p.seen()) == 4 })

	garbage, large := p.ip(2), p.ip(3)
	garbage.Value, large.Value = []byte{0xff}, make([]byte, kvstore.MaxRecord+1)
	p.batch(12, false, garbage, large, p.ip(5))
	eventually(t, "what came with them", func() bool { return good(5) })
	if !good(2) || !good(3) {
		t.Error("garbage took what its key said before with it")
	}
	if r := p.status().GetRefused(); r["decode"] != 1 || r["size"] != 1 {
		t.Errorf("refused: %v", r)
	}
	never := p.ip(6)
	never.Value = []byte{0xff}
	p.resync(federationv1.Resync_MODE_SNAPSHOT, 20)
	p.batch(20, true, p.ip(1), garbage, large, never, p.ip(7)) // 4 and 5 are gone
	eventually(t, "the snapshot", func() bool { return good(7) && !good(4) && !good(5) })
	if !good(1) || !good(2) || !good(3) || len(p.seen()) != 4 {
		t.Errorf("the snapshot left %d keys; the unreadable ones: %v %v", len(p.seen()), good(2), good(3))
	}

	rec := &keyspacev1.IPEntry{Prefix: "10.0.32.2/32", Identity: 2<<16 + 7, Node: "n2", TunnelAddress: "172.16.2.1"}
	better := p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindIP, rec.GetPrefix()), rec)
	p.batch(21, false, better)
	eventually(t, "a good one takes its place", func() bool { return p.seen()[base+better.GetKey()] == string(better.GetValue()) })
	rec.Identity = 3<<16 + 1 // another cluster's
	p.batch(22, false, p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindIP, rec.GetPrefix()), rec),
		&federationv1.Change{Key: p.ip(3).GetKey(), Deleted: true})
	eventually(t, "a violation and a deletion withdraw", func() bool { return len(p.seen()) == 2 && good(1) && good(7) })
}

// What was copied under another grant stays for no unreadable record: nobody
// knows whether it is granted still.
func TestUnreadableRecordUnderANarrowerGrant(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	if _, changed, err := hub.m.ChangeGrant(t.Context(), p.name, peering.GrantChange{Namespaces: []string{"other"}}); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if err := p.over(); err == nil {
		t.Fatal("the stream goes on")
	}
	p.connect()
	garbage := p.ip(1)
	garbage.Value = []byte{0xff}
	p.resync(federationv1.Resync_MODE_SNAPSHOT, 10)
	p.batch(10, true, garbage)
	eventually(t, "what is not granted is gone", func() bool { return len(p.seen()) == 0 })
}

// A copy that somebody changed while there was no stream is made again when the
// next one begins; one that nobody changed is not.
func TestDamagedMirrorIsCopiedAgain(t *testing.T) {
	a, b := oneWay(t)
	a.fill(0, 300)
	mirrored(t, a, b)
	again := func(what string, snapshots uint64, damage ...func()) {
		t.Helper()
		b.stop()
		for _, fn := range damage {
			fn()
		}
		b.start()
		connected(t, a, b)
		a.ip(999, what)
		mirrored(t, a, b)
		if s := copied(t, b, a, snapshots); snapshots > 0 && s.GetLastSync() != "snapshot (our copy was changed by somebody else)" {
			t.Errorf("%s: last sync %q", what, s.GetLastSync())
		}
	}
	again("nothing", 0)
	key := func(n int) string { k, _ := a.ipRecord(n, ""); return k.String() }
	again("a key is missing", 1, func() { b.del(key(7)) })
	again("nothing, after a repair", 0)
	again("a value is another one", 1, func() { b.putRaw(key(8), []byte("tampered")) })
	again("a key too many", 1, func() { b.putRaw(key(20000), []byte("extra")) })
	b.stop()
	a.fill(300, 900) // more than one transaction
	a.del(key(11))
	b.start()
	connected(t, a, b)
	mirrored(t, a, b)
	again("nothing, after many changes", 0)

	// A position of an earlier version says nothing of the content.
	b.stop()
	pos := &keyspacev1.Position{}
	if err := proto.Unmarshal(b.get(progressOf(b, a)), pos); err != nil || len(pos.GetContent()) != len(valueHash{}) {
		t.Fatalf("position %v, %v", pos, err)
	}
	pos.Content = nil
	b.putRaw(progressOf(b, a), encode(pos))
	b.start()
	again("nothing, after an upgrade", 0)
}

// What is left between two transactions is no damage: a resume goes on from
// there.
func TestHalfWrittenChangesAreNoDamage(t *testing.T) {
	kv := &txnLog{}
	im, _ := waiting(t, kv)
	im.stored = &keyspacev1.Position{Incarnation: "i", Revision: 7}
	im.checked = im.mirror.content()
	first := &inbound{batch: &federationv1.Batch{Sequence: 1, Revision: 101, Count: maxTxnOps}}
	for n := range maxTxnOps {
		rel := fmt.Sprintf("novelties/%d", n)
		im.mirror.set(rel, entry{weight: 1})
		first.changes = append(first.changes, judged{rel: rel, full: "hawser/v1/state/east/" + rel, deleted: true})
	}
	if err := im.batches(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	var said []*keyspacev1.Position
	for _, txn := range kv.txns {
		for _, op := range txn {
			if op.Key == im.progressKey() {
				p := &keyspacev1.Position{}
				if err := proto.Unmarshal(op.Value, p); err != nil {
					t.Fatal(err)
				}
				said = append(said, p)
			}
		}
	}
	if len(kv.txns) != 3 || len(said) != 2 || said[0].GetRevision() != 7 || said[0].Content != nil || said[1].GetRevision() != 101 || len(said[1].GetContent()) == 0 {
		t.Errorf("%d transactions, positions %v; want the old one unchecked first, the new one checked last", len(kv.txns), said)
	}
}

// What a batch changes without moving the position on changes the sum beside it.
func TestSumFollowsChangesThatDoNotMoveThePosition(t *testing.T) {
	kv := &txnLog{}
	im, _ := waiting(t, kv, 1)
	im.position = &keyspacev1.Position{Incarnation: "i", Revision: 101}
	im.stored, im.checked = proto.CloneOf(im.position), im.mirror.content()
	first, err := im.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := im.batches(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	p := &keyspacev1.Position{}
	if len(kv.txns) != 1 || len(kv.txns[0]) != 2 || kv.txns[0][1].Key != im.progressKey() || proto.Unmarshal(kv.txns[0][1].Value, p) != nil ||
		p.GetRevision() != 101 || string(p.GetContent()) != string(im.mirror.content()) {
		t.Errorf("stored %v, %v", kv.txns, p)
	}
}
