// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/peering"
)

// Of refused handshakes so many lines are logged within one window.
const (
	handshakesLogged = time.Minute
	handshakesTold   = 5
)

// Reasons for which a handshake fails, beside those of peering.HandshakeReasons.
const (
	handshakeClosed  = "closed"  // the caller hung up, as a check of the port does
	handshakeTimeout = "timeout" // it did not finish in time
	handshakeRemote  = "remote"  // the caller does not believe our certificate
	handshakeTLS     = "tls"     // no TLS 1.3, no certificate, another protocol
	handshakeCrowd   = "crowd"   // not begun: too many from that address are under way
)

var errCrowd = errors.New("too many handshakes from this address are not finished, while many are under way")

// HandshakeReasons are all those for which a connection to the federation port is
// refused; counters begin with all of them at 0.
func HandshakeReasons() []string {
	return append(peering.HandshakeReasons(), handshakeClosed, handshakeTimeout, handshakeRemote, handshakeTLS, handshakeCrowd)
}

func handshakeReason(err error) string {
	var bad *peering.HandshakeError
	var op *net.OpError
	switch {
	case errors.As(err, &bad):
		return bad.Reason
	case errors.Is(err, errCrowd):
		return handshakeCrowd
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return handshakeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return handshakeClosed
	case errors.As(err, &op) && op.Op == "remote error":
		return handshakeRemote
	}
	return handshakeTLS
}

// handshakes counts those that were refused, and tells of a few in a minute.
type handshakes struct {
	now func() time.Time

	mu     sync.Mutex
	counts map[string]uint64 // by reason
	since  time.Time         // when the window began
	told   int               // lines in it
	untold uint64            // refusals since the last line
}

func (h *handshakes) refuse(log *slog.Logger, from net.Addr, err error) {
	reason := handshakeReason(err)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil {
		h.counts = map[string]uint64{}
	}
	h.counts[reason]++
	if reason == handshakeClosed { // who looks whether the port is open is no enemy
		log.Debug("handshake refused", "from", from.String(), "reason", reason, "err", err)
		return
	}
	if now := h.now(); h.since.IsZero() || now.Sub(h.since) >= handshakesLogged {
		h.since, h.told = now, 0
	}
	if h.told++; h.told > handshakesTold {
		h.untold++
		return
	}
	log.Warn("handshake refused", "from", from.String(), "reason", reason, "err", err, "untold_before", h.untold)
	h.untold = 0
}

func (h *handshakes) byReason() map[string]uint64 {
	out := map[string]uint64{}
	for _, r := range HandshakeReasons() {
		out[r] = 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.Copy(out, h.counts)
	return out
}

// sources are the handshakes under way by address, an IPv6 one's /64 as one: who
// begins them and says nothing leaves room for others.
type sources struct {
	mu    sync.Mutex
	begun map[netip.Prefix]int
}

// enter reports whether one more may begin; scarce says that room is getting so.
func (s *sources) enter(from netip.Prefix, scarce bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if scarce && s.begun[from] >= handshakesOfOne {
		return false
	}
	s.begun[from]++
	return true
}

func (s *sources) leave(from netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun[from]--; s.begun[from] == 0 {
		delete(s.begun, from)
	}
}

func sourceOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // not TCP: all as one
	}
	ip, bits := ap.Addr().Unmap().WithZone(""), 32
	if ip.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

// RefusedHandshakes is how many connections to the federation port were refused,
// by reason; nil if it does not listen.
func (m *Manager) RefusedHandshakes() map[string]uint64 {
	if m.port == nil {
		return nil
	}
	return m.port.refused.byReason()
}
