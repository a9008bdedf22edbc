// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"crypto/rand"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// bystander is a third cluster that must not notice what another one does.
func bystander(t *testing.T, hub *testCluster) (check func()) {
	t.Helper()
	good := hub.admit(9, 8)
	good.connect()
	good.first()
	n, rev := 1, int64(10)
	return func() {
		t.Helper()
		n, rev = n+1, rev+1
		c := good.ip(n)
		good.batch(rev, false, c)
		key := hub.identity(1<<16+uint32(100+n), "mesh:cluster="+hub.name)
		eventually(t, "the third cluster goes on, both ways", func() bool {
			_, out := good.has(strings.TrimPrefix(key, kvstore.Prefix(kvstore.State, hub.name)))
			_, in := good.seen()[kvstore.Prefix(kvstore.State, good.name)+c.GetKey()]
			return in && out
		})
		s := good.status()
		if s.GetState() != stateConnected || s.GetSnapshotsReceived() != 1 || len(s.GetRefused()) != 0 || s.GetLastError() != "" {
			t.Errorf("the third cluster was disturbed: %v", s)
		}
	}
}

func finding(s *hawserv1.PeerStatus, check string) *hawserv1.Finding {
	for _, f := range s.GetFindings() {
		if f.GetCheck() == check {
			return f
		}
	}
	return nil
}

