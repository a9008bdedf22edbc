// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Serve answers clients on a TCP and a UDP socket of the same address until ctx
// ends; ready is told the address when both listen, and may be nil.
func Serve(ctx context.Context, addr string, ready func(net.Addr)) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // plain TCP is what the datapath is measured with
	lis, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for load: %w", err)
	}
	defer lis.Close()
	packets := net.ListenConfig{Control: enlarge}
	udp, err := packets.ListenPacket(ctx, "udp", lis.Addr().String())
	if err != nil {
		return fmt.Errorf("listen for load: %w", err)
	}
	defer func() { _ = udp.Close() }()
	if ready != nil {
		ready(lis.Addr())
	}
	stop := context.AfterFunc(ctx, func() { lis.Close(); _ = udp.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { echoDatagrams(udp) })
	for {
		conn, err := lis.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept load: %w", err)
		}
		wg.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			serveConn(conn)
		})
	}
}

// serveConn serves one connection; what goes wrong is the client's to notice.
func serveConn(conn net.Conn) {
	var mode [1]byte
	if _, err := io.ReadFull(conn, mode[:]); err != nil {
		return
	}
	switch mode[0] {
	case requestMode:
		buf := make([]byte, requestSize)
		if _, err := io.ReadFull(conn, buf); err != nil {
			return
		}
		if _, err := conn.Write(buf); err != nil {
			return
		}
		_, _ = conn.Read(buf) // the client closes first, and keeps the waiting time
	case streamMode:
		s := newStream(conn)
		var wg sync.WaitGroup
		done := make(chan struct{})
		wg.Go(func() { _ = s.send(done) })
		_ = s.receive(func() {})
		close(done)
		wg.Wait()
	}
}

// echoDatagrams returns each datagram with the number of datagrams that have
// come from the same client (its id) so far; larger ones as they are.
func echoDatagrams(udp net.PacketConn) {
	counts := map[uint64]uint64{}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n > datagram {
			_, _ = udp.WriteTo(buf[:n], from)
			continue
		}
		if err != nil || n != datagram {
			continue
		}
		id := binary.BigEndian.Uint64(buf)
		counts[id]++
		binary.BigEndian.PutUint64(buf[16:], counts[id])
		_, _ = udp.WriteTo(buf[:n], from) // a lost echo is what the client looks for
	}
}

// stream is one end of the long connection. Both ends send numbered blocks and
// check what they receive.
type stream struct {
	conn           net.Conn
	sent, received uint64 // bytes
	stall          stallClock
}

func newStream(conn net.Conn) *stream { return &stream{conn: conn} }

// send writes a block every blockPause until done is closed; then it ends its
// direction.
func (s *stream) send(done <-chan struct{}) error {
	tick := time.NewTicker(blockPause)
	defer tick.Stop()
	block := make([]byte, blockSize)
	for n := uint64(0); ; n++ {
		fill(block, n)
		w, err := s.conn.Write(block)
		s.sent += uint64(w)
		if err != nil {
			return err
		}
		select {
		case <-done:
			if c, ok := s.conn.(*net.TCPConn); ok {
				return c.CloseWrite()
			}
			return nil
		case <-tick.C:
		}
	}
}

// receive checks blocks until the other end ends its direction, and calls
// started at the first.
func (s *stream) receive(started func()) error {
	want, got := make([]byte, blockSize), make([]byte, blockSize)
	for n := uint64(0); ; n++ {
		r, err := io.ReadFull(s.conn, got)
		s.received += uint64(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.stall.mark()
		fill(want, n)
		if string(want) != string(got) {
			return fmt.Errorf("block %d is not what was sent", n)
		}
		if n == 0 {
			started()
		}
	}
}

// fill makes the content of the n-th block: eight bytes of n, repeated, each
// time with its place added.
func fill(block []byte, n uint64) {
	for i := 0; i+8 <= len(block); i += 8 {
		binary.BigEndian.PutUint64(block[i:], n*0x9e3779b97f4a7c15+uint64(i))
	}
}
