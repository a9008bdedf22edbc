// SPDX-License-Identifier: Apache-2.0

// Package backoff spaces out repeated tries: longer after each failure, with
// jitter, so that many clients of one server do not come back all at once.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the waiting time of one loop. It is not safe for concurrent use.
type Backoff struct {
	Min, Max time.Duration
	next     time.Duration
}

// New waits min first, then twice as long each time, up to max.
func New(minimum, maximum time.Duration) *Backoff { return &Backoff{Min: minimum, Max: maximum} }

// Next is how long to wait now: between half of the current step and all of it.
func (b *Backoff) Next() time.Duration {
	step := max(b.next, b.Min)
	b.next = min(2*step, b.Max)
	return step/2 + rand.N(step/2+1)
}

// Reset begins again at the minimum, after a success.
func (b *Backoff) Reset() { b.next = 0 }

// Wait sleeps for Next, or returns the context's error when that ends first.
func (b *Backoff) Wait(ctx context.Context) error {
	t := time.NewTimer(b.Next())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
