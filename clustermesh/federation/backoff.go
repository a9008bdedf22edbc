// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff doubles from low to high with jitter of half; it is for one goroutine.
type backoff struct {
	low, high time.Duration
	next      time.Duration
}

func (b *backoff) reset() { b.next = 0 }

// wait sleeps for the next delay, or until the context ends or early is ready;
// it returns the context's error.
func (b *backoff) wait(ctx context.Context, early <-chan struct{}) error {
	b.next = min(max(b.next*2, b.low), b.high)
	t := time.NewTimer(b.next/2 + rand.N(b.next/2+1))
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
	}
	return ctx.Err()
}
