// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Path is the state of the path to a node.
type Path uint8

// States of a path.
const (
	PathUnknown   Path = iota // not probed yet
	PathUp                    // answers
	PathDown                  // does not
	PathReturning             // answers again, and is still held back
)

func (p Path) String() string {
	return [...]string{"unknown", "up", "down", "returning"}[min(p, PathReturning)]
}

// Witness is what the path says to others: a path that returns is down until it
// has held.
func (p Path) Witness() Witness {
	return [...]Witness{Unknown, Up, Down, Down}[min(p, PathReturning)]
}

// ProberConfig are the times of probing. Zero values mean the default in
// brackets. A node that stops answering is down after at most
// Every + 2·Timeout + (Misses-2)·Retry: 1.4 s, and a tick or two.
type ProberConfig struct {
	Every   time.Duration // between two probes of a node [500 ms]
	Timeout time.Duration // until an unanswered one counts as missed [250 ms]
	Retry   time.Duration // between two probes after a missed one [200 ms]
	Misses  int           // in a row, until the path is down [4]
	// Hold is how long a path must answer before it is up again; each time it
	// fails anew before it was up for Calm, it is held twice as long, up to
	// MaxHold. [3 s, 1 min, 5 min]
	Hold, MaxHold, Calm time.Duration
	// Step is the longest pause between two ticks that counts; see clock.
	// [100 ms]
	Step time.Duration
}

func (c ProberConfig) withDefaults() ProberConfig {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.Every, 500 * time.Millisecond}, {&c.Timeout, 250 * time.Millisecond}, {&c.Retry, 200 * time.Millisecond},
		{&c.Hold, 3 * time.Second}, {&c.MaxHold, time.Minute}, {&c.Calm, 5 * time.Minute}, {&c.Step, 100 * time.Millisecond},
	} {
		*d.v = cmp.Or(*d.v, d.def)
	}
	c.Misses = cmp.Or(c.Misses, 4)
	return c
}

// late is how long after its timeout an answer still shows that the path works.
const late = 5 * time.Second

// Nonce makes a probe one that only who has read it can answer.
type Nonce [16]byte

// Target is a node to probe.
type Target struct {
	NodeID
	Addr netip.Addr // tunnel address
}

// Probe is to be sent.
type Probe struct {
	To    netip.Addr
	Nonce Nonce
}

// PathChange is a path that is not what it was.
type PathChange struct {
	NodeID
	Path  Path
	Since time.Time
}

// PathStatus is all that is known of a path.
type PathStatus struct {
	Target
	Path           Path
	Since          time.Time
	RTT            time.Duration // of the newest answer; 0: none
	Sent, Answered uint64
	Failures       int // that hold it back when it returns
	// MTU is the size of the largest packets that get through and back, 0: not
	// known; FullMTU of those that should.
	MTU, FullMTU int
}

// Prober decides which paths work. It does no input or output; its caller ticks
// it several times within Timeout, sends what it says and hands it all answers
// that have come before each tick. It is for one goroutine.
type Prober struct {
	cfg     ProberConfig
	nonce   func() Nonce
	clock   clock
	targets map[NodeID]*target
	waiting map[Nonce]*question
}

type target struct {
	PathStatus
	next     time.Duration // probe then
	misses   int           // in a row
	upAt     time.Duration // when it became up
	answered time.Duration // returning: since when without a miss
}

type question struct {
	of     *target
	sent   time.Duration
	at     time.Time
	missed bool
}

// NewProber makes a Prober without targets. nonce returns unpredictable numbers.
func NewProber(cfg ProberConfig, nonce func() Nonce) *Prober {
	cfg = cfg.withDefaults()
	return &Prober{
		cfg: cfg, nonce: nonce, clock: clock{step: cfg.Step},
		targets: map[NodeID]*target{}, waiting: map[Nonce]*question{},
	}
}

// SetTargets says whom to probe from now on. A target that was there, at the
// same address, keeps its state. The paths to the others are forgotten.
func (p *Prober) SetTargets(ts []Target) {
	old := p.targets
	p.targets = make(map[NodeID]*target, len(ts))
	for i, t := range ts {
		if was, ok := old[t.NodeID]; ok && was.Addr == t.Addr {
			p.targets[t.NodeID] = was
			continue
		}
		// The first probes are spread, not to be one burst for ever.
		first := p.clock.now + p.cfg.Every*time.Duration(i)/time.Duration(4*len(ts))
		p.targets[t.NodeID] = &target{PathStatus: PathStatus{Target: t}, next: first}
	}
	maps.DeleteFunc(p.waiting, func(_ Nonce, q *question) bool { return p.targets[q.of.NodeID] != q.of })
}

