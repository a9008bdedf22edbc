// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// neverRepairs leaves a copy as somebody made it while its stream runs.
func neverRepairs(c *testCluster) { c.cfg.RepairEvery = -1 }

// What somebody does to a copy under a running stream is put right at once, after
// a snapshot as after a resume; what we write ourselves is not taken for that.
func TestDamageUnderAStreamIsRepaired(t *testing.T) {
	a, b := oneWay(t, func(c *testCluster) { c.cfg.RepairEvery = time.Millisecond })
	a.fill(0, 300)
	mirrored(t, a, b)
	key := func(n int) string { k, _ := a.ipRecord(n, ""); return k.String() }
	repaired := func(what string, n uint64) {
		t.Helper()
		eventually(t, what, func() bool {
			s := b.status(a)
			return s.GetRepairs() == n && s.GetState() == stateConnected && len(s.GetSyncedKinds()) > 0 && sameKeys(a.keys(a), b.keys(a))
		})
		if s := b.status(a); s.GetLastSync() != "snapshot (our copy was changed by somebody else)" || len(s.GetFindings()) > 0 {
			t.Errorf("%s: last sync %q, findings %v", what, s.GetLastSync(), s.GetFindings())
		}
	}
	for _, began := range []string{"snapshot", "resume"} {
		if began == "resume" {
			b.restart()
			connected(t, a, b)
		}
		n := b.status(a).GetRepairs()
		b.del(key(7))
		repaired("a key that is missing", n+1)
		b.putRaw(key(8), []byte("tampered"))
		repaired("a value that is another one", n+2)
		b.putRaw(key(20000), []byte("extra"))
		repaired("a key too many", n+3)
		b.putRaw(kvstore.Prefix(kvstore.State, a.name)+"no/such/key/at/all", nil)
		repaired("one that is no key", n+4)
	}
	snapshots := b.status(a).GetSnapshotsReceived()
	a.fill(300, 2000)
	for i := range 300 {
		a.ip(i%3, fmt.Sprint("w", i)) // again and again
		if i%50 == 0 {
			a.del(key(1000 + i))
		}
	}
	mirrored(t, a, b)
	b.del(key(10))
	repaired("a key that is missing", 5)
	if n := b.status(a).GetSnapshotsReceived(); n != snapshots+1 {
		t.Errorf("%d snapshots, for one repair", n-snapshots)
	}
}

// Who changes a copy again and again does not keep the peer's changes from us; it
// is said, until all is copied again.
func TestDamageAgainAndAgain(t *testing.T) {
	a, b := pair(t, func(c *testCluster) { c.cfg.RepairEvery = time.Hour })
	a.fill(0, 10)
	mirrored(t, a, b)
	key := func(n int) string { k, _ := a.ipRecord(n, ""); return k.String() }
	b.putRaw(key(9), []byte(a.keys(a)[key(9)])) // is as it was: no damage
	soon := a.ip(400, "soon")
	eventually(t, "a change", func() bool { return b.get(soon) != nil })
	b.del(key(7))
	eventually(t, "a first repair", func() bool { return b.status(a).GetRepairs() == 1 })
	connected(t, a, b)
	mirrored(t, a, b)
	for n := range 3 {
		b.del(key(n))
	}
	finding := func() string {
		i := slices.IndexFunc(b.status(a).GetFindings(), func(f *hawserv1.Finding) bool { return f.GetCheck() == "copy" })
		if i < 0 {
			return ""
		}
		return b.status(a).GetFindings()[i].GetProblem()
	}
	eventually(t, "it is said", func() bool { return strings.Contains(finding(), key(0)) })
	late := a.ip(500, "late")
	eventually(t, "changes are applied on", func() bool { return b.get(late) != nil })
	if s := b.status(a); s.GetRepairs() != 1 || s.GetState() != stateConnected {
		t.Errorf("repaired again within %s: %v", b.cfg.RepairEvery, s)
	}
	b.restart()
	connected(t, a, b)
	mirrored(t, a, b)
	if s := finding(); s != "" {
		t.Errorf("copied again, and still said: %s", s)
	}
}

// A key that was changed and changed back is not told of for ever, once the copy
// was found to be what it should be.
func TestDamageThatWasUndone(t *testing.T) {
	a, b := pair(t, func(c *testCluster) { c.cfg.RepairEvery = time.Hour })
	a.fill(0, 10)
	mirrored(t, a, b)
	key := func(n int) string { k, _ := a.ipRecord(n, ""); return k.String() }
	b.del(key(7))
	eventually(t, "a first repair", func() bool { return b.status(a).GetRepairs() == 1 })
	connected(t, a, b)
	mirrored(t, a, b)
	spoilt := func() string {
		b.m.mu.Lock()
		st := b.m.states[a.name]
		b.m.mu.Unlock()
		var key string
		st.do(func() { key = st.spoilt })
		return key
	}
	was := b.get(key(3))
	b.del(key(3))
	eventually(t, "it is said", func() bool { return spoilt() == key(3) })
	b.putRaw(key(3), was)
	stream, _ := b.m.runner(a.name).current()
	stream.end(errors.New("cut by the test"))
	<-stream.done
	connected(t, a, b)
	eventually(t, "nothing is said any more", func() bool { return spoilt() == "" })
	mirrored(t, a, b)
	if s := b.status(a); s.GetRepairs() != 1 {
		t.Errorf("copied again for it: %v", s)
	}
}

