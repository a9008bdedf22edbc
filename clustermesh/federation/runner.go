// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
)

var (
	errDuplicate = errors.New("there is another stream, which stays")
	errReplaced  = errors.New("another stream took its place")
	errStopped   = errors.New("the peering ended")
	errChanged   = errors.New("it changed meanwhile")
)

const (
	provedAfter = 5 * time.Second // a stream this old resets the dialer's backoff
	viewEvery   = 250 * time.Millisecond
)

// runner is one peering with a confirmed peer, for as long as its record stays
// the same but for what terms holds.
type runner struct {
	kv      kvstore.Client
	store   *peering.Store
	cfg     *Config
	trust   *peering.Trust
	peer    *keyspacev1.Peer
	guard   *peering.Guard
	believe func(context.Context, [][]byte) error // takes the peer's trust bundle
	st      *peerState
	log     *slog.Logger
	office  *office
	explain Explainer
	putBack func(kvstore.Key, *kvstore.KV) // nil: nobody wants to know
	stopped chan struct{}
	finish  context.CancelFunc // ends run
	ended   chan struct{}      // closed when run has returned
	learned chan []string      // endpoints to be stored; capacity 1

	attachMu sync.Mutex // one newcomer at a time

	mu     sync.Mutex
	cur    *session
	change chan struct{} // closed when cur changes
	terms  terms
}

func (r *runner) name() string { return r.peer.GetName() }
func (r *runner) own() string  { return r.cfg.Cluster.GetName() }

// run stands for the office, dials when it has it and there is no stream, and
// keeps the PeerView, until the context ends or stop is called.
func (r *runner) run(ctx context.Context) {
	defer close(r.ended)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.office.run(ctx, r.won, r.lost) })
	g.Go(func() error { return r.dial(ctx) })
	g.Go(func() error { return r.views(ctx) })
	g.Go(func() error { return r.remember(ctx) })
	_ = g.Wait() // all only end with the context
}

// lost ends the stream of a term that is over.
func (r *runner) lost() { r.endSession(errLockLost) }

func (r *runner) endSession(reason error) {
	r.mu.Lock()
	cur := r.cur
	r.mu.Unlock()
	if cur != nil {
		cur.end(reason)
		<-cur.done
	}
}

// stop ends the stream and waits until nothing of this peering runs any more.
func (r *runner) stop() {
	close(r.stopped)
	r.finish()
	r.endSession(errStopped)
	<-r.ended
	// A newcomer may have attached before it saw that we stopped.
	r.attachMu.Lock()
	defer r.attachMu.Unlock()
	r.endSession(errStopped)
}

// attach makes s the stream of this peering or says why not. Of two at once the
// one dialled by the cluster with the lower name stays; a newer one of the same
// side, or one that comes while nothing is heard on the other, replaces it.
func (r *runner) attach(s *session) error {
	r.attachMu.Lock()
	defer r.attachMu.Unlock()
	for {
		if isClosed(r.stopped) {
			return errStopped
		}
		r.mu.Lock()
		cur := r.cur
		if cur == nil {
			r.setLocked(s)
			r.mu.Unlock()
			return nil
		}
		r.mu.Unlock()
		weAreLower := r.own() < r.name()
		if s.byUs != cur.byUs && s.byUs != weAreLower && r.st.silence() <= r.cfg.LostAfter {
			return errDuplicate
		}
		cur.end(errReplaced)
		<-cur.done
	}
}

func (r *runner) setLocked(s *session) {
	r.cur = s
	close(r.change)
	r.change = make(chan struct{})
}

// current is the stream, if there is one, and a channel that is closed when it
// changes.
func (r *runner) current() (*session, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cur, r.change
}

