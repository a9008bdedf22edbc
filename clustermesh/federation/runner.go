// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
)

var (
	errDuplicate = errors.New("there is another stream, which stays")
	errReplaced  = errors.New("another stream took its place")
	errStopped   = errors.New("the peering ended")
)

const (
	provedAfter = 5 * time.Second // a stream this old resets the dialer's backoff
	viewEvery   = 250 * time.Millisecond
)

// runner is one peering with a confirmed peer, for as long as its record stays
// the same.
type runner struct {
	kv      kvstore.Client
	cfg     *Config
	trust   *peering.Trust
	peer    *keyspacev1.Peer
	guard   *peering.Guard
	learn   func(context.Context, [][]byte) error // takes the peer's trust bundle
	st      *peerState
	log     *slog.Logger
	stopped chan struct{}
	finish  context.CancelFunc // ends run
	ended   chan struct{}      // closed when run has returned

	attachMu sync.Mutex // one newcomer at a time

	mu     sync.Mutex
	cur    *session
	change chan struct{} // closed when cur changes
}

func (r *runner) name() string { return r.peer.GetName() }
func (r *runner) own() string  { return r.cfg.Cluster.GetName() }

// run dials whenever there is no stream and keeps the PeerView, until the
// context ends or stop is called.
func (r *runner) run(ctx context.Context) {
	defer close(r.ended)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.dial(ctx) })
	g.Go(func() error { return r.views(ctx) })
	_ = g.Wait() // both only end with the context
}

// stop ends the stream and waits until nothing of this peering runs any more.
func (r *runner) stop() {
	close(r.stopped)
	r.finish()
	r.mu.Lock()
	cur := r.cur
	r.mu.Unlock()
	if cur != nil {
		cur.end(errStopped)
		<-cur.done
	}
	<-r.ended
	// A newcomer may have attached before it saw that we stopped.
	r.attachMu.Lock()
	defer r.attachMu.Unlock()
	r.mu.Lock()
	cur = r.cur
	r.mu.Unlock()
	if cur != nil {
		cur.end(errStopped)
		<-cur.done
	}
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
func (r *runner) serve(ctx context.Context, s *session) error {
	defer close(s.done)
	incarnation, err := ensureIncarnation(ctx, r.kv, r.own())
	if err != nil {
		return err
	}
	if s.byUs {
		err = s.sendHello(r.cfg.Cluster, incarnation)
	}
	if err == nil {
		err = s.recvHello(r.peer)
	}
	if err == nil {
		err = r.attach(s)
	}
	if err != nil {
		return err
	}
	r.st.up(s)
	if !s.byUs {
		err = s.sendHello(r.cfg.Cluster, incarnation)
	}
	if err == nil {
		r.log.Info("peer connected", "peer", r.name(), "dialled_by", dialledBy(s.byUs), "address", s.address)
		err = r.carry(ctx, s, incarnation)
	}
	s.sever()
	if isClosed(r.stopped) {
		err = errStopped
	}
	r.st.down(s, err)
	r.log.Info("peer disconnected", "peer", r.name(), "err", err)
	r.mu.Lock()
	r.setLocked(nil)
	r.mu.Unlock()
	return err
}

func (r *runner) carry(ctx context.Context, s *session, incarnation string) error {
	c, err := newCodec()
	if err != nil {
		return err
	}
	defer c.close()
	ex := newExporter(r.kv, r.own(), incarnation, r.cfg, r.st, c, s.send)
	im := newImporter(importer{kv: r.kv, own: r.own(), peer: r.name(), replica: r.cfg.Replica, cfg: r.cfg,
		guard: r.guard, st: r.st, codec: c, send: s.send, log: r.log})
	s.bundle, s.learn = r.trust.Bundle, r.learn
	return s.run(ctx, r.cfg, r.st, ex, im)
}

// dial keeps one stream up from our side whenever the other side does not.
func (r *runner) dial(ctx context.Context) error {
	b := backoff{low: r.cfg.BackoffMin, high: r.cfg.BackoffMax}
	for ctx.Err() == nil {
		cur, change := r.current()
		if cur != nil || len(r.peer.GetEndpoints()) == 0 {
			select {
			case <-change:
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := r.dialOnce(ctx)
		if time.Since(began) >= provedAfter {
			b.reset()
		}
		if err != nil && !errors.Is(err, errDuplicate) && ctx.Err() == nil {
			r.st.failed(err)
		}
		_ = b.wait(ctx, nil)
	}
	return ctx.Err()
}

func (r *runner) dialOnce(ctx context.Context) error {
	var errs []error
	for _, ep := range r.peer.GetEndpoints() {
		cc, c, err := dialPeer(ctx, r.trust, r.name(), ep)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer cc.Close()
		sctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := federationv1.NewFederationClient(cc).Stream(sctx)
		if err != nil {
			return fmt.Errorf("open stream to %s: %w", r.name(), err)
		}
		s := newSession(r.name(), true, ep, stream, func() { c.Close(); cancel() })
		s.certExpires = c.ConnectionState().PeerCertificates[0].NotAfter
		return r.serve(ctx, s)
	}
	return errors.Join(errs...)
}

// dialPeer makes one connection to a peer's federation service.
func dialPeer(ctx context.Context, trust *peering.Trust, peer, endpoint string) (*grpc.ClientConn, *conn, error) {
	t, err := tlsgrpc.Dial(ctx, endpoint, trust.ClientConfig(peer))
	if err != nil {
		return nil, nil, err
	}
	c := &conn{Conn: t, onClose: func() {}}
	cc, err := tlsgrpc.ClientOver(c,
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxFrameBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveWait}))
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("connect %s: %w", endpoint, err)
	}
	return cc, c, nil
}