// TestProtocolViolations: what a peer's protocol forbids ends its stream with a
// reason, is counted, and costs nobody else anything. What it sent before stays,
// and the next stream resumes there.
func TestProtocolViolations(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	zeros, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := zeros.EncodeAll(make([]byte, maxBatchBytes+1), nil)
	many := make([]*federationv1.Change, maxBatchChanges+1)
	for i := range many {
		many[i] = &federationv1.Change{Key: fmt.Sprint("x/", i)}
	}
	batch := func(b *federationv1.Batch) *federationv1.Frame {
		return &federationv1.Frame{Body: &federationv1.Frame_Batch{Batch: b}}
	}
	for i, c := range []struct {
		name, reason, says string
		frame              func() *federationv1.Frame
	}{
		{"not compressed", reasonCorrupt, "cannot be decompressed", func() *federationv1.Frame {
			b := p.pack(20, false)
			b.ChangesZstd = []byte("not zstd")
			return batch(b)
		}},
		{"a decompression bomb", reasonCorrupt, "cannot be decompressed", func() *federationv1.Frame {
			b := p.pack(20, false)
			b.ChangesZstd = bomb
			return batch(b)
		}},
		{"no protobuf inside", reasonCorrupt, "cannot be decoded", func() *federationv1.Frame {
			b := p.pack(20, false)
			b.ChangesZstd = zeros.EncodeAll([]byte{0xff, 0xff, 0xff}, nil)
			return batch(b)
		}},
		{"too many changes", kvstore.ReasonSize, "at most 16384 are allowed", func() *federationv1.Frame {
			return batch(p.pack(20, false, many...))
		}},
		{"a batch left out", reasonSequence, "came after batch 0", func() *federationv1.Frame {
			p.seq++
			return batch(p.pack(20, false, p.ip(2)))
		}},
		{"the low-water mark goes back", reasonPosition, "went back from 10 to 9", func() *federationv1.Frame {
			return batch(p.pack(9, false, p.ip(2)))
		}},
		{"a page without a snapshot", reasonProtocol, "outside of its resync", func() *federationv1.Frame {
			return batch(p.pack(20, true, p.ip(2)))
		}},
		{"another count", reasonProtocol, "holds 1 changes and says 2", func() *federationv1.Frame {
			b := p.pack(20, false, p.ip(2))
			b.Count = 2
			return batch(b)
		}},
		{"subscribed twice", reasonProtocol, "subscribed twice", func() *federationv1.Frame {
			p.send(&federationv1.Frame{Body: &federationv1.Frame_Subscribe{Subscribe: &federationv1.Subscribe{}}})
			return &federationv1.Frame{Body: &federationv1.Frame_Subscribe{Subscribe: &federationv1.Subscribe{}}}
		}},
		{"acknowledged what was not sent", reasonSequence, "acknowledged batch 1000", func() *federationv1.Frame {
			return &federationv1.Frame{Body: &federationv1.Frame_Ack{Ack: &federationv1.Ack{Sequence: 1000}}}
		}},
		{"a resync of another store", reasonProtocol, "its hello of", func() *federationv1.Frame {
			return &federationv1.Frame{Body: &federationv1.Frame_Resync{Resync: &federationv1.Resync{Mode: federationv1.Resync_MODE_RESUME, Incarnation: "other", Revision: 10}}}
		}},
		{"a resume from elsewhere", reasonPosition, "it resumes from 5; we stand at 10", func() *federationv1.Frame {
			return &federationv1.Frame{Body: &federationv1.Frame_Resync{Resync: &federationv1.Resync{Mode: federationv1.Resync_MODE_RESUME, Incarnation: "i-" + p.name, Revision: 5}}}
		}},
	} {
		p.connect()
		if i == 0 {
			p.first()
		} else {
			p.resync(federationv1.Resync_MODE_RESUME, 10)
			if got := p.sub.GetPosition().GetRevision(); got != 10 {
				t.Fatalf("%s: it is asked for what is after %d, not 10", c.name, got)
			}
		}
		before := p.status().GetRefused()[c.reason]
		p.send(c.frame())
		err := p.over()
		eventually(t, c.name+" is counted as "+c.reason, func() bool { return p.status().GetRefused()[c.reason] == before+1 })
		s := p.status()
		if last := s.GetLastRefused(); !strings.Contains(last[len(last)-1], c.says) {
			t.Errorf("%s: status says %q, not %q", c.name, last[len(last)-1], c.says)
		}
		if bye := p.goodbye; err == nil || bye.GetReason() != c.reason || !strings.Contains(bye.GetDetail(), c.says) {
			t.Errorf("%s: the peer is told %v (%v)", c.name, bye, err)
		}
		if finding(s, "protocol") == nil && c.reason != kvstore.ReasonSize {
			t.Errorf("%s: no finding: %v", c.name, s.GetFindings())
		}
		if n := len(p.seen()); n != 1 {
			t.Errorf("%s: %d keys of it here, not 1", c.name, n)
		}
	}
	undisturbed()
	p.connect()
	p.resync(federationv1.Resync_MODE_RESUME, 10)
	p.batch(11, false, p.ip(2))
	eventually(t, "a good stream is taken again", func() bool { return len(p.seen()) == 2 })
	if n := p.status().GetSnapshotsReceived(); n != 1 {
		t.Errorf("%d snapshots", n)
	}
}

// TestFrameTooLarge: a frame beyond the limit is not even read.
func TestFrameTooLarge(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	b := p.pack(11, false)
	b.ChangesZstd = make([]byte, maxFrameBytes+1)
	_, _ = rand.Read(b.ChangesZstd)
	p.send(&federationv1.Frame{Body: &federationv1.Frame_Batch{Batch: b}})
	if err := p.over(); err == nil {
		t.Error("it was accepted")
	}
	eventually(t, "told in status", func() bool { return strings.Contains(p.status().GetLastError(), "larger than max") })
	undisturbed()
}