// serve runs one stream from hello to end. accepted streams answer the hello
// only once they are attached, so that the dialler knows that it may stay.
func (r *runner) serve(ctx context.Context, s *session) (attached bool, err error) {
	defer close(s.done)
	s.explain, s.granted = r.explain, r.peer.GetGrant().GetExplain()
	hello, err := r.hello(ctx)
	if err != nil {
		return false, err
	}
	term, err := r.open(ctx, s, hello)
	if err != nil {
		r.st.refuseStream(r.name(), err)
		if !s.byUs && !errors.Is(err, errDuplicate) && !errors.Is(err, errElsewhere) {
			r.st.failed(fmt.Errorf("stream from %s refused: %w", s.address, err)) // who dials says it itself
		}
		return false, err
	}
	r.st.up(s)
	if !s.byUs {
		err = s.sendHello(hello)
	}
	if err == nil {
		r.log.Info("peer connected", "peer", r.name(), "dialled_by", dialledBy(s.byUs), "address", s.address,
			"protocol", s.agreed.protocol, "capabilities", s.agreed.capabilities, "version", s.agreed.version)
		r.learn(s.agreed.endpoints)
		err = r.carry(ctx, s, term, hello.GetIncarnation())
	}
	s.sever()
	r.st.refuseStream(r.name(), err)
	if errors.Is(err, errLockLost) {
		r.office.giveUp(term)
	}
	if isClosed(r.stopped) {
		err = errStopped
	}
	r.st.down(s, err)
	r.log.Info("peer disconnected", "peer", r.name(), "err", err)
	r.mu.Lock()
	r.setLocked(nil)
	r.mu.Unlock()
	return true, err
}

// open exchanges the hellos as far as it takes to attach the stream, which needs
// the office.
func (r *runner) open(ctx context.Context, s *session, hello *federationv1.Hello) (*election.Term, error) {
	if s.byUs {
		if err := s.sendHello(hello); err != nil {
			return nil, err
		}
	}
	if err := s.recvHello(r.peer, hello.GetVersion()); err != nil {
		return nil, err
	}
	term, err := r.termFor(ctx, s)
	if err != nil {
		return nil, err
	}
	return term, r.attach(s)
}

// termFor is the term that a stream needs. That it was ours a moment ago is not
// enough: who had no stream may have lost it without noticing.
func (r *runner) termFor(ctx context.Context, s *session) (*election.Term, error) {
	for {
		term, _ := r.office.current()
		if term == nil && s.byUs {
			return nil, errStandby
		}
		var err error
		if term == nil {
			if term, err = r.office.claim(ctx, r.name() < r.own()); err != nil {
				return nil, err
			}
		}
		held, err := term.Held(ctx)
		if err != nil || held {
			return term, err
		}
		r.office.giveUp(term)
		sleep(ctx, viewEvery/5)
	}
}

// hello is what we say first: the record of our cluster as peers are to know it.
func (r *runner) hello(ctx context.Context) (*federationv1.Hello, error) {
	incarnation, err := ensureIncarnation(ctx, r.kv, r.own())
	if err != nil {
		return nil, err
	}
	own := r.cfg.Cluster
	key := kvstore.NewKey(kvstore.State, r.own(), kvstore.KindCluster)
	if kv, _, err := r.kv.Get(ctx, key.String()); err == nil && kv != nil {
		if rec, err := kvstore.Decode(key, kv.Value); err == nil {
			own = rec.(*keyspacev1.Cluster)
		}
	}
	return helloOf(own, incarnation, r.ages().expire), nil
}

func (r *runner) carry(ctx context.Context, s *session, term *election.Term, incarnation string) error {
	c, err := newCodec()
	if err != nil {
		return err
	}
	defer c.close()
	ex := newExporter(r.kv, r.own(), incarnation, r.cfg, r.st, c, s.send)
	im := newImporter(importer{kv: r.kv, own: r.own(), peer: r.name(), lock: term, cfg: r.cfg,
		guard: r.guard, st: r.st, codec: c, putBack: r.putBack, send: s.send, log: r.log, source: s.agreed.incarnation,
		learn: func(c *keyspacev1.Cluster) { r.learn(c.GetEndpoints()) }})
	s.bundle, s.learn = r.trust.Bundle, r.believe
	return s.run(ctx, r.cfg, r.st, ex, im)
}

