// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Config is the load to make.
type Config struct {
	Target      string // host:port of a server
	Connections int    // new TCP connections per second; 0 is none
	Datagrams   int    // per second; 0 is none
	Stream      bool
	// MaxLatency is when an answer on a new connection is late: a lost SYN or
	// segment costs a retransmission of a second or 200 ms. 0 means 900 ms.
	MaxLatency time.Duration
	// MaxStall is how long stream and datagrams may stand still. 0 means 1 s.
	MaxStall time.Duration
	// Ready is called once, when every kind of load got its first answer; nil
	// is nobody.
	Ready func()
}

func (c Config) withDefaults() Config {
	if c.MaxLatency == 0 {
		c.MaxLatency = 900 * time.Millisecond
	}
	if c.MaxStall == 0 {
		c.MaxStall = time.Second
	}
	return c
}

// giveUp bounds one dial and one answer; drain is how long after the end
// datagrams may still come back.
const (
	giveUp      = 5 * time.Second
	drain       = time.Second
	maxInFlight = 1000
)

// Run makes the load until ctx ends and reports what it saw; the error is the
// report's verdict.
func Run(ctx context.Context, cfg Config) (Report, error) {
	cfg = cfg.withDefaults()
	c := &client{cfg: cfg}
	var kinds []func(context.Context)
	if cfg.Connections > 0 {
		kinds = append(kinds, c.connections)
	}
	if cfg.Datagrams > 0 {
		kinds = append(kinds, c.datagrams)
	}
	if cfg.Stream {
		kinds = append(kinds, c.stream)
	}
	if len(kinds) == 0 {
		return Report{}, errors.New("load of nothing: no connections, datagrams or stream")
	}
	c.waiting.Store(int32(len(kinds)))
	start := time.Now()
	var wg sync.WaitGroup
	for _, k := range kinds {
		wg.Go(func() { k(ctx) })
	}
	wg.Wait()
	r := c.finish(time.Since(start))
	return r, r.Verdict(cfg)
}

type client struct {
	counters
	cfg     Config
	waiting atomic.Int32 // kinds of load without a first answer
	// atServer is how many datagrams the server had, by its newest echo; mu
	// guards it.
	atServer uint64
}

// started is called by each kind of load at its first answer.
func (c *client) started() {
	if c.waiting.Add(-1) == 0 && c.cfg.Ready != nil {
		c.cfg.Ready()
	}
}

func dial(ctx context.Context, target string) (net.Conn, error) {
	d := net.Dialer{Timeout: giveUp}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", target)
}

