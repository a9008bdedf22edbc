// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// From 90 % on flows are given up that have been silent for less than their
// timeout; below they are not.
func TestTimeoutsShrinkUnderPressure(t *testing.T) {
	sizes := loader.SmallMaps()
	sizes.Conntrack, sizes.Conntrack6 = 100, 100
	const timeout, silent = 4000 * time.Second, 3000 * time.Second
	for _, c := range []struct {
		name  string
		flows int
		kept  bool
	}{{"below 90 %", 88, true}, {"at 90 %", 90, false}} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, NodeAddr6: addr(self6)})
			hz := h.tickRate()
			// put makes a flow that has been silent for as long.
			put := func(port int, age time.Duration) {
				k := maps.Tuple4{Protocol: tcp, SourcePort: maps.PortFrom(uint16(port)), DestPort: maps.PortFrom(80)}
				e := maps.CTEntry{Flags: maps.CTReplied, LastSeen: h.now() - uint32(age.Seconds())*hz}
				if err := h.d.Maps().Ct4.Put(k, e); err != nil {
					t.Fatal(err)
				}
			}
			has := func() (n int) {
				all, _ := h.flows()
				return len(all)
			}
			for i := range c.flows {
				put(1000+i, silent)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() {
				done <- h.d.RunGC(ctx, loader.GCConfig{Interval: 5 * time.Millisecond, TCP: timeout, HalfOpen: timeout, Other: timeout, Closing: timeout})
			}()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			end := time.Now().Add(20 * time.Second)
			await := func(what string, ok func() bool) {
				t.Helper()
				for !ok() {
					if time.Now().After(end) {
						t.Fatalf("%s: %d flows of %d", what, has(), c.flows)
					}
					time.Sleep(time.Millisecond)
				}
			}
			if !c.kept {
				await("silent flows stay in a map that is nearly full", func() bool { return has() == 0 })
				return
			}
			for i := range 5 { // as many passes as shrink the timeouts to the least
				put(2000+i, 2*timeout)
				await("a flow beyond its timeout stays", func() bool { return has() <= c.flows })
			}
			if n := has(); n != c.flows {
				t.Errorf("%d flows of %d are left", n, c.flows)
			}
		})
	}
}

// now is the kernel's clock, in its ticks.
func (h *harness) now() uint32 {
	h.t.Helper()
	ret, _, err := h.d.Programs().Clock.Test(make([]byte, 14))
	if err != nil {
		h.t.Fatal(err)
	}
	return ret
}

// tickRate is about how many ticks a second has.
func (h *harness) tickRate() uint32 {
	first, start := h.now(), time.Now()
	time.Sleep(200 * time.Millisecond)
	return uint32(float64(h.now()-first) / time.Since(start).Seconds())
}