// Assume says what was found before a restart: the path to a target of which
// nothing is known yet is down since then, until it answers and has held.
func (p *Prober) Assume(id NodeID, downSince time.Time) (PathChange, bool) {
	t, ok := p.targets[id]
	if !ok || t.Path != PathUnknown {
		return PathChange{}, false
	}
	t.Path, t.Since, t.Failures = PathDown, downSince, 1
	return PathChange{id, t.Path, t.Since}, true
}

// Tick returns what to send now and which paths have gone down. All answers that
// arrived before at must have been given to Answer.
func (p *Prober) Tick(at time.Time) (send []Probe, changed []PathChange) {
	p.clock.tick(at)
	for n, q := range p.waiting {
		switch age := p.clock.now - q.sent; {
		case age >= p.cfg.Timeout+late:
			delete(p.waiting, n)
		case age >= p.cfg.Timeout && !q.missed:
			q.missed = true
			if c, ok := p.miss(q.of, at); ok {
				changed = append(changed, c)
			}
		}
	}
	for _, t := range p.targets {
		if t.next > p.clock.now {
			continue
		}
		n := p.nonce()
		p.waiting[n] = &question{of: t, sent: p.clock.now, at: at}
		send = append(send, Probe{t.Addr, n})
		t.Sent++
		t.next = p.clock.now + p.cfg.Every
		if t.misses > 0 && t.Path != PathDown {
			t.next = p.clock.now + p.cfg.Retry
		}
	}
	return send, changed
}

func (p *Prober) miss(t *target, at time.Time) (PathChange, bool) {
	t.misses++
	switch t.Path {
	case PathDown:
		return PathChange{}, false
	case PathReturning:
		t.Path, t.Since = PathDown, at // it was never let back
	default:
		if t.misses == 1 {
			t.next = min(t.next, p.clock.now)
		}
		if t.misses < p.cfg.Misses {
			return PathChange{}, false
		}
		if t.Path == PathUp && p.clock.now-t.upAt >= p.cfg.Calm {
			t.Failures = 0
		}
		t.Path, t.Since = PathDown, at
		t.Failures++
	}
	return PathChange{t.NodeID, t.Path, t.Since}, true
}

// Answer takes an answer. It is not believed when nobody asked, or another node
// than from was asked; then ok is false.
func (p *Prober) Answer(at time.Time, from netip.Addr, n Nonce) (change PathChange, changed, ok bool) {
	q, asked := p.waiting[n]
	if !asked || q.of.Addr != from {
		return PathChange{}, false, false
	}
	delete(p.waiting, n)
	t := q.of
	t.Answered++
	t.RTT, t.misses = max(1, at.Sub(q.at)), 0
	was := t.Path
	switch t.Path {
	case PathUnknown:
		t.Path, t.Since, t.upAt = PathUp, at, p.clock.now
	case PathDown:
		t.Path, t.Since, t.answered = PathReturning, at, p.clock.now
	case PathReturning:
		if p.clock.now-t.answered >= p.hold(t) {
			t.Path, t.Since, t.upAt = PathUp, at, p.clock.now
		}
	}
	return PathChange{t.NodeID, t.Path, t.Since}, t.Path != was, true
}

// hold is how long a path is held back, by how often it has failed lately.
func (p *Prober) hold(t *target) time.Duration {
	h := p.cfg.Hold
	for range t.Failures - 1 {
		if h *= 2; h >= p.cfg.MaxHold {
			return p.cfg.MaxHold
		}
	}
	return h
}

// Paths are all targets, sorted.
func (p *Prober) Paths() []PathStatus {
	out := make([]PathStatus, 0, len(p.targets))
	for _, t := range p.targets {
		out = append(out, t.PathStatus)
	}
	slices.SortFunc(out, func(a, b PathStatus) int { return a.Compare(b.NodeID) })
	return out
}

// answering are the targets that answer, held back or not.
func (p *Prober) answering() (out []Target) {
	for _, t := range p.targets {
		if t.Path == PathUp || t.Path == PathReturning {
			out = append(out, t.Target)
		}
	}
	return out
}

// Paused is for how long this process did not run although it was to probe.
func (p *Prober) Paused() time.Duration { return p.clock.paused }
