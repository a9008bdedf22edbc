// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"

	"github.com/hawser-mesh/hawser/datapath/objects"
)

// epochBefore is an order: no way through a program that caches what it reads in the
// data comes to the epoch after it has been at the data.
type epochBefore struct {
	epoch string
	data  []string
}

// Rule 1: an epoch is read before the lookups that it stands for. What is read after
// them may be newer than they are, and would vouch for what is gone; between the two
// are a few instructions, too few for a test to get in between. So the order is read
// off the programs: every way through them, into their functions and back.
func TestEpochsAreReadFirst(t *testing.T) {
	spec, err := objects.LoadHawser()
	if err != nil {
		t.Fatal(err)
	}
	orders := []epochBefore{
		{"ipcache_epochs", []string{"ipcache", "ipcache_prefix"}},
		{"rule_sets", []string{"policy"}},
		{"service_epochs", []string{"service_slots", "maglev"}},
	}
	// Those that cache; from_host judges every packet, and reads who it is from first.
	for _, name := range []string{"from_pod", "from_pod6", "from_overlay", "from_overlay6", "from_tunnel", "from_tunnel6"} {
		w := newWalk(spec.Programs[name].Instructions)
		for _, o := range orders {
			t.Run(name+" "+o.epoch, func(t *testing.T) {
				w.order, w.seen, w.late, w.epochs = o, map[place]uint8{}, nil, 0
				w.function(w.first, false)
				if chooses := name == "from_pod" || name == "from_pod6"; w.epochs == 0 && (chooses || o.epoch != "service_epochs") {
					t.Errorf("%s is never read: the test does not know the program", o.epoch)
				}
				for _, l := range w.late {
					t.Error(l)
				}
			})
		}
	}
}

// place is an instruction, and whether the data has been looked up on the way to it.
type place struct {
	at     int
	looked bool
}

// walk goes every way through a program.
type walk struct {
	ins   asm.Instructions
	at    map[asm.RawInstructionOffset]int // indexes
	raw   []asm.RawInstructionOffset
	named map[string]int // where functions begin
	first int

	order  epochBefore
	seen   map[place]uint8 // of functions: bit n: may return with looked n
	late   []string
	epochs int
}

func newWalk(ins asm.Instructions) *walk {
	w := &walk{ins: ins, at: map[asm.RawInstructionOffset]int{}, named: map[string]int{}}
	for it := ins.Iterate(); it.Next(); {
		w.at[it.Offset], w.raw = it.Index, append(w.raw, it.Offset)
		if s := it.Ins.Symbol(); s != "" {
			w.named[s] = it.Index
		}
	}
	return w
}

// function walks one from its first instruction on, and answers how it may return.
func (w *walk) function(start int, looked bool) (returns uint8) {
	here := place{start, looked}
	if r, ok := w.seen[here]; ok {
		return r
	}
	w.seen[here] = 0
	visited, queue := map[place]bool{}, []place{here}
	for len(queue) > 0 {
		p := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if visited[p] {
			continue
		}
		visited[p] = true
		next, done := w.step(p)
		if done {
			returns |= 1 << b2i(p.looked)
		}
		queue = append(queue, next...)
	}
	w.seen[here] = returns
	return returns
}

// step is one instruction: what may come next, and whether it returns.
func (w *walk) step(p place) (next []place, done bool) {
	ins := w.ins[p.at]
	op := ins.OpCode
	switch {
	case ins.IsLoadFromMap():
		p.looked = w.touch(p, ins.Reference())
	case op.JumpOp() == asm.Exit:
		return nil, true
	case ins.IsFunctionCall() && strings.HasPrefix(ins.Reference(), "related_"):
		return nil, false // the way of an ICMP error, for which policy is always asked: nothing is cached on it
	case ins.IsFunctionCall():
		start, ok := w.named[ins.Reference()]
		if !ok {
			w.late = append(w.late, fmt.Sprintf("instruction %d calls %q, which is not there", p.at, ins.Reference()))
		}
		returns := w.function(start, p.looked)
		for b := range 2 {
			if returns>>b&1 == 1 {
				next = append(next, place{p.at + 1, b == 1})
			}
		}
		return next, false
	case op.Class().IsJump() && op.JumpOp() != asm.Call && op.JumpOp() != asm.InvalidJumpOp:
		off := int64(ins.Offset)
		if op.Class() == asm.Jump32Class && op.JumpOp() == asm.Ja {
			off = ins.Constant
		}
		to := w.at[asm.RawInstructionOffset(int64(w.raw[p.at])+off+1)]
		next = append(next, place{to, p.looked})
		if op.JumpOp() == asm.Ja {
			return next, false
		}
	}
	return append(next, place{p.at + 1, p.looked}), false
}

// touch notes that a map is used, and answers whether the data has been looked up.
func (w *walk) touch(p place, name string) bool {
	if name == w.order.epoch {
		w.epochs++
		if p.looked {
			w.late = append(w.late, fmt.Sprintf("instruction %d (%s) reads %s after a lookup in %v", p.at, w.ins[p.at].Source(), name, w.order.data))
		}
	}
	return p.looked || slices.Contains(w.order.data, name)
}

func b2i(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
