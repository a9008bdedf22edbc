// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

const testTick = 50 * time.Millisecond

// sim runs a Prober against nodes that answer or do not.
type sim struct {
	t       *testing.T
	p       *Prober
	now     time.Time
	answers map[netip.Addr]bool
	delay   time.Duration // of answers
	flying  []flying
	changes []PathChange
}

type flying struct {
	at time.Time
	Probe
}

func newSim(t *testing.T, targets ...Target) *sim {
	var n uint64
	s := &sim{t: t, now: time.Unix(1000, 0), answers: map[netip.Addr]bool{}, delay: 2 * time.Millisecond}
	s.p = NewProber(ProberConfig{}, func() (out Nonce) {
		n++
		binary.BigEndian.PutUint64(out[:], n)
		return out
	})
	s.p.SetTargets(targets)
	for _, x := range targets {
		s.answers[x.Addr] = true
	}
	return s
}

func node(cluster string, i int) Target {
	return Target{NodeID{cluster, fmt.Sprintf("%s-%d", cluster, i)}, netip.AddrFrom4([4]byte{192, 0, byte(len(cluster)), byte(i)})}
}

// step lets one tick pass that comes gap after the last: answers that are there
// are read first, as the transport does.
func (s *sim) step(gap time.Duration) {
	s.now = s.now.Add(gap)
	rest := s.flying[:0]
	for _, f := range s.flying {
		if f.at.After(s.now) {
			rest = append(rest, f)
			continue
		}
		if c, changed, ok := s.p.Answer(s.now, f.To, f.Nonce); changed && ok {
			s.changes = append(s.changes, c)
		}
	}
	s.flying = rest
	send, changed := s.p.Tick(s.now)
	s.changes = append(s.changes, changed...)
	for _, q := range send {
		if s.answers[q.To] {
			s.flying = append(s.flying, flying{s.now.Add(s.delay), q})
		}
	}
}

func (s *sim) run(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); {
		s.step(testTick)
	}
}

func (s *sim) want(x Target, path Path) {
	s.t.Helper()
	for _, p := range s.p.Paths() {
		if p.NodeID == x.NodeID {
			if p.Path != path {
				s.t.Fatalf("path to %s is %s, want %s; changes %v", x.NodeID, p.Path, path, s.changes)
			}
			return
		}
	}
	s.t.Fatalf("%s is not probed", x.NodeID)
}

func TestPathGoesDownAndReturns(t *testing.T) {
	a, b := node("west", 1), node("west", 2)
	s := newSim(t, a, b)
	s.want(a, PathUnknown)
	s.run(time.Second)
	s.want(a, PathUp)
	s.answers[a.Addr] = false
	s.run(850 * time.Millisecond)
	s.want(a, PathUp) // not at the first miss
	s.run(650 * time.Millisecond)
	s.want(a, PathDown)
	s.want(b, PathUp)
	s.answers[a.Addr] = true
	s.run(time.Second)
	s.want(a, PathReturning)
	s.run(1900 * time.Millisecond)
	s.want(a, PathReturning)
	s.run(1200 * time.Millisecond)
	s.want(a, PathUp)
}

// A few lost packets, and answers that come after their time, withdraw nothing.
func TestSingleLossesChangeNothing(t *testing.T) {
	a := node("west", 1)
	s := newSim(t, a)
	s.run(time.Second)
	s.changes = nil
	for range 50 {
		s.answers[a.Addr] = false
		s.run(400 * time.Millisecond)
		s.answers[a.Addr] = true
		s.run(600 * time.Millisecond)
	}
	s.delay = 600 * time.Millisecond
	s.run(20 * time.Second)
	if len(s.changes) != 0 {
		t.Errorf("changes %v", s.changes)
	}
}

// Whoever was not scheduled has no right to complain.
func TestStarvedProberAccusesNobody(t *testing.T) {
	a := node("west", 1)
	s := newSim(t, a)
	s.run(time.Second)
	s.changes = nil
	for _, gap := range []int{300, 700, 1500, 5000, 60000} {
		s.delay = 150 * time.Millisecond // as busy as we are
		for range 20 {
			s.step(time.Duration(gap) * time.Millisecond)
		}
	}
	if len(s.changes) != 0 || s.p.Paused() == 0 {
		t.Errorf("changes %v, paused %s", s.changes, s.p.Paused())
	}
	// But it still finds the dead.
	s.answers[a.Addr] = false
	for range 40 {
		s.step(300 * time.Millisecond)
	}
	s.want(a, PathDown)
}

// Whatever the pauses and delays, as long as every probe is answered in time as
// the prober lives it, nothing goes down; and whoever is silent does, in bounded
// time that was lived.
func TestProberProperties(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		alive, dead := node("west", 1), node("west", 2)
		s := newSim(t, alive, dead)
		s.answers[dead.Addr] = false
		lived := time.Duration(0)
		for range 200 {
			gap := testTick
			if r.IntN(4) == 0 {
				gap = time.Duration(r.IntN(3000)) * time.Millisecond
			}
			s.delay = time.Duration(r.IntN(140)) * time.Millisecond
			s.step(gap)
			lived += min(gap, 100*time.Millisecond)
		}
		for _, c := range s.changes {
			if c.NodeID == alive.NodeID && c.Path != PathUp {
				t.Fatalf("seed %d: %v", seed, s.changes)
			}
			if c.NodeID == dead.NodeID && c.Path != PathDown {
				t.Fatalf("seed %d: %v", seed, s.changes)
			}
		}
		if lived < 2*time.Second {
			t.Fatalf("seed %d lived only %s", seed, lived)
		}
		s.want(dead, PathDown)
		s.want(alive, PathUp)
	}
}

