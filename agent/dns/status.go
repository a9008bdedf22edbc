// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"maps"
	"sync"
	"time"
)

// Kind is who answered a question.
type Kind string

// Kinds.
const (
	KindMesh      Kind = "mesh"      // a name of the mesh
	KindReverse   Kind = "reverse"   // an address of the mesh
	KindForwarded Kind = "forwarded" // the host's resolvers
	KindNone      Kind = "none"      // no question that anybody could answer
)

// Reasons for which questions are refused.
const (
	refusedSource    = "source"    // asked by somebody who may not
	refusedMalformed = "malformed" // not a question
	refusedBusy      = "busy"      // too many wait
	refusedLoop      = "loop"      // asked by a resolver that we ask
)

// AnswerKey is what answers are counted by.
type AnswerKey struct {
	Kind      Kind
	Rcode     string // NOERROR, NXDOMAIN, …
	Transport string // udp, tcp
}

// Status is what a server did since it was made.
type Status struct {
	// Listening is the address, empty while there is none; then Problem says why.
	Listening string
	Problem   string
	Answers   map[AnswerKey]uint64
	Refused   map[string]uint64 // by reason
	// Forwards are the questions that upstreams were asked, ForwardTime the time
	// that clients waited for them, ForwardFailed those without an answer.
	Forwards, ForwardFailed uint64
	ForwardTime             time.Duration
}

// Status is how the server is doing.
func (s *Server) Status() Status {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	out := s.counts.Status
	out.Answers, out.Refused = maps.Clone(out.Answers), maps.Clone(out.Refused)
	return out
}

type counts struct {
	mu *sync.Mutex
	Status
}

func newCounts() counts {
	return counts{mu: &sync.Mutex{}, Status: Status{Answers: map[AnswerKey]uint64{}, Refused: map[string]uint64{
		refusedSource: 0, refusedMalformed: 0, refusedBusy: 0, refusedLoop: 0,
	}}}
}

func (c *counts) setListening(at string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Listening, c.Problem = at, ""
}

func (c *counts) setProblem(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Problem = "it stopped"
	if err != nil {
		c.Problem = err.Error()
	}
}

func (c *counts) answered(k AnswerKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Answers[k]++
}

func (c *counts) refuse(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Refused[reason]++
}

func (c *counts) forwarded(took time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, errBusy):
		c.Refused[refusedBusy]++
		return
	case errors.Is(err, errLoop):
		c.Refused[refusedLoop]++
		return
	case err != nil:
		c.ForwardFailed++
	}
	c.Forwards++
	c.ForwardTime += took
}
