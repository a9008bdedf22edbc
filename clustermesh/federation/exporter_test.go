// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"testing"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
)

// sender is an exporter whose frames go nowhere.
func sender(t *testing.T) (*exporter, *peerState) {
	t.Helper()
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	st := newPeerState(time.Now)
	return newExporter(nil, "east", "i", &Config{Window: 8}, st, c, func(*federationv1.Frame) error { return nil }), st
}

// An acknowledgement says that its batch is stored, not those behind it, and of a
// snapshot only the last page says anything.
func TestAcknowledgementMeansItsBatch(t *testing.T) {
	e, st := sender(t)
	for i, b := range []struct {
		low           int64
		snapshot, end bool
	}{
		{100, true, false}, {100, true, false}, {100, true, true}, {110, false, false}, {120, false, false}, {130, false, false},
	} {
		if err := e.sendBatch(t.Context(), taken{low: b.low}, b.snapshot, b.end); err != nil {
			t.Fatalf("batch %d: %v", i+1, err)
		}
	}
	for _, s := range []struct {
		ack  uint64
		want int64
	}{{1, 0}, {2, 0}, {3, 100}, {5, 120}, {4, 120}, {7, 120}, {6, 130}} {
		e.acknowledged(s.ack)
		if got := st.acked.GetRevision(); got != s.want {
			t.Errorf("after acknowledgement %d: stored up to %d, want %d", s.ack, got, s.want)
		}
	}
	if len(e.unacked) != 0 {
		t.Errorf("%d marks are left", len(e.unacked))
	}
}

// What lies between the last batch and our low-water mark is stored with that batch.
func TestAcknowledgementMeansAllThatWasSent(t *testing.T) {
	e, st := sender(t)
	want := func(what string, rev int64) {
		t.Helper()
		if got := st.acked.GetRevision(); got != rev {
			t.Errorf("%s: stored up to %d, want %d", what, got, rev)
		}
	}
	if err := e.sendBatch(t.Context(), taken{low: 30}, false, false); err != nil {
		t.Fatal(err)
	}
	e.level(40)
	want("before the batch is acknowledged", 0)
	if err := e.acknowledged(1); err != nil {
		t.Fatal(err)
	}
	want("with it", 40)
	e.level(50)
	want("with nothing under way", 50)
}
