// SPDX-License-Identifier: Apache-2.0

package liveness

import "time"

// clock is time as this process lived it: of a pause in which it did not run
// (a busy machine, a stopped process) only step counts. Whoever did not run has
// sent nothing and read nothing, and may not hold silence against others.
type clock struct {
	step time.Duration
	last time.Time
	now  time.Duration
	// paused is the time that did not count, so far.
	paused time.Duration
}

// tick moves the clock on to a moment of the monotonic clock.
func (c *clock) tick(at time.Time) {
	if !c.last.IsZero() {
		gap := max(0, at.Sub(c.last))
		lived := min(gap, c.step)
		c.now += lived
		c.paused += gap - lived
	}
	c.last = at
}