// TestBadRecordsAreCounted: single records that may not be believed are left out,
// each under its reason; the rest of their batch is taken and the stream stays.
func TestBadRecordsAreCounted(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	key := func(k kvstore.Kind, names ...string) kvstore.Key {
		return kvstore.NewKey(kvstore.State, p.name, k, names...)
	}
	corrupt := p.ip(3)
	corrupt.Value = []byte{0xff}
	large := p.ip(4)
	large.Value = make([]byte, kvstore.MaxRecord+1)
	moved := p.ip(5) // the value of one key under another
	moved.Key = p.ip(6).GetKey()
	future := p.ip(7) // a later version's field
	future.Value = protowire.AppendBytes(protowire.AppendTag(future.Value, 999, protowire.BytesType), []byte("later"))
	changes := map[string]*federationv1.Change{
		kvstore.ReasonDecode:   corrupt,
		kvstore.ReasonSize:     large,
		kvstore.ReasonMismatch: moved,
		"foreign":              p.record(key(kvstore.KindCluster), &keyspacev1.Cluster{Name: p.name, Id: 3, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8}}),
		kvstore.ReasonRange:    p.record(key(kvstore.KindIdentity, "65600"), &keyspacev1.Identity{Number: 65600, Labels: []string{"mesh:cluster=" + p.name}}),
		kvstore.ReasonLabels:   p.record(key(kvstore.KindIdentity, "131080"), &keyspacev1.Identity{Number: 131080, Labels: []string{"mesh:cluster=" + hub.name}}),
		kvstore.ReasonKey:      {Key: "ips/10.0.32.9%2F32/more", Value: []byte("x")},
		kvstore.ReasonAddress:  p.record(key(kvstore.KindVTEP, "10.0.16.0/24"), &keyspacev1.VTEP{Prefix: "10.0.16.0/24", TunnelAddress: "172.16.2.1"}),
	}
	list := []*federationv1.Change{p.ip(2), future, {Key: "laterkind/x/y", Value: []byte("kept")}}
	for _, c := range changes {
		list = append(list, c)
	}
	// Of one key twice in a batch the later counts.
	twice := p.ip(8)
	list = append(list, twice, &federationv1.Change{Key: twice.GetKey(), Deleted: true})
	p.batch(20, false, list...)
	eventually(t, "the good ones are taken", func() bool { return len(p.seen()) == 4 })
	s := p.status()
	for reason, c := range changes {
		if s.GetRefused()[reason] != 1 {
			t.Errorf("%s: counted %d times: %v", reason, s.GetRefused()[reason], c.GetKey())
		}
		if _, ok := p.seen()[kvstore.Prefix(kvstore.State, p.name)+c.GetKey()]; ok {
			t.Errorf("%s: taken", reason)
		}
	}
	base := kvstore.Prefix(kvstore.State, p.name)
	if got := p.seen()[base+future.GetKey()]; got != string(future.GetValue()) {
		t.Errorf("a later version's field is lost: %x", got)
	}
	if got := p.seen()[base+"laterkind/x/y"]; got != "kept" {
		t.Errorf("a later version's kind: %q", got)
	}
	if s.GetState() != stateConnected || len(s.GetLastRefused()) != len(changes) {
		t.Errorf("status: %v", s)
	}
	for _, line := range s.GetLastRefused() {
		if !strings.HasPrefix(line, base) {
			t.Errorf("a refusal that does not name the key: %s", line)
		}
	}
	// Contradiction over time: the number of a known address becomes another
	// cluster's; what it said before is not true any more either.
	bad := p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindIP, "10.0.32.2/32"), &keyspacev1.IPEntry{Prefix: "10.0.32.2/32", Identity: 3<<16 + 1, Node: "n1"})
	p.batch(21, false, bad)
	eventually(t, "withdrawn", func() bool { return len(p.seen()) == 3 })
	undisturbed()
}

