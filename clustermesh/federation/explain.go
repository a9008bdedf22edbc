// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"sync"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/internal/plain"
)

// ErrNotConnected is of a question that could not be put: there is no stream with
// the peer on this API server.
var ErrNotConnected = errors.New("not connected")

// ErrCannotExplain is of a peer whose version answers no questions.
var ErrCannotExplain = errors.New("its version does not answer questions about its policies")

// Explainer answers a confirmed peer's question about our policies. It is asked
// only if the peer's grant allows it, one question of a peer at a time.
type Explainer func(ctx context.Context, peer string, q *federationv1.Explain) *federationv1.Explanation

// Explain asks a peer what its policies say and waits for the answer. The error
// is ErrNotConnected, ErrCannotExplain, the context's, or that the stream broke.
func (m *Manager) Explain(ctx context.Context, peer string, q *federationv1.Explain) (*federationv1.Explanation, error) {
	r := m.runner(peer)
	if r == nil {
		return nil, fmt.Errorf("ask %s: %w", peer, ErrNotConnected)
	}
	s, _ := r.current()
	if s == nil {
		return nil, fmt.Errorf("ask %s: %w", peer, ErrNotConnected)
	}
	if !s.agreed.has(capExplain) {
		return nil, fmt.Errorf("ask %s: %w", peer, ErrCannotExplain)
	}
	return s.questions.ask(ctx, s, q)
}

// questionsWaiting is how many questions of a peer may wait; more are not
// answered.
const questionsWaiting = 16

// maxReason is the most bytes of a peer's reason that are shown.
const maxReason = 1024

// questions are both directions of explaining on one stream.
type questions struct {
	theirs chan *federationv1.Explain

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan *federationv1.Explanation // ours
}

func newQuestions() *questions {
	return &questions{theirs: make(chan *federationv1.Explain, questionsWaiting), waiting: map[uint64]chan *federationv1.Explanation{}}
}

func (q *questions) ask(ctx context.Context, s *session, e *federationv1.Explain) (*federationv1.Explanation, error) {
	answer := make(chan *federationv1.Explanation, 1)
	q.mu.Lock()
	q.last++
	id := q.last
	q.waiting[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
	}()
	frame := &federationv1.Explain{Id: id, Egress: e.GetEgress(), Self: e.GetSelf(), Peer: e.GetPeer(), Protocol: e.GetProtocol(), Port: e.GetPort()}
	if err := s.send(&federationv1.Frame{Body: &federationv1.Frame_Explain{Explain: frame}}); err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		return a, nil
	case <-s.done:
		return nil, fmt.Errorf("ask %s: the stream ended: %w", s.peer, ErrNotConnected)
	case <-ctx.Done():
		return nil, fmt.Errorf("ask %s: no answer: %w", s.peer, ctx.Err())
	}
}

// answered takes the peer's answer to one of our questions.
func (q *questions) answered(a *federationv1.Explanation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if waiting, ok := q.waiting[a.GetId()]; ok {
		a.Reason = plain.Text(a.GetReason(), maxReason)
		select {
		case waiting <- a:
		default: // answered twice
		}
	}
}

// asked takes a question of the peer; it never blocks.
func (q *questions) asked(e *federationv1.Explain) {
	select {
	case q.theirs <- e:
	default:
	}
}

// answer answers the peer's questions in turn until the context ends.
func (q *questions) answer(ctx context.Context, s *session, granted bool, explain Explainer) error {
	for {
		var e *federationv1.Explain
		select {
		case e = <-q.theirs:
		case <-ctx.Done():
			return nil
		}
		a := &federationv1.Explanation{Outcome: federationv1.Explanation_OUTCOME_NOT_GRANTED}
		if granted && explain != nil {
			a = explain(ctx, s.peer, e)
		}
		a.Id = e.GetId()
		if err := s.send(&federationv1.Frame{Body: &federationv1.Frame_Explanation{Explanation: a}}); err != nil {
			return err
		}
	}
}
