// SPDX-License-Identifier: Apache-2.0

package etcdtest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy is a TCP connection to an etcd that a test can cut and heal.
type Proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

// Proxy starts a proxy on loopback before the server; it ends with the test.
func (e *Etcd) Proxy(tb testing.TB) *Proxy {
	tb.Helper()
	return e.ProxyTo(tb, e.Endpoints()[0])
}

// ProxyTo is Proxy before one member.
func (e *Etcd) ProxyTo(tb testing.TB, endpoint string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback, at once
	if err != nil {
		tb.Fatalf("proxy: %v", err)
	}
	p := &Proxy{listener: l, target: endpoint, conns: map[net.Conn]bool{}}
	var done sync.WaitGroup
	done.Go(func() { p.accept(&done) })
	tb.Cleanup(func() {
		_ = l.Close()
		p.Cut()
		done.Wait()
	})
	return p
}

// Endpoint is the proxy's host:port.
func (p *Proxy) Endpoint() string { return p.listener.Addr().String() }

// Cut breaks all connections and refuses new ones.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for c := range p.conns {
		_ = c.Close()
	}
}

// Heal lets new connections pass again.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

func (p *Proxy) accept(done *sync.WaitGroup) {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target) //nolint:noctx // loopback, at once
		if err != nil || !p.add(in, out) {
			_ = in.Close()
			if err == nil {
				_ = out.Close()
			}
			continue
		}
		done.Go(func() { p.pipe(in, out) })
		done.Go(func() { p.pipe(out, in) })
	}
}

func (p *Proxy) add(cs ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	for _, c := range cs {
		p.conns[c] = true
	}
	return true
}

func (p *Proxy) pipe(dst, src net.Conn) {
	_, _ = io.Copy(dst, src) // ends with either side
	_ = dst.Close()
	_ = src.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, src)
}
