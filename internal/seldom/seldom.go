// SPDX-License-Identifier: Apache-2.0

// Package seldom decides which of many like log lines are written: somebody
// else's mistakes must not fill a log. Start with Gate. Out of scope: counting,
// which is for metrics.
package seldom

import (
	"sync"
	"time"
)

// Gate lets a few pass in each window and counts the others. The zero value lets
// nothing pass; it is for any goroutine.
type Gate struct {
	Window time.Duration
	Most   int              // in a window
	Now    func() time.Time // nil: time.Now

	mu      sync.Mutex
	since   time.Time
	passed  int
	skipped int
}

// Pass says whether one may pass, and how many have not since the last that did.
func (g *Gate) Pass() (skipped int, ok bool) {
	now := time.Now
	if g.Now != nil {
		now = g.Now
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if at := now(); at.Sub(g.since) >= g.Window {
		g.since, g.passed = at, 0
	}
	if g.passed >= g.Most {
		g.skipped++
		return 0, false
	}
	g.passed++
	skipped, g.skipped = g.skipped, 0
	return skipped, true
}
