// SPDX-License-Identifier: Apache-2.0

package tlsgrpc

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// counted counts the packets of one side.
type counted struct {
	net.Conn
	writes *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

type countedListener struct {
	net.Listener
	writes *atomic.Int64
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return counted{c, l.writes}, err
}

// work takes as long as a store does, so that what gRPC has to say by itself is
// not sent along with the answer.
func work(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	time.Sleep(time.Millisecond)
	return handle(ctx, req)
}

// packets is how many packets each side sends for so many calls, one after the
// other.
func packets(t *testing.T, calls int, client []grpc.DialOption, server []grpc.ServerOption) (fromClient, fromServer int64) {
	t.Helper()
	var up, down atomic.Int64
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(server, grpc.UnaryInterceptor(work))...)
	healthv1.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(countedListener{l, &down}) }() // ends with the server
	defer s.Stop()
	cc, err := grpc.NewClient(l.Addr().String(), append(client, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return counted{c, &up}, err
		}))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for range calls {
		if _, err := healthv1.NewHealthClient(cc).Check(t.Context(), &healthv1.HealthCheckRequest{Service: ""}); err != nil {
			t.Fatal(err)
		}
	}
	return up.Load(), down.Load()
}

// TestWindowsCostNothing: a call is a packet there and one back, as long
// as the windows stay as they are.
func TestWindowsCostNothing(t *testing.T) {
	const calls, start = 100, 20
	up, down := packets(t, calls, ClientWindows(1<<20), ServerWindows(1<<20))
	if up > calls+start || down > calls+start {
		t.Errorf("%d calls took %d packets from the client and %d from the server", calls, up, down)
	}
	t.Logf("%d packets from the client, %d from the server", up, down)
}