// A sentry that is off keeps nothing of what is written.
func TestSentryThatIsOff(t *testing.T) {
	for every, want := range map[time.Duration]int{-1: 0, time.Minute: 1} {
		im := newImporter(importer{own: "own", peer: "east", cfg: &Config{RepairEvery: every}})
		im.sentry.start(0)
		im.sentry.wrote([]kvstore.Op{kvstore.Delete(kvstore.Prefix(kvstore.State, "east") + "ips/x")}, 5)
		if n := len(im.sentry.ours); n != want {
			t.Errorf("repairs every %s: %d transactions are kept, want %d", every, n, want)
		}
	}
}

// A transaction of ours is known as such before the watch shows it and after, and
// nothing of it is kept then.
func TestSentryKnowsItsOwn(t *testing.T) {
	s := newSentry(nil, "own", "east")
	put := func(k string) []kvstore.Op { return []kvstore.Op{kvstore.Put(s.prefix+k, nil)} }
	event := func(k string, rev int64) kvstore.WatchBatch {
		return kvstore.WatchBatch{Events: []kvstore.Event{{KV: kvstore.KV{Key: s.prefix + k, ModRevision: rev}}}, Revision: rev}
	}
	s.wrote(put("early"), 10)
	s.start(4)
	if from := <-s.begin; from != 10 {
		t.Errorf("watches what follows %d, want 10, the newest of ours", from)
	}
	s.wrote(put("a"), 11)
	s.wrote([]kvstore.Op{kvstore.Put("elsewhere", nil)}, 12)
	s.saw(event("a", 11))
	s.saw(event("b", 13)) // before our transaction's answer
	s.saw(event("c", 14))
	s.saw(event("d", 15))
	s.wrote(put("b"), 13)
	s.wrote(put("d"), 15)
	if got := s.foreign(); !slices.Equal(got, []string{s.prefix + "c"}) {
		t.Errorf("foreign are %v, want c alone", got)
	}
	s.saw(kvstore.WatchBatch{Revision: 16})
	if len(s.ours) != 0 || len(s.suspects) != 0 {
		t.Errorf("kept %v, %v", s.ours, s.suspects)
	}
	for n := range suspectsAtOnce + 1 {
		s.saw(event(fmt.Sprint(n), 20+int64(n)))
	}
	<-s.wake
	if n := len(s.foreign()); n != suspectsAtOnce || len(s.wake) != 1 || len(s.foreign()) != 1 {
		t.Errorf("%d at once, then awake %d times", n, len(s.wake))
	}
}

// Markers that somebody removes or changes are put back while the stream goes on,
// after a snapshot as after a resume: agents that start wait for them.
func TestPeersMarkersArePutBack(t *testing.T) {
	var mu sync.Mutex
	told := map[string]int{}
	a, b := oneWay(t, func(c *testCluster) {
		c.putBack = func(key kvstore.Key, found *kvstore.KV) {
			was := "missing"
			if found != nil {
				if _, err := kvstore.Decode(key, found.Value); err != nil {
					was = "unreadable"
				} else {
					was = "changed"
				}
			}
			mu.Lock()
			defer mu.Unlock()
			told[was]++
		}
	})
	a.fill(0, 10)
	mirrored(t, a, b)
	marks := store.SyncedMarkers{Client: b.kv, Own: b.name}
	complete := func(what string, want map[string]int) {
		t.Helper()
		eventually(t, what, func() bool {
			for _, k := range kvstore.PublicKinds {
				if _, ok, err := marks.Complete(t.Context(), a.name, k); err != nil || !ok {
					return false
				}
			}
			mu.Lock()
			defer mu.Unlock()
			return maps.Equal(told, want)
		})
	}
	all := len(kvstore.PublicKinds)
	for n, began := range []string{"snapshot", "resume"} {
		if began == "resume" {
			b.restart()
			connected(t, a, b)
		}
		want := map[string]int{}
		if n > 0 {
			want = map[string]int{"missing": all, "changed": 1, "unreadable": 1}
		}
		complete("nothing is put back that nobody touched", want)
		for _, k := range kvstore.PublicKinds {
			b.del(kvstore.SyncedKey(b.name, a.name, k).String())
		}
		want["missing"] += all
		complete("those that are missing", want)
		key := kvstore.SyncedKey(b.name, a.name, kvstore.KindIP).String()
		b.putRaw(key, encode(&keyspacev1.Synced{Incarnation: "another", State: keyspacev1.Synced_STATE_COMPLETE}))
		want["changed"]++
		complete("one of another history", want)
		b.putRaw(key, []byte{0xff})
		want["unreadable"]++
		complete("an unreadable one", want)
	}
	if s := b.status(a); s.GetSnapshotsReceived() != 0 || s.GetRepairs() != 0 || s.GetState() != stateConnected {
		t.Errorf("after the resume: %v", s)
	}
}
