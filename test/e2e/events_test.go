// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// events are the drops of all nodes since the lab's start.
type events struct {
	mu        sync.Mutex
	all       []*hawserv1.Event
	following map[string]bool
}

// quickly is how fast clients come back to a program that was restarted.
func quickly() backoff.Config {
	return backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.2, MaxDelay: 300 * time.Millisecond}
}

// follow collects until ctx ends, also from agents that start again.
func (e *events) follow(ctx context.Context, n *node) {
	for ctx.Err() == nil {
		stream, err := n.Monitor(ctx, &hawserv1.MonitorRequest{Types: []string{"drop"}}, grpc.WaitForReady(true))
		if err != nil {
			continue
		}
		if _, err := stream.Header(); err == nil {
			e.set(n.Name, true)
		}
		for {
			d, err := stream.Recv()
			if err != nil {
				break
			}
			e.mu.Lock()
			e.all = append(e.all, d)
			e.mu.Unlock()
		}
		e.set(n.Name, false)
	}
}

func (e *events) set(node string, following bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.following == nil {
		e.following = map[string]bool{}
	}
	e.following[node] = following
}

// follows tells whether nothing of a node is missed: its agent may have been
// started anew just now.
func (e *events) follows(node string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.following[node] {
		return fmt.Errorf("%s does not send its events", node)
	}
	return nil
}

// ready waits until nothing of n nodes is missed any more.
func (e *events) ready(n int) error {
	return within(callTimeout, func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		have := 0
		for _, ok := range e.following {
			if ok {
				have++
			}
		}
		if have < n {
			return fmt.Errorf("%d of %d nodes send their events", have, n)
		}
		return nil
	})
}

// mark is a place in the events for since.
func (e *events) mark() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.all)
}

func (e *events) since(mark int) []*hawserv1.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all[mark:])
}

// expectedDrop is what an event of a drop must say; empty fields may be
// anything.
type expectedDrop struct {
	reason, node, source, destination, protocol, origin string
	program                                             string
	sourcePort, destinationPort, sourceIdentity         uint32
	sourceWorkload, destinationWorkload                 string
	sourceLabels, destinationLabels                     []string
}

// mismatch says how an event differs, "" for not at all.
func (x expectedDrop) mismatch(e *hawserv1.Event) string {
	var out []string
	text := func(what, want, got string) {
		if want != "" && want != got {
			out = append(out, fmt.Sprintf("%s is %q, not %q", what, got, want))
		}
	}
	number := func(what string, want, got uint32) {
		if want != 0 && want != got {
			out = append(out, fmt.Sprintf("%s is %d, not %d", what, got, want))
		}
	}
	set := func(what string, want, got []string) {
		for _, l := range want {
			if !slices.Contains(got, l) {
				out = append(out, fmt.Sprintf("%s %v lack %s", what, got, l))
			}
		}
	}
	text("reason", x.reason, e.GetReason())
	text("node", x.node, e.GetNode())
	text("program", x.program, e.GetProgram())
	text("source", x.source, e.GetSource().GetIp())
	text("destination", x.destination, e.GetDestination().GetIp())
	text("protocol", x.protocol, e.GetProtocol())
	text("source workload", x.sourceWorkload, e.GetSource().GetWorkload())
	text("destination workload", x.destinationWorkload, e.GetDestination().GetWorkload())
	number("source port", x.sourcePort, e.GetSource().GetPort())
	number("destination port", x.destinationPort, e.GetDestination().GetPort())
	number("source identity", x.sourceIdentity, e.GetSource().GetIdentity())
	set("source labels", x.sourceLabels, e.GetSource().GetLabels())
	set("destination labels", x.destinationLabels, e.GetDestination().GetLabels())
	if x.origin != "" && !strings.Contains(e.GetOrigin(), x.origin) {
		out = append(out, fmt.Sprintf("origin is %q, without %q", e.GetOrigin(), x.origin))
	}
	return strings.Join(out, "; ")
}

// await finds the event since mark, which may still be under way.
func (e *events) await(mark int, x expectedDrop) error {
	const limit = 20 * time.Second
	return within(limit, func() error {
		seen := e.since(mark)
		best := ""
		for _, d := range seen {
			m := x.mismatch(d)
			if m == "" {
				return nil
			}
			if best == "" || strings.Count(m, ";") < strings.Count(best, ";") {
				best = fmt.Sprintf("%s (%s)", m, d)
			}
		}
		return fmt.Errorf("no event of the drop; %d events, nearest: %s", len(seen), best)
	})
}

// within calls ready until it is nil; then the last error it is.
func within(limit time.Duration, ready func() error) error {
	const pause = 20 * time.Millisecond
	for end := time.Now().Add(limit); ; time.Sleep(pause) {
		err := ready()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// drops counts the packets that a node dropped for a reason.
func (w *world) drops(node, reason string) (uint64, error) {
	n, ok := w.nodes[node]
	if !ok {
		return 0, fmt.Errorf("no node %q", node)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	r, err := n.ListDrops(ctx, &hawserv1.ListDropsRequest{})
	if err != nil {
		return 0, fmt.Errorf("count drops of %s: %w", node, err)
	}
	var sum uint64
	for _, d := range r.GetDrops() {
		if d.GetReason() == reason {
			sum += d.GetPackets()
		}
	}
	return sum, nil
}
