// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// txnLog is a store that keeps nothing but what was asked of it.
type txnLog struct {
	kvstore.Client
	mu   sync.Mutex
	txns [][]kvstore.Op
}

func (l *txnLog) Txn(_ context.Context, _ []kvstore.Cmp, thens, _ []kvstore.Op) (kvstore.TxnResult, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.txns = append(l.txns, thens)
	return kvstore.TxnResult{Succeeded: true, Revision: int64(len(l.txns))}, nil
}

// waiting is an importer with these batches of one change each before it, and
// what it sends.
func waiting(t *testing.T, kv kvstore.Client, sequences ...uint64) (im *importer, sent *[]*federationv1.Ack) {
	t.Helper()
	sent = &[]*federationv1.Ack{}
	st := newPeerState(time.Now)
	im = newImporter(importer{
		kv: kv, own: "west", peer: "east", cfg: &Config{}, guard: goldenGuard(t), st: st, lock: &election.Term{}, log: slog.New(slog.DiscardHandler),
		send: func(f *federationv1.Frame) error {
			*sent = append(*sent, f.GetAck())
			return nil
		},
	})
	im.sentry.start(0)
	im.incarnation, im.position, im.stored = "i", &keyspacev1.Position{}, &keyspacev1.Position{}
	im.mirror = &mirror{entries: map[string]entry{}, counts: map[kvstore.Kind]uint64{}, weights: map[kvstore.Kind]uint64{}}
	for _, s := range sequences {
		// A kind that is not known needs no grant's limit but one.
		rel := fmt.Sprintf("novelties/%d", s)
		im.next <- inbound{
			batch:   &federationv1.Batch{Sequence: s, Revision: int64(100 + s), Count: 1},
			changes: []judged{{rel: rel, full: "hawser/v1/state/east/" + rel, deleted: true}},
		}
		im.mirror.set(rel, entry{weight: 1})
		st.received(1, 0)
	}
	return im, sent
}

