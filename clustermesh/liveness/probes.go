// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tickEvery = 50 * time.Millisecond
	// probeBuffer is the socket's: more answers than can be on the way at once.
	probeBuffer = 256 << 10
	// drainWithin bounds reading what has arrived; it never waits for more.
	drainWithin = 20 * time.Millisecond
	// retargetSizes is how often it is decided anew whom size probes go to.
	retargetSizes = time.Second
)

// ProbesConfig is how probes are sent.
type ProbesConfig struct {
	Self netip.Addr // this node's tunnel address
	// Conn is bound to Self; answers come to the port that asked. Its owner
	// closes it.
	Conn   *net.UDPConn
	Port   uint16 // the tunnel's
	Prober ProberConfig
	Sizer  SizerConfig
	// Sized is told that something new is known of what paths carry; it must not
	// block. nil: nobody wants to know.
	Sized func()
	// Changed is told of each path that changed; it must not block.
	Changed func([]PathChange)
	Log     *slog.Logger
}

// Probes sends the probes of a Prober and reads the answers. Its methods are for
// any goroutine.
type Probes struct {
	cfg     ProbesConfig
	refused atomic.Uint64

	mu     sync.Mutex
	prober *Prober
	assume []PathChange
	sizer  *Sizer
	sizing time.Time // when it was decided last whom size probes go to
}

// NewProbes makes a Probes without targets.
func NewProbes(cfg ProbesConfig) *Probes {
	_ = cfg.Conn.SetReadBuffer(probeBuffer) // at worst the default
	if cfg.Sized == nil {
		cfg.Sized = func() {}
	}
	nonce := func() (n Nonce) {
		_, _ = rand.Read(n[:]) // never fails
		return n
	}
	return &Probes{cfg: cfg, prober: NewProber(cfg.Prober, nonce), sizer: NewSizer(cfg.Sizer, nonce)}
}

// SetTargets says whom to probe. Paths to others are unknown from then on, which
// Changed is not told.
func (p *Probes) SetTargets(ts []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prober.SetTargets(ts)
	p.assumeLocked()
}

// Assume says which paths were down before a restart. It holds for targets that
// come later, too, until they have been probed.
func (p *Probes) Assume(down []PathChange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.assume = down
	p.assumeLocked()
}

func (p *Probes) assumeLocked() {
	var changed, later []PathChange
	for _, a := range p.assume {
		if c, ok := p.prober.Assume(a.NodeID, a.Since); ok {
			changed = append(changed, c)
		} else {
			later = append(later, a)
		}
	}
	p.assume = later
	p.tell(changed)
}

// Paths are all that is probed, sorted.
func (p *Probes) Paths() []PathStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.prober.Paths()
	for i := range out {
		out[i].MTU, out[i].FullMTU = p.sizer.MTU(out[i].NodeID), p.sizer.Full()
	}
	return out
}

// Refused counts packets that were no answer to a question of ours: forged, or
// very late.
func (p *Probes) Refused() uint64 { return p.refused.Load() }

// Paused is for how long this process did not run although it was to probe.
func (p *Probes) Paused() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.prober.Paused()
}

func (p *Probes) tell(changed []PathChange) {
	if len(changed) > 0 {
		p.cfg.Changed(changed)
	}
}

// Run probes until the context ends or the socket breaks.
func (p *Probes) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.cfg.Conn.SetReadDeadline(time.Now()) })
	defer stop()
	raw, err := p.cfg.Conn.SyscallConn()
	if err == nil {
		err = wholePackets(raw)
	}
	if err != nil {
		return fmt.Errorf("probe socket: %w", err)
	}
	for next := time.Now(); ctx.Err() == nil; {
		next = next.Add(tickEvery)
		if now := time.Now(); next.Before(now) {
			next = now
		}
		if err := p.readUntil(ctx, next); err != nil {
			return err
		}
		// What came while we did not run has come before this tick.
		if err := p.drain(raw); err != nil {
			return err
		}
		p.tick(time.Now())
	}
	return nil
}

// wholePackets has packets sent with "don't fragment", whatever size is believed
// to get through.
func wholePackets(raw syscall.RawConn) error {
	var err error
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
	return errors.Join(cerr, err)
}

func (p *Probes) tick(now time.Time) {
	p.mu.Lock()
	send, changed := p.prober.Tick(now)
	if now.Sub(p.sizing) >= retargetSizes {
		p.sizing = now
		p.sizer.SetTargets(p.prober.answering())
	}
	sizes, sized := p.sizer.Tick(now)
	p.mu.Unlock()
	p.tell(changed)
	if sized {
		p.cfg.Sized()
	}
	for _, q := range send {
		p.send(q, 0)
	}
	for _, q := range sizes {
		p.send(q.Probe, q.Size)
	}
}

// send asks. A question that cannot be sent is one that is not answered.
func (p *Probes) send(q Probe, size int) {
	if _, err := p.cfg.Conn.WriteToUDPAddrPort(encodeProbe(p.cfg.Self, q.To, q.Nonce, size), netip.AddrPortFrom(q.To, p.cfg.Port)); err != nil {
		p.cfg.Log.Debug("probe not sent", "to", q.To, "size", size, "error", err)
	}
}

// readUntil waits for answers until a moment.
func (p *Probes) readUntil(ctx context.Context, t time.Time) error {
	if err := p.cfg.Conn.SetReadDeadline(t); err != nil {
		return fmt.Errorf("probe socket: %w", err)
	}
	buf := make([]byte, maxProbe)
	for ctx.Err() == nil {
		n, from, err := p.cfg.Conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("probe socket: %w", err)
		case err == nil:
			p.take(buf[:n], from.Addr().Unmap())
		}
	}
	return nil
}

// drain reads what is there and waits for nothing.
func (p *Probes) drain(raw interface {
	Read(func(fd uintptr) bool) error
}) error {
	if err := p.cfg.Conn.SetReadDeadline(time.Now().Add(drainWithin)); err != nil {
		return fmt.Errorf("probe socket: %w", err)
	}
	buf := make([]byte, maxProbe)
	err := raw.Read(func(fd uintptr) bool {
		for {
			n, from, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return true // nothing more
			}
			if a, ok := from.(*unix.SockaddrInet4); ok {
				p.take(buf[:n], netip.AddrFrom4(a.Addr))
			}
		}
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

func (p *Probes) take(b []byte, from netip.Addr) {
	now := time.Now()
	n, size, ok := decodeAnswer(b, from)
	if ok {
		p.mu.Lock()
		change, changed, believed := p.prober.Answer(now, from, n)
		sized := false
		if !believed {
			sized, believed = p.sizer.Answer(from, n, size)
		}
		p.mu.Unlock()
		if changed {
			p.tell([]PathChange{change})
		}
		if sized {
			p.cfg.Sized()
		}
		ok = believed
	}
	if !ok {
		p.refused.Add(1)
	}
}