// TestNeverAcknowledging: a peer that takes what we send and never says so gets
// no more than its window, is shown, and holds nobody up.
func TestNeverAcknowledging(t *testing.T) {
	hub := newCluster(t, 1, small(8), func(c *testCluster) { c.cfg.Window = 2; c.cfg.BatchChanges = 10 })
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	p.mute = true
	for n := range uint32(100) {
		hub.identity(1<<16+500+n, "mesh:cluster="+hub.name)
	}
	p.connect()
	p.first()
	eventually(t, "the window is used up", func() bool { return p.status().GetChangesSent() == 20 })
	for round := range 5 {
		for n := range uint32(20) {
			hub.identity(1<<16+500+n, "k8s:round="+fmt.Sprint(round), "mesh:cluster="+hub.name)
		}
	}
	undisturbed()
	s := p.status()
	if s.GetChangesSent() != 20 || s.GetState() != stateConnected {
		t.Errorf("more was sent than the window holds: %v", s)
	}
	if s.GetUnacknowledgedSeconds() <= 0 {
		t.Errorf("not shown: %v", s)
	}
	// Seen from later.
	st := hub.m.states[p.name]
	st.do(func() { st.waiting = time.Now().Add(-time.Minute) })
	if f := finding(p.status(), "acknowledgement"); f == nil || !strings.Contains(f.GetProblem(), "1m0s") {
		t.Errorf("finding: %v", f)
	}
	// Its own records are taken nevertheless.
	p.batch(30, false, p.ip(2))
	eventually(t, "its records", func() bool { return len(p.seen()) == 2 })
}

// TestHostileFlood: a peer that reconnects and breaks the protocol as fast as it
// can does not keep a third one waiting.
func TestHostileFlood(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	p.connect()
	const enough, most = 5, 200
	var tries atomic.Int32
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for range most {
			select {
			case <-stop:
				return
			default:
			}
			if p.open() == nil {
				p.send(&federationv1.Frame{Body: &federationv1.Frame_Batch{Batch: &federationv1.Batch{Sequence: 7, ChangesZstd: []byte("x")}}})
			}
			tries.Add(1)
		}
	}()
	for n := 0; n < enough || tries.Load() < enough; n++ {
		undisturbed()
	}
	close(stop)
	<-done
}

// TestClockOff: between clusters whose clocks differ by an hour the lag is right,
// and both are told that their clocks differ.
func TestClockOff(t *testing.T) {
	off := &clock{}
	a := newCluster(t, 1)
	b := newCluster(t, 2, func(c *testCluster) { c.now = off.now })
	joinPeers(t, a, b)
	b.stop() // an invitation would have expired for it
	off.advance(time.Hour)
	b.start()
	connected(t, a, b)
	eventually(t, "the offset is known", func() bool {
		return a.status(b).GetClockOffsetSeconds() > 3590 && b.status(a).GetClockOffsetSeconds() < -3590
	})
	for n := range 20 {
		a.ip(n, "w")
		b.ip(n, "w")
	}
	mirrored(t, a, b)
	eventually(t, "both have measured", func() bool { return a.status(b).GetLagP50Seconds() > 0 && b.status(a).GetLagP50Seconds() > 0 })
	for _, s := range []*hawserv1.PeerStatus{a.status(b), b.status(a)} {
		if s.GetLagP99Seconds() > 10 || s.GetData() != dataFresh {
			t.Errorf("lag %v/%v s, data %s", s.GetLagP50Seconds(), s.GetLagP99Seconds(), s.GetData())
		}
	}
	for _, c := range []struct {
		s    *hawserv1.PeerStatus
		says string
	}{{a.status(b), "1h0m0s ahead of ours"}, {b.status(a), "1h0m0s behind ours"}} {
		if f := finding(c.s, "clock-skew"); f == nil || !strings.Contains(f.GetProblem(), c.says) || !strings.Contains(f.GetFix(), "NTP") {
			t.Errorf("finding: %v", f)
		}
	}
}

// TestSmallSkewIsNoFinding is the other side of TestClockOff.
func TestSmallSkewIsNoFinding(t *testing.T) {
	off := &clock{skew: 3 * time.Second}
	a := newCluster(t, 1)
	b := newCluster(t, 2, func(c *testCluster) { c.now = off.now })
	joinPeers(t, a, b)
	eventually(t, "the offset is known", func() bool { return a.status(b).GetClockOffsetSeconds() > 2 })
	if f := finding(a.status(b), "clock-skew"); f != nil {
		t.Errorf("3 s of skew are told: %v", f)
	}
}