// dial keeps one stream up from our side whenever the other side does not and
// the office is ours. Dialling in vain gives the office back now and then: a
// replica of ours may reach the peer.
func (r *runner) dial(ctx context.Context) error {
	b := backoff.New(r.cfg.BackoffMin, r.cfg.BackoffMax)
	patience, began := r.cfg.CloseAfter, time.Now() // began: but for what streams took, nothing was reached since
	var last *election.Term
	streaming := false
	for ctx.Err() == nil {
		cur, change := r.current()
		term, office := r.office.current()
		if term != last || cur != nil || streaming {
			last, began = term, time.Now()
		}
		if streaming = cur != nil; streaming {
			patience = r.cfg.CloseAfter
		}
		if cur != nil || term == nil || len(r.endpoints()) == 0 {
			select {
			case <-change:
			case <-office:
			case <-time.After(reconcileEvery):
			case <-ctx.Done():
			}
			continue
		}
		lived, err := r.dialOnce(ctx)
		if began = began.Add(lived); lived >= provedAfter {
			b.Reset()
			patience, began = r.cfg.CloseAfter, time.Now()
		}
		if err != nil && !errors.Is(err, errDuplicate) && !errors.Is(err, errStandby) && ctx.Err() == nil {
			r.st.failed(err)
		}
		if cur, _ := r.current(); cur == nil && time.Since(began) > patience {
			patience = min(2*patience, inVainMost)
			r.office.giveUp(term)
		}
		_ = b.Wait(ctx)
	}
	return ctx.Err()
}

// dialOnce tries the endpoints until one gives a stream, and carries that; lived
// is for how long.
func (r *runner) dialOnce(ctx context.Context) (lived time.Duration, err error) {
	var errs []error
	for _, ep := range r.endpoints() {
		cc, c, err := dialPeer(ctx, r.trust, r.name(), ep)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		began := time.Now()
		attached, err := r.over(ctx, ep, cc, c)
		if attached {
			return time.Since(began), err
		}
		if errors.Is(err, errDuplicate) || ctx.Err() != nil {
			return 0, err
		}
		errs = append(errs, fmt.Errorf("stream to %s: %w", ep, err))
	}
	return 0, errors.Join(errs...)
}

// over carries a stream on a connection that we dialled.
func (r *runner) over(ctx context.Context, endpoint string, cc *grpc.ClientConn, c *conn) (attached bool, err error) {
	defer cc.Close()
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := federationv1.NewFederationClient(cc).Stream(sctx)
	if err != nil {
		c.Close()
		return false, err
	}
	s := newSession(r.name(), true, endpoint, stream, func() { c.Close(); cancel() })
	s.certExpires = c.ConnectionState().PeerCertificates[0].NotAfter
	attached, err = r.serve(ctx, s)
	switch status.Code(err) {
	case codes.AlreadyExists:
		return attached, errDuplicate
	case codes.FailedPrecondition, codes.Unavailable:
		err = errors.New(status.Convert(err).Message())
	}
	return attached, err
}

// dialPeer makes one connection to a peer's federation service.
func dialPeer(ctx context.Context, trust *peering.Trust, peer, endpoint string) (*grpc.ClientConn, *conn, error) {
	t, err := tlsgrpc.Dial(ctx, endpoint, trust.ClientConfig(peer))
	if err != nil {
		return nil, nil, err
	}
	c := &conn{Conn: t, onClose: func() {}}
	cc, err := tlsgrpc.ClientOver(c, append(tlsgrpc.ClientWindows(streamWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxFrameBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveWait}))...)
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("connect %s: %w", endpoint, err)
	}
	return cc, c, nil
}

// endpoints are where the peer is dialled now.
func (r *runner) endpoints() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.terms.endpoints)
}

// hostOf is an address as status shows it.
func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
