// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"cmp"
	"maps"
	"net/netip"
	"time"
)

// Bounds of the packets that size probes are, in bytes of the outer IP packet.
const (
	// minProbe is what every way carries that is worth a tunnel (RFC 791).
	minProbe = 576
	// maxProbe is the largest underlay MTU that is tried out.
	maxProbe = 9216
	// probeGrain is how exactly a smaller size is found.
	probeGrain = 8
)

// SizerConfig are the times of size probes. Zero values mean the default in
// brackets.
type SizerConfig struct {
	Full    int           // bytes of the largest packets that nodes send; 0: nothing is tried
	Every   time.Duration // between two looks at a path that carries them [10 s]
	Timeout time.Duration // until an unanswered one counts as missed [250 ms]
	Misses  int           // in a row, until a size does not get through [3]
	Step    time.Duration // see ProberConfig [100 ms]
}

func (c SizerConfig) withDefaults() SizerConfig {
	c.Full = min(c.Full, maxProbe)
	c.Every = cmp.Or(c.Every, 10*time.Second)
	c.Timeout = cmp.Or(c.Timeout, 250*time.Millisecond)
	c.Misses = cmp.Or(c.Misses, 3)
	c.Step = cmp.Or(c.Step, 100*time.Millisecond)
	return c
}

// SizeProbe is a Probe of so many bytes.
type SizeProbe struct {
	Probe
	Size int
}

// Sizer finds out which packets get through the tunnel to nodes and back, whole:
// its probes must not be fragmented on the way, and their answers are as large.
// Like Prober it does no input or output, is ticked by its caller, and is for one
// goroutine.
type Sizer struct {
	cfg     SizerConfig
	nonce   func() Nonce
	clock   clock
	targets map[NodeID]*sized
	waiting map[Nonce]*sizeQuestion
}

type sized struct {
	Target
	found int           // 0: not known
	next  time.Duration // look then
	// A search, while size is not 0: low gets through (0: nothing has yet), high
	// does not.
	size, low, high int
	misses          int
	again           bool // the full size, tried anew at the end
}

type sizeQuestion struct {
	of     *sized
	size   int
	sent   time.Duration
	missed bool
}

// NewSizer makes a Sizer without targets. nonce returns unpredictable numbers.
func NewSizer(cfg SizerConfig, nonce func() Nonce) *Sizer {
	cfg = cfg.withDefaults()
	return &Sizer{cfg: cfg, nonce: nonce, clock: clock{step: cfg.Step}, targets: map[NodeID]*sized{}, waiting: map[Nonce]*sizeQuestion{}}
}

// SetTargets says whom to probe: nodes that answer. What was found of others is
// forgotten.
func (s *Sizer) SetTargets(ts []Target) {
	if s.cfg.Full < minProbe {
		return
	}
	old := s.targets
	s.targets = make(map[NodeID]*sized, len(ts))
	for i, t := range ts {
		if was := old[t.NodeID]; was != nil && was.Addr == t.Addr {
			s.targets[t.NodeID] = was
			continue
		}
		first := s.clock.now + time.Second*time.Duration(i)/time.Duration(len(ts))
		s.targets[t.NodeID] = &sized{Target: t, next: first}
	}
	maps.DeleteFunc(s.waiting, func(_ Nonce, q *sizeQuestion) bool { return s.targets[q.of.NodeID] != q.of })
}

// MTU is the size of the largest packets that get through to a node and back;
// 0: not known.
func (s *Sizer) MTU(id NodeID) int {
	if t := s.targets[id]; t != nil {
		return t.found
	}
	return 0
}

// Full is the size that should get through.
func (s *Sizer) Full() int { return s.cfg.Full }

// Tick returns what to send now, and whether something was found that is new.
// All answers that arrived before at must have been given to Answer.
func (s *Sizer) Tick(at time.Time) (send []SizeProbe, changed bool) {
	s.clock.tick(at)
	for n, q := range s.waiting {
		switch age := s.clock.now - q.sent; {
		case age >= s.cfg.Timeout+late:
			delete(s.waiting, n)
		case age >= s.cfg.Timeout && !q.missed:
			q.missed = true
			changed = s.miss(q) || changed
		}
	}
	for _, t := range s.targets {
		if t.next > s.clock.now {
			continue
		}
		if t.size == 0 {
			t.size, t.low, t.high, t.misses, t.again = s.cfg.Full, 0, 0, 0, false
		}
		n := s.nonce()
		s.waiting[n] = &sizeQuestion{of: t, size: t.size, sent: s.clock.now}
		send = append(send, SizeProbe{Probe{t.Addr, n}, t.size})
		t.next = s.clock.now + s.cfg.Every // or sooner: with its answer, or its miss
	}
	return send, changed
}

func (s *Sizer) miss(q *sizeQuestion) (changed bool) {
	t := q.of
	if q.size != t.size {
		return false
	}
	t.next = s.clock.now
	if t.misses++; t.misses < s.cfg.Misses {
		return false
	}
	return s.result(t, false)
}

// Answer takes an answer of so many bytes. It is not believed when nobody asked
// for it; then ok is false.
func (s *Sizer) Answer(from netip.Addr, n Nonce, size int) (changed, ok bool) {
	q := s.waiting[n]
	if q == nil || q.of.Addr != from || q.size != size {
		return false, false
	}
	delete(s.waiting, n)
	if q.size == q.of.size {
		changed = s.result(q.of, true)
	}
	return changed, true
}

// result notes that the size in question gets through, or does not, and chooses
// the next.
func (s *Sizer) result(t *sized, through bool) (changed bool) {
	t.misses = 0
	switch {
	case through && t.size == s.cfg.Full:
		return s.over(t, t.size)
	case t.again: // the full size is still too large
		return s.over(t, t.low)
	case through:
		t.low = t.size
	default:
		t.high = t.size
	}
	switch {
	case t.low == 0 && t.high <= minProbe: // nothing gets through: that is not for the size
		return s.over(t, 0)
	case t.low == 0:
		t.size = minProbe
	case t.high-t.low <= probeGrain: // a busy machine loses packets of any size
		t.size, t.again = s.cfg.Full, true
	case t.found > t.low && t.found < t.high: // what it was at the last look
		t.size = t.found
	default:
		t.size = (t.low + t.high) / 2
	}
	t.next = s.clock.now
	return false
}

// over ends a search.
func (s *Sizer) over(t *sized, found int) (changed bool) {
	changed = found != 0 && found != t.found
	if found != 0 {
		t.found = found
	}
	t.size, t.next = 0, s.clock.now+s.cfg.Every
	return changed
}