// A node that comes and goes for ever is held back longer and longer; one that
// was well for long is not.
func TestFlappingIsDamped(t *testing.T) {
	a := node("west", 1)
	s := newSim(t, a)
	s.run(time.Second)
	s.changes = nil
	ups := func() (n int) {
		for _, c := range s.changes {
			if c.Path == PathUp {
				n++
			}
		}
		return n
	}
	for range 150 { // 20 minutes
		s.answers[a.Addr] = false
		s.run(2 * time.Second)
		s.answers[a.Addr] = true
		s.run(6 * time.Second)
	}
	if n := ups(); n > 2 {
		t.Errorf("a node that flaps for 20 minutes came back %d times", n)
	}
	s.run(2 * time.Minute)
	s.want(a, PathUp)
	s.run(6 * time.Minute)
	s.answers[a.Addr] = false
	s.run(2 * time.Second)
	s.answers[a.Addr] = true
	s.run(5 * time.Second)
	s.want(a, PathUp)
}

func TestForgedAnswers(t *testing.T) {
	a, b := node("west", 1), node("west", 2)
	s := newSim(t, a, b)
	s.answers[a.Addr] = false
	send, _ := s.p.Tick(s.now)
	var asked Probe
	for _, q := range send {
		if q.To == a.Addr {
			asked = q
		}
	}
	if asked.To != a.Addr {
		t.Fatalf("%s was not probed at once: %v", a, send)
	}
	for name, try := range map[string]struct {
		from netip.Addr
		n    Nonce
	}{
		"guessed":              {a.Addr, Nonce{1, 2, 3}},
		"zero":                 {a.Addr, Nonce{}},
		"from another node":    {b.Addr, asked.Nonce},
		"from nobody we asked": {netip.MustParseAddr("203.0.113.9"), asked.Nonce},
	} {
		if _, _, ok := s.p.Answer(s.now, try.from, try.n); ok {
			t.Errorf("%s: believed", name)
		}
	}
	if _, _, ok := s.p.Answer(s.now, a.Addr, asked.Nonce); !ok {
		t.Error("the right one was not believed")
	}
	if _, _, ok := s.p.Answer(s.now, a.Addr, asked.Nonce); ok {
		t.Error("it was believed twice")
	}
}

func TestTargetsKeepTheirState(t *testing.T) {
	a, b := node("west", 1), node("west", 2)
	s := newSim(t, a)
	s.run(time.Second)
	s.p.SetTargets([]Target{a, b})
	s.want(a, PathUp)
	s.want(b, PathUnknown)
	if _, ok := s.p.Assume(a.NodeID, s.now); ok {
		t.Error("what is known was overruled by what was")
	}
	if c, ok := s.p.Assume(b.NodeID, s.now); !ok || c.Path != PathDown {
		t.Errorf("assumed %v %v", c, ok)
	}
	s.answers[b.Addr] = true
	s.run(time.Second)
	s.want(b, PathReturning) // held as any that was down
	moved := a
	moved.Addr = netip.MustParseAddr("192.0.2.200")
	s.p.SetTargets([]Target{moved})
	s.want(moved, PathUnknown)
}

func TestTargets(t *testing.T) {
	self := NodeID{"east", "east-1"}
	var all []Target
	for i := range 10 {
		all = append(all, node("east", i), node("west", i), node("north", i))
	}
	count := func(ts []Target) map[string]int {
		n := map[string]int{}
		for _, x := range ts {
			n[x.Cluster]++
		}
		return n
	}
	none := func(NodeID) bool { return false }
	got := Targets(self, all, none)
	if n := count(got); n["east"] != 3 || n["west"] != 3 || n["north"] != 3 {
		t.Errorf("three of each: %v", n)
	}
	for _, x := range got {
		if x.NodeID == self {
			t.Error("it probes itself")
		}
	}
	serving := NodeID{"west", "west-7"}
	if got := Targets(self, all, func(n NodeID) bool { return n == serving }); !has(got, serving) {
		t.Errorf("%s has backends and is not probed: %v", serving, got)
	}
	// All together look at everybody.
	seen := map[NodeID]bool{}
	for i := range 10 {
		for _, x := range Targets(node("east", i).NodeID, all, none) {
			seen[x.NodeID] = true
		}
	}
	if len(seen) < 28 {
		t.Errorf("ten nodes look at %d of 30", len(seen))
	}
	for i := range 100 {
		for j := range 20 {
			all = append(all, Target{NodeID{fmt.Sprintf("c%d", i), fmt.Sprint(j)}, netip.MustParseAddr("192.0.2.1")})
		}
	}
	if got := Targets(self, all, func(NodeID) bool { return true }); len(got) != MaxTargets {
		t.Errorf("%d targets", len(got))
	}
}

func has(ts []Target, id NodeID) bool {
	for _, x := range ts {
		if x.NodeID == id {
			return true
		}
	}
	return false
}