// What waits is stored by one transaction, with the newest position, and
// acknowledged once; what is not a batch keeps its turn.
func TestWaitingBatchesAreAppliedTogether(t *testing.T) {
	kv := &txnLog{}
	im, sent := waiting(t, kv, 1, 2, 3)
	im.next <- inbound{mark: &keyspacev1.Position{Incarnation: "i", Revision: 500}}
	first, err := im.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := im.batches(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if len(kv.txns) != 1 || len(kv.txns[0]) != 4 {
		t.Fatalf("%d transactions, want one of three deletions and the position: %v", len(kv.txns), kv.txns)
	}
	if im.stored.GetRevision() != 103 {
		t.Errorf("position %d is stored, want 103", im.stored.GetRevision())
	}
	if len(*sent) != 1 || (*sent)[0].GetSequence() != 3 || (*sent)[0].GetPosition().GetRevision() != 103 {
		t.Errorf("acknowledged %v, want batch 3 alone", *sent)
	}
	if n := im.st.unapplied; n != 0 {
		t.Errorf("%d changes count as not applied", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if next, err := im.take(ctx); err != nil || next == nil || next.mark.GetRevision() != 500 {
		t.Errorf("next is %v, %v; want the mark that came behind the batches", next, err)
	}
}

// What came before a batch that is out of order is applied and acknowledged.
func TestBatchesBeforeABrokenOneCount(t *testing.T) {
	kv := &txnLog{}
	im, sent := waiting(t, kv, 1, 2, 4)
	first, err := im.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var v *violation
	if err := im.batches(t.Context(), first); !errors.As(err, &v) {
		t.Errorf("error %v, want a violation", err)
	}
	if im.stored.GetRevision() != 102 || len(*sent) != 1 || (*sent)[0].GetSequence() != 2 {
		t.Errorf("stored %d, acknowledged %v; want 102 and batch 2", im.stored.GetRevision(), *sent)
	}
}

// Of a snapshot as much is taken as the grant allows, and not more: what stood
// before counts for nothing, what is mentioned twice once. What is beyond is
// refused and, if it stood, removed.
func TestSnapshotEndsAtTheLimit(t *testing.T) {
	grant, err := peering.GrantFor(describe("west", 2, ""))
	if err != nil {
		t.Fatal(err)
	}
	grant.MaxIps = 3
	guard, err := peering.NewGuard(&keyspacev1.Peer{Name: "west", ClusterId: 2, Grant: grant}, nil)
	if err != nil {
		t.Fatal(err)
	}
	im, _ := waiting(t, &txnLog{})
	im.guard, im.peer = guard, "west"
	ip := func(rel string, value string) judged {
		return judged{rel: rel, full: kvstore.Prefix(kvstore.State, "west") + rel, kind: kvstore.KindIP, value: []byte(value), hash: hashOf([]byte(value)), weight: 1}
	}
	for _, rel := range []string{"ips/old1", "ips/old2", "ips/e"} { // the limit is reached by what stands
		im.mirror.set(rel, entry{kvstore.KindIP, hashOf(nil), 1})
	}
	im.snapshot = &federationv1.Resync{}
	im.mirror.beginSnapshot()
	got := map[string]bool{} // key → written, not deleted
	for _, batch := range [][]judged{{ip("ips/a", "1"), ip("ips/b", "1")}, {ip("ips/a", "2"), ip("ips/c", "1"), ip("ips/d", "1")}, {ip("ips/e", "1")}} {
		for _, p := range im.plan(batch) {
			got[strings.TrimPrefix(p.key, kvstore.Prefix(kvstore.State, "west"))] = !p.deleted
		}
	}
	want := map[string]bool{"ips/a": true, "ips/b": true, "ips/c": true, "ips/e": false}
	if !maps.Equal(got, want) {
		t.Errorf("written (false: removed) %v, want %v", got, want)
	}
	if im.refused != 2 || im.st.refused[peering.ReasonLimit] != 2 {
		t.Errorf("%d refused, by reason %v; want 2 by the limit", im.refused, im.st.refused)
	}
	if left := len(im.mirror.unseen()); left != 2 {
		t.Errorf("%d keys are swept, want the two that were not mentioned", left)
	}
}

// The position of a batch that takes several transactions is stored by the last
// of them: one that ends in between is resumed from where it began.
func TestPositionIsStoredLast(t *testing.T) {
	kv := &txnLog{}
	im, _ := waiting(t, kv)
	im.stored, im.position = &keyspacev1.Position{Incarnation: "i", Revision: 50}, &keyspacev1.Position{Incarnation: "i", Revision: 50}
	im.checked = im.mirror.content()
	i := inbound{batch: &federationv1.Batch{Sequence: 1, Revision: 400, Count: 300}}
	for n := range 300 { // of two ranks
		rel := fmt.Sprintf("ips/%d", n)
		i.changes = append(i.changes, judged{rel: rel, full: "hawser/v1/state/east/" + rel, kind: kvstore.KindIP, value: []byte{1}, hash: hashOf([]byte{1}), weight: 1, deleted: n%2 == 0})
		im.mirror.set(rel, entry{kind: kvstore.KindIP, weight: 1})
	}
	if err := im.batches(t.Context(), &i); err != nil {
		t.Fatal(err)
	}
	if len(kv.txns) < 4 {
		t.Fatalf("%d transactions: too few to tell", len(kv.txns))
	}
	data := 0
	for n, ops := range kv.txns {
		for _, op := range ops {
			if op.Key != im.progressKey() {
				data++
				continue
			}
			at := &keyspacev1.Position{}
			if err := proto.Unmarshal(op.Value, at); err != nil {
				t.Fatal(err)
			}
			if at.GetRevision() != 50 && n != len(kv.txns)-1 {
				t.Errorf("transaction %d of %d stores position %d", n+1, len(kv.txns), at.GetRevision())
			}
		}
	}
	if data != 300 || im.stored.GetRevision() != 400 {
		t.Errorf("%d changes written, position %d; want 300 and 400", data, im.stored.GetRevision())
	}
}
