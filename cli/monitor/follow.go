// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/backoff"
)

// How soon an agent whose stream ended is asked again.
const (
	againMin = 100 * time.Millisecond
	againMax = 2 * time.Second
)

// note is what happened on one node: an event, or else its stream begins, or
// ended with an error.
type note struct {
	node  int // which of the session's
	event *hawserv1.Event
	err   error
}

func run(ctx context.Context, w io.Writer, s *session.Session, wanted []string, count int) error {
	nodes, err := s.AllNodes()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	notes := make(chan note, 256)
	var wg sync.WaitGroup
	t := tally{warn: s.Warn, patience: s.Timeout, silent: map[int]error{}}
	for i, n := range nodes {
		t.nodes = append(t.nodes, n.Name)
		wg.Go(func() {
			defer func() { _ = n.Close() }()
			follow(ctx, n, wanted, func(what note) {
				what.node = i
				select {
				case notes <- what:
				case <-ctx.Done():
				}
			})
		})
	}
	go func() { wg.Wait(); close(notes) }()
	seen := 0
	for {
		select {
		case n, ok := <-notes:
			switch {
			case !ok:
				return t.end()
			case n.event == nil:
				t.note(n)
				continue
			}
			if err := show(w, s.Output, n.event); err != nil {
				return err
			}
			if seen++; count > 0 && seen >= count {
				return nil
			}
		case <-t.givenUp:
			return t.silence()
		}
	}
}

// tally says which nodes are heard. Its owner is the loop that reads notes.
type tally struct {
	warn     func(format string, args ...any)
	nodes    []string
	patience time.Duration // how long nobody may be heard

	silent  map[int]error    // the nodes without a stream, and why
	heard   bool             // somebody was
	givenUp <-chan time.Time // set while nobody is
}

func (t *tally) note(n note) {
	why, silent := t.silent[n.node]
	t.silent[n.node] = n.err
	switch {
	case n.err == nil:
		delete(t.silent, n.node)
		t.heard, t.givenUp = true, nil
		if silent {
			t.warn("node %s: answers again; what happened meanwhile is not told", t.nodes[n.node])
		}
	case !silent:
		t.warn("node %s: %s; it is asked again until it answers", t.nodes[n.node], session.Message(n.err))
	case session.Message(why) != session.Message(n.err):
		t.warn("node %s: %s", t.nodes[n.node], session.Message(n.err))
	}
	if len(t.silent) == len(t.nodes) && t.givenUp == nil {
		t.givenUp = time.After(t.patience)
	}
}

// end is for when the time is over.
func (t *tally) end() error {
	if t.heard || len(t.silent) == 0 {
		return nil
	}
	return t.silence()
}

func (t *tally) silence() error {
	var errs []error
	for i, err := range t.silent {
		errs = append(errs, fmt.Errorf("node %s: %w", t.nodes[i], err))
	}
	return &session.Error{Code: session.CouldNotAsk, Err: fmt.Errorf("no agent answers:\n%w", errors.Join(errs...))}
}

// follow tells of a node until the context ends, however often its stream does.
func follow(ctx context.Context, n session.NodeConn, wanted []string, tell func(note)) {
	wait := backoff.New(againMin, againMax)
	for {
		err := stream(ctx, n, wanted, func(what note) {
			wait.Reset()
			tell(what)
		})
		if ctx.Err() != nil {
			return
		}
		tell(note{err: err})
		if wait.Wait(ctx) != nil {
			return
		}
	}
}

// stream tells that it has begun, and then each event; it ends with an error.
func stream(ctx context.Context, n session.NodeConn, wanted []string, tell func(note)) error {
	events, err := n.Monitor(ctx, &hawserv1.MonitorRequest{Types: wanted})
	if err != nil {
		return err
	}
	header, err := events.Header()
	if err != nil {
		return err
	}
	if header != nil { // without one it has ended already, and Recv says why
		tell(note{})
	}
	for {
		e, err := events.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the agent ended the stream")
		}
		if err != nil {
			return err
		}
		tell(note{event: e})
	}
}