// data is the verdict on the age of what we have of the peer.
func (r *runner) data() (verdict string, since time.Time) {
	state, since := r.st.link(r.cfg.LostAfter)
	age := r.st.now().Sub(since)
	switch {
	case state == stateConnected:
		return "fresh", since
	case r.cfg.ExpireAfter > 0 && age >= r.cfg.ExpireAfter:
		return "expired", since.Add(r.cfg.ExpireAfter)
	case age >= r.cfg.StaleAfter:
		return "stale", since.Add(r.cfg.StaleAfter)
	}
	return "fresh", since
}

// views writes local/<own>/peers/<peer> whenever it changes.
func (r *runner) views(ctx context.Context) error {
	key := kvstore.NewKey(kvstore.Local, r.own(), kvstore.KindPeerView, r.name()).String()
	last := r.lastView(ctx, key)
	wrote := time.Now()
	t := time.NewTicker(viewEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		v := r.st.view(r.peer, r.cfg.LostAfter)
		data, since := r.data()
		v.Data, v.DataSince = data, since.UnixNano()
		moved := !proto.Equal(last.GetAcknowledged(), v.GetAcknowledged()) && time.Since(wrote) >= r.cfg.IdlePersist
		if state, _ := r.st.link(r.cfg.LostAfter); state != stateConnecting && (moved || !sameView(last, v)) {
			v.UpdatedAt = r.st.now().UnixNano()
			if _, err := r.kv.Txn(ctx, nil, []kvstore.Op{kvstore.Put(key, encode(v))}, nil); err != nil {
				r.st.failed(fmt.Errorf("write view of %s: %w", r.name(), err))
			} else {
				last, wrote = v, time.Now()
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// lastView reads what an earlier run wrote: a peer that was lost then is lost
// since then.
func (r *runner) lastView(ctx context.Context, key string) *keyspacev1.PeerView {
	v := &keyspacev1.PeerView{}
	kv, _, err := r.kv.Get(ctx, key)
	if err != nil || kv == nil || proto.Unmarshal(kv.Value, v) != nil {
		return &keyspacev1.PeerView{}
	}
	r.st.do(func() {
		r.st.position = v.GetPosition()
		if v.GetAcknowledged() != nil {
			r.st.acked = v.GetAcknowledged()
		}
		if r.st.everUp {
			return
		}
		r.st.everUp, r.st.heard = true, time.Now()
		r.st.lastBy, r.st.last = v.GetDialledBy(), v.GetAddress()
		if !v.GetConnected() {
			r.st.since = time.Unix(0, v.GetSince())
		}
	})
	return v
}

// sameView compares what readers act on.
func sameView(a, b *keyspacev1.PeerView) bool {
	x, y := proto.CloneOf(a), proto.CloneOf(b)
	for _, v := range []*keyspacev1.PeerView{x, y} {
		v.Position, v.Acknowledged, v.UpdatedAt, v.DataSince = nil, nil, 0, 0
		if !v.GetConnected() {
			v.Since = 0 // exact only once the stream is given up
		}
	}
	return proto.Equal(x, y)
}

// hostOf is an address as status shows it.
func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
