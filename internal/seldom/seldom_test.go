// SPDX-License-Identifier: Apache-2.0

package seldom

import (
	"testing"
	"time"
)

func TestGate(t *testing.T) {
	now := time.Unix(1e9, 0)
	g := Gate{Window: time.Minute, Most: 3, Now: func() time.Time { return now }}
	count := func(n int) (passed, skipped int) {
		for range n {
			if s, ok := g.Pass(); ok {
				passed, skipped = passed+1, skipped+s
			}
		}
		return passed, skipped
	}
	if p, s := count(10); p != 3 || s != 0 {
		t.Errorf("%d passed, %d told as skipped", p, s)
	}
	now = now.Add(time.Minute)
	if p, s := count(5); p != 3 || s != 7 {
		t.Errorf("in the next window %d passed, %d told as skipped, want 3 and 7", p, s)
	}
	if _, ok := (&Gate{}).Pass(); ok {
		t.Error("a gate without a number lets something pass")
	}
}
