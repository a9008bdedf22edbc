// SPDX-License-Identifier: Apache-2.0

package backoff

import (
	"testing"
	"time"
)

func TestStepsGrowWithinTheirBounds(t *testing.T) {
	b := New(100*time.Millisecond, 5*time.Second)
	for range 2 {
		step := 100 * time.Millisecond
		for range 12 {
			if d := b.Next(); d < step/2 || d > step {
				t.Fatalf("waits %v in a step of %v", d, step)
			}
			step = min(2*step, 5*time.Second)
		}
		b.Reset()
	}
}
