// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

const (
	helloWithin   = 5 * time.Second
	goodbyeWithin = time.Second
)

// frames is a stream seen from either side.
type frames interface {
	Send(*federationv1.Frame) error
	Recv() (*federationv1.Frame, error)
}

// session is one stream with a peer.
type session struct {
	peer        string
	byUs        bool
	address     string
	certExpires time.Time
	agreed      agreement // once its hello came
	frames      frames
	// sever closes the connection below, which ends every blocked Send and
	// Recv. It may be called more than once.
	sever func()

	done chan struct{} // closed when run has returned
	stop chan error    // has the reason when somebody wants it to end

	questions *questions
	granted   bool      // the peer may ask us
	explain   Explainer // nil: nobody answers

	sendMu sync.Mutex

	mu       sync.Mutex
	broke    error // the violation that ends it
	echoTime int64 // the newest heartbeat received,
	echoAt   time.Time
}

func newSession(peer string, byUs bool, address string, f frames, sever func()) *session {
	return &session{peer: peer, byUs: byUs, address: address, frames: f, sever: sever,
		done: make(chan struct{}), stop: make(chan error, 1), questions: newQuestions()}
}

// end asks the session to end; it does not wait.
func (s *session) end(reason error) {
	select {
	case s.stop <- reason:
	default:
	}
	s.sever()
}

// send is safe for concurrent use; it blocks while the far side does not read.
func (s *session) send(f *federationv1.Frame) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if err := s.frames.Send(f); err != nil {
		return fmt.Errorf("send to %s: %w", s.peer, err)
	}
	return nil
}

// within severs the connection unless fn returns in time.
func (s *session) within(d time.Duration, fn func() error) error {
	t := time.AfterFunc(d, s.sever)
	defer t.Stop()
	return fn()
}

// recvHello waits for the hello of the peer and settles what the stream speaks.
func (s *session) recvHello(peer *keyspacev1.Peer, ourVersion string) error {
	return s.within(helloWithin, func() error {
		f, err := s.frames.Recv()
		if err != nil {
			return err
		}
		s.agreed, err = negotiate(peer, ourVersion, f.GetHello())
		return err
	})
}

func (s *session) sendHello(h *federationv1.Hello) error {
	return s.within(helloWithin, func() error {
		return s.send(&federationv1.Frame{Body: &federationv1.Frame_Hello{Hello: h}})
	})
}

var errSilent = errors.New("no heartbeat; the connection is given up")

// run carries both directions until the stream breaks, the context ends or
// somebody ends the session; it returns why.
func (s *session) run(ctx context.Context, cfg *Config, st *peerState, ex *exporter, im *importer) error {
	g, ctx := errgroup.WithContext(ctx)
	unblock := context.AfterFunc(ctx, s.sever)
	defer unblock()
	g.Go(func() error { return s.farewell(ctx, s.receive(ctx, st, ex, im), s.drain) })
	g.Go(func() error { return s.heartbeats(ctx, cfg, st, ex) })
	g.Go(func() error { return ex.run(ctx) })
	g.Go(func() error { return s.farewell(ctx, im.run(ctx), func(ctx context.Context) { <-ctx.Done() }) })
	g.Go(func() error { return s.questions.answer(ctx, s, s.granted, s.explain) })
	g.Go(func() error {
		select {
		case err := <-s.stop:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	err := g.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broke != nil {
		return s.broke
	}
	return err
}

// farewell tells the peer of its violation, if it is one, and gives it a moment
// to read that before the stream is cut.
func (s *session) farewell(ctx context.Context, err error, wait func(context.Context)) error {
	var v *violation
	if !errors.As(err, &v) {
		return err
	}
	s.mu.Lock()
	if s.broke == nil {
		s.broke = err
	}
	s.mu.Unlock()
	_ = s.within(goodbyeWithin, func() error {
		return s.send(&federationv1.Frame{Body: &federationv1.Frame_Goodbye{Goodbye: &federationv1.Goodbye{Reason: v.reason, Detail: v.detail}}})
	})
	ctx, cancel := context.WithTimeout(ctx, goodbyeWithin)
	defer cancel()
	wait(ctx)
	return err
}

// drain reads on until the peer has closed the stream.
func (s *session) drain(ctx context.Context) {
	defer context.AfterFunc(ctx, s.sever)()
	for {
		if _, err := s.frames.Recv(); err != nil {
			return
		}
	}
}

// receive reads frames and hands them on.
func (s *session) receive(ctx context.Context, st *peerState, ex *exporter, im *importer) error {
	for {
		f, err := s.frames.Recv()
		if err != nil {
			return fmt.Errorf("receive from %s: %w", s.peer, err)
		}
		st.do(func() { st.heard = time.Now() })
		switch b := f.GetBody().(type) {
		case *federationv1.Frame_Subscribe:
			err = ex.subscribe(b.Subscribe)
		case *federationv1.Frame_Ack:
			err = ex.acknowledged(b.Ack.GetSequence())
		case *federationv1.Frame_Heartbeat:
			s.heartbeat(st, b.Heartbeat)
			err = im.receive(ctx, inbound{mark: b.Heartbeat.GetPosition()})
		case *federationv1.Frame_Resync:
			err = im.receive(ctx, inbound{resync: b.Resync})
		case *federationv1.Frame_Goodbye:
			return fmt.Errorf("%s gives the stream up: %s: %s", s.peer, shorten(b.Goodbye.GetReason()), shorten(b.Goodbye.GetDetail()))
		case *federationv1.Frame_Batch:
			st.received(uint64(b.Batch.GetCount()), b.Batch.GetOldestAt())
			err = im.receive(ctx, inbound{batch: b.Batch})
		case *federationv1.Frame_Explain:
			s.questions.asked(b.Explain)
		case *federationv1.Frame_Explanation:
			s.questions.answered(b.Explanation)
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) heartbeat(st *peerState, h *federationv1.Heartbeat) {
	now := st.now()
	s.mu.Lock()
	s.echoTime, s.echoAt = h.GetTime(), time.Now()
	s.mu.Unlock()
	st.do(func() {
		st.remotePending = h.GetPending()
		if h.GetEchoTime() != 0 {
			st.lag.heartbeat(now, time.Unix(0, h.GetEchoTime()), time.Duration(h.GetEchoHeld()), time.Unix(0, h.GetTime()))
		}
	})
}

// heartbeats sends ours and gives the stream up when nothing comes back.
func (s *session) heartbeats(ctx context.Context, cfg *Config, st *peerState, ex *exporter) error {
	t := time.NewTicker(cfg.HeartbeatEvery)
	defer t.Stop()
	for {
		s.mu.Lock()
		h := &federationv1.Heartbeat{EchoTime: s.echoTime}
		if s.echoTime != 0 {
			h.EchoHeld = int64(time.Since(s.echoAt))
		}
		s.mu.Unlock()
		h.Position, h.Pending = ex.position()
		h.Time = st.now().UnixNano()
		if err := s.send(&federationv1.Frame{Body: &federationv1.Frame_Heartbeat{Heartbeat: h}}); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		if st.silence() > cfg.CloseAfter {
			return fmt.Errorf("%s: %w", s.peer, errSilent)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
