// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"sync"
	"testing"
	"time"
)

// clock is one that a test sets, and that counts how often it is read.
type clock struct {
	mu    sync.Mutex
	at    time.Time
	reads int
}

func newClock() *clock { return &clock{at: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	return c.at
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = t
}

func (c *clock) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reads
}

// passes waits until the clock was read so often more.
func (c *clock) passes(t *testing.T, n int) {
	t.Helper()
	want := c.count() + n
	eventually(t, "the clock to be read", func() bool { return c.count() >= want })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 15 s", what)
		}
	}
}
