// SPDX-License-Identifier: Apache-2.0

package load_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/testutil/ports"
	"github.com/hawser-mesh/hawser/lab/load"
)

func serve(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	addr := make(chan string, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := load.Serve(ctx, "127.0.0.1:0", func(a net.Addr) { addr <- a.String() }); err != nil {
			t.Error(err)
			close(addr)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return <-addr
}

func run(t *testing.T, cfg load.Config, d time.Duration) (load.Report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	r, err := load.Run(ctx, cfg)
	t.Logf("%+v", r)
	return r, err
}

// busy is how long a busy machine may stand still.
const busy = 4 * time.Second

func TestNothingLostOnLoopback(t *testing.T) {
	var ready atomic.Int32
	cfg := load.Config{Target: serve(t), Connections: 200, Datagrams: 1000, Stream: true, Ready: func() { ready.Add(1) }, MaxLatency: busy, MaxStall: busy}
	r, err := run(t, cfg, time.Second)
	if err != nil {
		t.Error(err)
	}
	if r.Connections < 100 || r.UDPSent < 500 || r.UDPReceived != r.UDPSent || r.StreamBytesReceived < 100_000 {
		t.Error("too little was sent, or not all came back")
	}
	if ready.Load() != 1 {
		t.Errorf("ready was told %d times", ready.Load())
	}
}

func TestNobodyThere(t *testing.T) {
	addr := ports.Free(t).String()
	r, err := run(t, load.Config{Target: addr, Connections: 50, Stream: true}, 500*time.Millisecond)
	if r.Refused == 0 || r.StreamError == "" || err == nil {
		t.Errorf("refusals were not noticed: %v", err)
	}
}

// proxy stands between client and server and may misbehave.
type proxy struct {
	tcp   net.Listener
	udp   *net.UDPConn
	drop  func(n int) (copies int) // of the n-th datagram from the client
	spoil bool
	cut   chan struct{} // closed: every TCP connection is reset
}

func newProxy(t *testing.T, server string, p *proxy) string {
	t.Helper()
	var err error
	if p.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	addr := p.tcp.Addr().String()
	laddr, _ := net.ResolveUDPAddr("udp", addr)
	if p.udp, err = net.ListenUDP("udp", laddr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.tcp.Close(); _ = p.udp.Close() })
	if p.cut == nil {
		p.cut = make(chan struct{})
	}
	go p.serveUDP(server)
	go func() {
		for {
			c, err := p.tcp.Accept()
			if err != nil {
				return
			}
			go p.pipe(c, server)
		}
	}()
	return addr
}

func (p *proxy) pipe(c net.Conn, server string) {
	defer c.Close()
	s, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer s.Close()
	go func() { _, _ = io.Copy(s, c) }()
	go func() {
		<-p.cut
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}()
	buf := make([]byte, 4096)
	for total := 0; ; {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if p.spoil && total < 50_000 && total+n >= 50_000 {
			buf[0] ^= 1
		}
		total += n
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) serveUDP(server string) {
	up, err := net.Dial("udp", server)
	if err != nil {
		return
	}
	defer up.Close()
	var client atomic.Pointer[net.UDPAddr]
	go func() {
		buf := make([]byte, 2048)
		for {
			n, err := up.Read(buf)
			if err != nil {
				return
			}
			_, _ = p.udp.WriteToUDP(buf[:n], client.Load())
		}
	}()
	buf := make([]byte, 2048)
	for i := 0; ; i++ {
		n, from, err := p.udp.ReadFromUDP(buf)
		if err != nil {
			return
		}
		client.Store(from)
		copies := 1
		if p.drop != nil {
			copies = p.drop(i)
		}
		for range copies {
			_, _ = up.Write(buf[:n])
		}
	}
}

func TestLostDatagramIsNoticed(t *testing.T) {
	addr := newProxy(t, serve(t), &proxy{drop: func(n int) int {
		if n == 20 {
			return 0
		}
		return 1
	}})
	r, err := run(t, load.Config{Target: addr, Datagrams: 200}, 500*time.Millisecond)
	if r.UDPLost != 1 || r.UDPLostThere != 1 || r.UDPLostBack != 0 || err == nil {
		t.Errorf("one datagram was dropped on its way there; verdict %v", err)
	}
}

func TestDoubledDatagramIsNoticed(t *testing.T) {
	addr := newProxy(t, serve(t), &proxy{drop: func(n int) int {
		if n == 20 {
			return 2
		}
		return 1
	}})
	r, err := run(t, load.Config{Target: addr, Datagrams: 200}, 500*time.Millisecond)
	if r.UDPDuplicates != 1 || r.UDPLost != 0 || err == nil {
		t.Errorf("one datagram came twice; verdict %v", err)
	}
}

func TestSpoiledStreamIsNoticed(t *testing.T) {
	addr := newProxy(t, serve(t), &proxy{spoil: true})
	_, err := run(t, load.Config{Target: addr, Stream: true}, 10*time.Second) // it ends with the fault
	if err == nil || !strings.Contains(err.Error(), "not what was sent") {
		t.Errorf("a changed byte was not noticed: %v", err)
	}
}

func TestResetIsNoticed(t *testing.T) {
	p := &proxy{cut: make(chan struct{})}
	addr := newProxy(t, serve(t), p)
	timer := time.AfterFunc(100*time.Millisecond, func() { close(p.cut) })
	defer timer.Stop()
	r, err := run(t, load.Config{Target: addr, Stream: true, Connections: 200}, 400*time.Millisecond)
	if err == nil || r.StreamError == "" {
		t.Errorf("the reset of the stream was not noticed: %v", err)
	}
	if r.Reset == 0 {
		t.Error("no connection was seen reset")
	}
}