// pace calls fn rate times a second until ctx ends, catching up when the
// machine was busy.
func pace(ctx context.Context, rate int, fn func(n uint64)) {
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := uint64(0); ; {
		due := uint64(time.Since(start).Seconds() * float64(rate))
		for ; n < due && ctx.Err() == nil; n++ {
			fn(n)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *client) connections(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var first sync.Once
	slots := make(chan struct{}, maxInFlight)
	pace(ctx, c.cfg.Connections, func(uint64) {
		select {
		case slots <- struct{}{}:
		default:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.report.NotMade++
			c.report.LastFailed = max(c.report.LastFailed, time.Now().UnixMilli())
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			// The end of the load does not end a request.
			if c.request(context.WithoutCancel(ctx)) {
				first.Do(c.started)
			}
		})
	})
}

func (c *client) request(ctx context.Context) bool {
	start := time.Now()
	err := exchange(ctx, c.cfg.Target)
	took := time.Since(start)
	if err == nil && took > c.cfg.MaxLatency {
		err = fmt.Errorf("%w: after %s", errLate, took.Round(time.Millisecond))
	}
	if err != nil {
		c.fail("connection", err)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.report.LastFailed = max(c.report.LastFailed, start.UnixMilli())
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Connections++
	c.latencies = append(c.latencies, took)
	return true
}

func exchange(ctx context.Context, target string) error {
	conn, err := dial(ctx, target)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(giveUp)); err != nil {
		return err
	}
	message := make([]byte, 1+requestSize)
	message[0] = requestMode
	fill(message[1:], rand.Uint64())
	if _, err := conn.Write(message); err != nil {
		return err
	}
	answer := make([]byte, requestSize)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if !bytes.Equal(answer, message[1:]) {
		return errors.New("the answer is not the request")
	}
	return nil
}

func (c *client) stream(ctx context.Context) {
	conn, err := dial(ctx, c.cfg.Target)
	if err != nil {
		c.streamOver(nil, err)
		return
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{streamMode}); err != nil {
		c.streamOver(nil, err)
		return
	}
	s := newStream(conn)
	errs := make(chan error, 1)
	go func() {
		err := s.send(ctx.Done())
		if err != nil {
			// The reader learns of it at once.
			conn.Close()
		}
		errs <- err
	}()
	// After the end the other side has as long as for any answer.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(giveUp)) })
	defer stop()
	receiveErr := s.receive(c.started)
	sendErr := <-errs
	if receiveErr == nil && ctx.Err() == nil {
		receiveErr = fmt.Errorf("the server ended it: %w", io.ErrUnexpectedEOF)
	}
	if sendErr != nil {
		receiveErr = sendErr
	}
	c.streamOver(s, receiveErr)
}

func (c *client) streamOver(s *stream, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s != nil {
		c.report.StreamBytesSent, c.report.StreamBytesReceived = s.sent, s.received
		c.report.StreamMaxStall = milliseconds(s.stall.worst)
	}
	if err != nil {
		c.report.StreamError = err.Error()
	}
}

func (c *client) datagrams(ctx context.Context) {
	d := net.Dialer{Timeout: giveUp, Control: enlarge}
	conn, err := d.DialContext(ctx, "udp", c.cfg.Target)
	if err != nil {
		c.fail("datagrams", err)
		return
	}
	defer conn.Close()
	id := rand.Uint64()
	var sent atomic.Uint64
	var wg sync.WaitGroup
	wg.Go(func() { c.echoes(conn, id) })
	pace(ctx, c.cfg.Datagrams, func(n uint64) {
		buf := make([]byte, datagram)
		binary.BigEndian.PutUint64(buf, id)
		binary.BigEndian.PutUint64(buf[8:], n)
		if _, err := conn.Write(buf); err != nil {
			c.fail("datagram", err)
		}
		sent.Add(1)
	})
	_ = conn.SetReadDeadline(time.Now().Add(drain)) // fails on a closed one only
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.report
	r.UDPSent = sent.Load()
	r.UDPLost = r.UDPSent - min(r.UDPSent, r.UDPReceived)
	r.UDPLostThere = r.UDPSent - min(r.UDPSent, c.atServer)
	r.UDPLostBack = r.UDPLost - min(r.UDPLost, r.UDPLostThere)
}

// echoes reads until the deadline that the sender sets at its end.
func (c *client) echoes(conn net.Conn, id uint64) {
	var seen []bool
	var highest uint64
	var clock stallClock
	buf := make([]byte, 2*datagram)
	for {
		n, err := conn.Read(buf)
		if isTimeout(err) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			c.fail("datagram", err)
			continue
		}
		if n != datagram || binary.BigEndian.Uint64(buf) != id {
			continue
		}
		number, atServer := binary.BigEndian.Uint64(buf[8:]), binary.BigEndian.Uint64(buf[16:])
		clock.mark()
		for uint64(len(seen)) <= number {
			seen = append(seen, false)
		}
		c.mu.Lock()
		r := &c.report
		r.UDPMaxGap = milliseconds(clock.worst)
		c.atServer = max(c.atServer, atServer)
		switch {
		case seen[number]:
			r.UDPDuplicates++
		default:
			seen[number] = true
			r.UDPReceived++
			if number < highest {
				r.UDPReordered++
			}
		}
		first := r.UDPReceived == 1 && r.UDPDuplicates == 0
		c.mu.Unlock()
		highest = max(highest, number)
		if first {
			c.started()
		}
	}
}
