// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net"
	"net/netip"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

const (
	// maxConns is how many TCP connections there are at once, connsPerClient how
	// many from one address.
	maxConns       = 256
	connsPerClient = 32
	writeTimeout   = 2 * time.Second
)

// guardedReader passes on datagrams of those who may ask.
type guardedReader struct {
	wire.Reader
	s *Server
}

// ReadUDP implements wire.Reader. The library asks again after every datagram.
func (g *guardedReader) ReadUDP(conn *net.UDPConn, timeout time.Duration) ([]byte, *wire.SessionUDP, error) {
	for {
		m, from, err := g.Reader.ReadUDP(conn, timeout)
		if err != nil || g.s.cfg.Allowed(addressOf(from.RemoteAddr())) {
			return m, from, err
		}
		g.s.counts.refuse(refusedSource)
	}
}

// guardedListener accepts connections of those who may ask, a few each.
type guardedListener struct {
	net.Listener
	s *Server

	mu    sync.Mutex
	by    map[netip.Addr]int
	total int
}

func newGuardedListener(l net.Listener, s *Server) *guardedListener {
	return &guardedListener{Listener: l, s: s, by: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (g *guardedListener) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addressOf(c.RemoteAddr())
		switch {
		case !g.s.cfg.Allowed(from):
			g.s.counts.refuse(refusedSource)
		case !g.enter(from):
			g.s.counts.refuse(refusedBusy)
		default:
			return &guardedConn{Conn: c, leave: sync.OnceFunc(func() { g.leave(from) })}, nil
		}
		_ = c.Close()
	}
}

func (g *guardedListener) enter(from netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= maxConns || g.by[from] >= connsPerClient {
		return false
	}
	g.total++
	g.by[from]++
	return true
}

func (g *guardedListener) leave(from netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.by[from]--; g.by[from] == 0 {
		delete(g.by, from)
	}
}

// guardedConn does not wait for clients that do not read.
type guardedConn struct {
	net.Conn
	leave func()
}

// Write implements net.Conn.
func (c *guardedConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *guardedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
