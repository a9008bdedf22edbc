// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// way is a network that carries packets up to a size, and loses some.
type way struct {
	t      *testing.T
	s      *Sizer
	now    time.Time
	mtu    map[netip.Addr]int
	r      *rand.Rand
	lose   int // one of so many; 0: none
	flying []SizeProbe
	asked  int // probes sent
	told   int // changes
}

func newWay(t *testing.T, full int, targets ...Target) *way {
	var n uint64
	w := &way{t: t, now: time.Unix(1000, 0), mtu: map[netip.Addr]int{}, r: rand.New(rand.NewPCG(1, 2))}
	w.s = NewSizer(SizerConfig{Full: full}, func() (out Nonce) {
		n++
		binary.BigEndian.PutUint64(out[:], n)
		return out
	})
	w.s.SetTargets(targets)
	for _, x := range targets {
		w.mtu[x.Addr] = full
	}
	return w
}

func (w *way) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(testTick)
		for _, q := range w.flying {
			changed, ok := w.s.Answer(q.To, q.Nonce, q.Size)
			if !ok {
				w.t.Fatal("an answer is not believed")
			}
			if changed {
				w.told++
			}
		}
		w.flying = nil
		send, changed := w.s.Tick(w.now)
		if changed {
			w.told++
		}
		for _, q := range send {
			w.asked++
			if q.Size <= w.mtu[q.To] && (w.lose == 0 || w.r.IntN(w.lose) > 0) {
				w.flying = append(w.flying, q)
			}
		}
	}
}

func (w *way) want(what string, x Target, low, high int) {
	w.t.Helper()
	if got := w.s.MTU(x.NodeID); got < low || got > high {
		w.t.Errorf("%s: %s carries %d, want %d to %d", what, x.NodeID, got, low, high)
	}
}

func TestSizer(t *testing.T) {
	a, b := node("west", 1), node("west", 2)
	w := newWay(t, 1500, a, b)
	w.want("nothing is known", a, 0, 0)
	w.run(3 * time.Second)
	w.want("all is well", a, 1500, 1500)
	w.want("all is well", b, 1500, 1500)
	w.asked = 0
	w.run(time.Minute)
	if w.asked > 16 {
		t.Errorf("%d probes in a minute of which nothing is new", w.asked)
	}
	for _, mtu := range []int{1400, 1499, 600, 576} {
		w.mtu[a.Addr] = mtu
		w.run(30 * time.Second)
		w.want("lowered", a, mtu-probeGrain, mtu)
		w.want("another", b, 1500, 1500)
		w.mtu[a.Addr] = 1500
		w.run(15 * time.Second)
		w.want("raised", a, 1500, 1500)
	}
	// A node that does not answer at all says nothing of sizes.
	told := w.told
	w.mtu[a.Addr] = 0
	w.run(time.Minute)
	w.want("no answer", a, 1500, 1500)
	if w.told != told {
		t.Error("silence was told as a size")
	}
	w.s.SetTargets([]Target{b})
	w.want("not probed any more", a, 0, 0)
	w.want("kept", b, 1500, 1500)
}

// Lost packets are not taken for a smaller size.
func TestSizerBearsLosses(t *testing.T) {
	for seed := range uint64(20) {
		a := node("west", 1)
		w := newWay(t, 1500, a)
		w.r, w.lose = rand.New(rand.NewPCG(seed, 5)), 10
		w.run(5 * time.Second)
		for range 30 {
			w.run(10 * time.Second)
			w.want("packets get lost", a, 1500, 1500)
		}
	}
}

// Nobody is believed who was not asked, and no smaller answer.
func TestSizerRefuses(t *testing.T) {
	a, b := node("west", 1), node("west", 2)
	w := newWay(t, 1500, a)
	send, _ := w.s.Tick(w.now)
	for len(send) == 0 {
		w.now = w.now.Add(testTick)
		send, _ = w.s.Tick(w.now)
	}
	q := send[0]
	for what, answer := range map[string]func() (bool, bool){
		"another nonce": func() (bool, bool) { return w.s.Answer(a.Addr, Nonce{9}, q.Size) },
		"another node":  func() (bool, bool) { return w.s.Answer(b.Addr, q.Nonce, q.Size) },
		"a smaller one": func() (bool, bool) { return w.s.Answer(a.Addr, q.Nonce, probeLen+outerLen) },
	} {
		if _, ok := answer(); ok {
			t.Errorf("%s is believed", what)
		}
	}
	if _, ok := w.s.Answer(a.Addr, q.Nonce, q.Size); !ok {
		t.Error("the right one is not")
	}
	if _, ok := w.s.Answer(a.Addr, q.Nonce, q.Size); ok {
		t.Error("it is believed twice")
	}
	// Without a size to try, nothing is sent.
	none := newWay(t, 0, a)
	if none.run(time.Minute); none.asked != 0 {
		t.Errorf("%d probes", none.asked)
	}
}
