// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// backlog is the number of events kept for a listener that is slow.
const backlog = 1024

// Hub hands events to listeners. A slow listener loses the newest events and is
// told how many; it never slows the others. Its zero value is ready.
type Hub struct {
	mu        sync.Mutex
	listeners map[*Listener]struct{}
}

// Listener receives events of chosen types.
type Listener struct {
	hub   *Hub
	types []string
	ch    chan *hawserv1.Event
	lost  uint64 // guarded by hub.mu
}

// Listen starts to collect events of the given types (none means all). Close it
// when done.
func (h *Hub) Listen(types []string) *Listener {
	l := &Listener{hub: h, types: types, ch: make(chan *hawserv1.Event, backlog)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners == nil {
		h.listeners = map[*Listener]struct{}{}
	}
	h.listeners[l] = struct{}{}
	return l
}

// C delivers the events.
func (l *Listener) C() <-chan *hawserv1.Event { return l.ch }

// Close ends the listener.
func (l *Listener) Close() {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	delete(l.hub.listeners, l)
}

// Wanted reports whether anyone listens to events of the type: making one that
// nobody reads is waste.
func (h *Hub) Wanted(eventType string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.listeners {
		if l.wants(eventType) {
			return true
		}
	}
	return false
}

func (l *Listener) wants(eventType string) bool {
	return len(l.types) == 0 || slices.Contains(l.types, eventType)
}

// Publish hands an event to those who want it. It does not block. The event
// belongs to the hub from then on.
func (h *Hub) Publish(e *hawserv1.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.listeners {
		if !l.wants(e.GetType()) {
			continue
		}
		out := e
		if l.lost > 0 {
			out = cloneWithLost(e, l.lost)
		}
		select {
		case l.ch <- out:
			l.lost = 0
		default:
			l.lost++
		}
	}
}

// cloneWithLost adds the events that a listener lost to those suppressed.
func cloneWithLost(e *hawserv1.Event, lost uint64) *hawserv1.Event {
	c := proto.CloneOf(e)
	c.Suppressed += lost
	return c
}
