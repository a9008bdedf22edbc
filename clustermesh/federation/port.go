// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
)

const (
	handshakeWithin = 5 * time.Second
	handshakesAtOne = 64 // time; more wait in the kernel's queue
	// handshakesOfOne address at a time, once half of all are under way.
	handshakesOfOne = 8
	keepaliveEvery  = 10 * time.Second
	keepaliveWait   = 5 * time.Second
	// streamWindow is how many bytes may be under way to one side: all of the
	// batches that may be unacknowledged.
	streamWindow = 8 << 20
)

// port is the one listener of federation. It finishes each TLS handshake itself
// and hands the connection to one of two gRPC servers by the server name that
// was asked for, so that a caller of the join service has nothing else to reach.
type port struct {
	lis   net.Listener
	trust *peering.Trust
	log   *slog.Logger
	fed   *grpc.Server
	join  *grpc.Server
	// refused are the handshakes that failed.
	refused handshakes
	within  time.Duration // in which a handshake ends

	mu    sync.Mutex
	conns map[string]map[*conn]struct{} // federation connections by peer
}

// conn is one accepted connection after its handshake.
type conn struct {
	*tls.Conn
	onClose func()
	once    sync.Once
}

func (c *conn) Close() error {
	c.once.Do(c.onClose)
	// Without the TLS farewell, which would wait for a peer that does not
	// read.
	return c.NetConn().Close()
}

func newPort(lis net.Listener, trust *peering.Trust, fed federationv1.FederationServer, join federationv1.JoinServer, now func() time.Time, log *slog.Logger) *port {
	opts := append(tlsgrpc.ServerWindows(streamWindow),
		grpc.Creds(tlsgrpc.Handshaken{}), grpc.MaxRecvMsgSize(maxFrameBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveEvery / 2, PermitWithoutStream: true}),
	)
	p := &port{lis: lis, trust: trust, log: log, refused: handshakes{now: now}, within: handshakeWithin, conns: map[string]map[*conn]struct{}{},
		fed: grpc.NewServer(opts...), join: grpc.NewServer(opts...)}
	federationv1.RegisterFederationServer(p.fed, fed)
	federationv1.RegisterJoinServer(p.join, join)
	return p
}

// run serves until the context ends; then all connections are closed.
func (p *port) run(ctx context.Context) error {
	fed, join := newHandover(p.lis.Addr()), newHandover(p.lis.Addr())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.fed.Serve(fed) })
	g.Go(func() error { return p.join.Serve(join) })
	g.Go(func() error { return p.accept(ctx, fed, join) })
	g.Go(func() error {
		<-ctx.Done()
		p.lis.Close()
		p.fed.Stop()
		p.join.Stop()
		return ctx.Err()
	})
	err := g.Wait()
	if errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *port) accept(ctx context.Context, fed, join *handover) error {
	cfg := p.trust.ServerConfig()
	slots, from := make(chan struct{}, handshakesAtOne), sources{begun: map[netip.Prefix]int{}}
	for {
		raw, err := p.lis.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			return fmt.Errorf("accept on %s: %w", p.lis.Addr(), err)
		}
		src := sourceOf(raw.RemoteAddr())
		if !from.enter(src, len(slots) >= handshakesAtOne/2) {
			p.refused.refuse(p.log, raw.RemoteAddr(), errCrowd)
			raw.Close()
			continue
		}
		slots <- struct{}{}
		go func() { // ends with the handshake, which is bounded
			defer func() { <-slots; from.leave(src) }()
			c := tls.Server(raw, cfg)
			hctx, cancel := context.WithTimeout(ctx, p.within)
			defer cancel()
			if err := c.HandshakeContext(hctx); err != nil {
				if ctx.Err() == nil {
					p.refused.refuse(p.log, raw.RemoteAddr(), err)
				}
				raw.Close()
				return
			}
			p.route(c, fed, join)
		}()
	}
}

// route gives a connection to the server that its caller asked for by name.
func (p *port) route(c *tls.Conn, fed, join *handover) {
	cs := c.ConnectionState()
	if cs.NegotiatedProtocol != "h2" {
		p.refused.refuse(p.log, c.RemoteAddr(), errors.New("the caller does not speak HTTP/2"))
		c.NetConn().Close()
		return
	}
	if cs.ServerName == peering.JoinServerName {
		join.give(&conn{Conn: c, onClose: func() {}})
		return
	}
	cluster, err := peering.ClusterOf(cs)
	if err != nil {
		c.NetConn().Close()
		return
	}
	tc := &conn{Conn: c}
	tc.onClose = func() { p.forget(cluster, tc) }
	p.mu.Lock()
	if p.conns[cluster] == nil {
		p.conns[cluster] = map[*conn]struct{}{}
	}
	p.conns[cluster][tc] = struct{}{}
	p.mu.Unlock()
	if !p.trust.Has(cluster) { // removed between the handshake and here
		p.refused.refuse(p.log, c.RemoteAddr(), peering.NoPeerAnyMore(cluster))
		tc.Close()
		return
	}
	fed.give(tc)
}

func (p *port) forget(cluster string, c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns[cluster], c)
	if len(p.conns[cluster]) == 0 {
		delete(p.conns, cluster)
	}
}

// cut closes every connection of a peer.
func (p *port) cut(cluster string) {
	p.mu.Lock()
	var cs []*conn
	for c := range p.conns[cluster] {
		cs = append(cs, c)
	}
	p.mu.Unlock()
	for _, c := range cs {
		c.Close()
	}
}

// handover is a net.Listener of connections that somebody else accepted.
type handover struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }
