// SPDX-License-Identifier: Apache-2.0

// Package rest serves a gRPC API as JSON over HTTP beside it.
//
// Split shares one listener between gRPC and HTTP/1, as the unix sockets do;
// Either shares one HTTP server between both, as the API port does. Handler
// guards a gateway. What is where is in api/openapi; routes.go answers what is nowhere.
package rest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
)

const (
	maxBody       = 4 << 20
	maxReply      = 256 << 20
	peekTimeout   = 10 * time.Second
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
)

// Register connects a gateway to a service, as generated.
type Register func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error

// Gateway translates for the gRPC server on a unix socket, which need not listen
// yet, until the context ends.
func Gateway(ctx context.Context, socket string, register Register) (http.Handler, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	routes, err := routesOf(ctx, socket, register)
	if err != nil {
		return nil, err
	}
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
		MarshalOptions: protojson.MarshalOptions{EmitUnpopulated: true},
	}), runtime.WithRoutingErrorHandler(routes.refuse))
	if err := register(ctx, mux, conn); err != nil {
		return nil, fmt.Errorf("make the REST gateway: %w", err)
	}
	return Handler(mux), nil
}

// Handler refuses what a browser sends on behalf of another site, and bodies
// that are too large.
func Handler(h http.Handler) http.Handler {
	return http.NewCrossOriginProtection().Handler(http.MaxBytesHandler(h, maxBody))
}

// Either gives gRPC's requests to its server and all others to h.
func Either(g *grpc.Server, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			g.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Server is an HTTP server with bounds on what a caller may take.
func Server(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
}

// Split hands the connections of one listener to two: HTTP/2, which only gRPC
// speaks there, and the others. Closing either closes all. Run must be running.
type Split struct {
	lis        net.Listener
	grpc, http *half
	once       sync.Once
	closed     chan struct{}
}

// NewSplit splits a listener, which it owns from then on.
func NewSplit(lis net.Listener) *Split {
	s := &Split{lis: lis, closed: make(chan struct{})}
	s.grpc, s.http = &half{s: s, conns: make(chan net.Conn)}, &half{s: s, conns: make(chan net.Conn)}
	return s
}

// GRPC gives the connections of gRPC clients.
func (s *Split) GRPC() net.Listener { return s.grpc }

// HTTP gives the others.
func (s *Split) HTTP() net.Listener { return s.http }

// Close ends the listeners; connections that were handed out live on.
func (s *Split) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		err = s.lis.Close()
	})
	return err
}

// Run accepts until the listener ends, which is no error when it was closed
// here.
func (s *Split) Run() error {
	for {
		c, err := s.lis.Accept()
		if err != nil {
			_ = s.Close()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", s.lis.Addr(), err)
		}
		go s.sort(c)
	}
}

// sort waits for the first bytes: HTTP/2's preface begins with PRI (RFC 9113,
// section 3.4), which is no method of HTTP/1.
func (s *Split) sort(c net.Conn) {
	const preface = "PRI"
	_ = c.SetReadDeadline(time.Now().Add(peekTimeout))
	r := bufio.NewReader(c)
	first, err := r.Peek(len(preface))
	if err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	to := s.http
	if string(first) == preface {
		to = s.grpc
	}
	select {
	case to.conns <- &peeked{c, r}:
	case <-s.closed:
		_ = c.Close()
	}
}

// peeked is a connection of which a reader has some bytes already.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

type half struct {
	s     *Split
	conns chan net.Conn
}

// Accept implements net.Listener.
func (h *half) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *half) Close() error { return h.s.Close() }

// Addr implements net.Listener.
func (h *half) Addr() net.Addr { return h.s.lis.Addr() }

// Serve runs a gRPC server and its REST gateway on a unix socket's listener
// until the gRPC server is stopped.
func Serve(lis net.Listener, g *grpc.Server, h http.Handler) error {
	split, web := NewSplit(lis), Server(h)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = web.Close() }()
	defer func() { _ = split.Close() }()
	wg.Go(func() { _ = split.Run() })
	wg.Go(func() { _ = web.Serve(split.HTTP()) })
	return g.Serve(split.GRPC())
}
