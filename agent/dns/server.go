// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/hawser-mesh/hawser/internal/backoff"
)

const (
	// largestUDP is what arrives everywhere without fragments (RFC 9715); larger
	// answers are cut, and asked for again over TCP.
	largestUDP = 1232
	// readTimeout bounds a TCP client's question, idleTimeout its next one.
	readTimeout = 2 * time.Second
	idleTimeout = 10 * time.Second
	// listenAgain is the longest time between two tries to take the address.
	listenAgain  = 5 * time.Second
	stopTimeout  = time.Second
	maxQuestions = 128 // of one TCP connection
)

// Server answers questions. It is safe for concurrent use.
type Server struct {
	cfg     Config
	forward *forwarder
	counts  counts
}

// New makes a server that does not listen yet.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("name server: %w", err)
	}
	return &Server{cfg: cfg, forward: newForwarder(cfg.Upstreams), counts: newCounts()}, nil
}

// Run answers until the context ends. An address that cannot be taken, because
// another server has it, is tried again: the node's traffic does not depend on
// names.
func (s *Server) Run(ctx context.Context) error {
	wait := backoff.New(100*time.Millisecond, listenAgain)
	for {
		err := s.serve(ctx, wait.Reset)
		if ctx.Err() != nil {
			return nil
		}
		s.counts.setProblem(err)
		s.cfg.Log.Warn("no names are answered", "listen", s.cfg.Listen, "error", err)
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
}

func (s *Server) serve(ctx context.Context, up func()) error {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", s.cfg.Listen.String())
	if err != nil {
		return err
	}
	// Port 0 is any: the same one for both.
	at := pc.LocalAddr().String()
	lis, err := lc.Listen(ctx, "tcp", at)
	if err != nil {
		return errors.Join(err, pc.Close())
	}
	handler := func(network string) wire.HandlerFunc {
		return func(w wire.ResponseWriter, q *wire.Msg) { s.handle(ctx, w, q, network) }
	}
	udp := &wire.Server{
		PacketConn: pc, Handler: handler("udp"), UDPSize: wire.DefaultMsgSize, MsgAcceptFunc: s.accept,
		DecorateReader: func(r wire.Reader) wire.Reader { return &guardedReader{r, s} },
	}
	tcp := &wire.Server{
		Listener: newGuardedListener(lis, s), Handler: handler("tcp"), ReadTimeout: readTimeout, MaxTCPQueries: maxQuestions,
		IdleTimeout: func() time.Duration { return idleTimeout }, MsgAcceptFunc: s.accept,
	}
	up()
	s.counts.setListening(at)
	defer s.counts.setListening("")
	s.cfg.Log.Info("names are answered", "listen", at, "upstreams", s.cfg.Upstreams)
	g, gctx := errgroup.WithContext(ctx)
	for _, srv := range []*wire.Server{udp, tcp} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		g.Go(srv.ActivateAndServe)
		g.Go(func() error {
			<-gctx.Done()
			select {
			case <-started:
			default: // it could not start, and has said why
				return nil
			}
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			_ = srv.ShutdownContext(stop) // who is not done is cut off
			return nil
		})
	}
	return g.Wait()
}

// accept passes on what is a question, as the library's own does.
func (s *Server) accept(h wire.Header) wire.MsgAcceptAction {
	a := wire.DefaultMsgAcceptFunc(h)
	if a != wire.MsgAccept {
		s.counts.refuse(refusedMalformed)
	}
	return a
}

// handle answers one question.
func (s *Server) handle(ctx context.Context, w wire.ResponseWriter, q *wire.Msg, network string) {
	from := addressOf(w.RemoteAddr())
	r, kind := s.answer(ctx, q, from, network)
	size := wire.MaxMsgSize
	if network == "udp" {
		size = int(sizeFor(q))
	}
	if q.IsEdns0() != nil {
		r.SetEdns0(largestUDP, q.IsEdns0().Do())
	}
	r.Truncate(size)
	s.counts.answered(AnswerKey{Kind: kind, Rcode: rcodeName(r.Rcode), Transport: network})
	if err := w.WriteMsg(r); err != nil {
		s.cfg.Log.Debug("answer a question", "from", from, "error", err)
	}
}

// answer is the answer to a question, and whose it is.
func (s *Server) answer(ctx context.Context, q *wire.Msg, from netip.Addr, network string) (*wire.Msg, Kind) {
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		return refuse(q, wire.RcodeBadVers), KindNone
	}
	if q.Opcode != wire.OpcodeQuery {
		return refuse(q, wire.RcodeNotImplemented), KindNone
	}
	if len(q.Question) != 1 {
		return refuse(q, wire.RcodeFormatError), KindNone
	}
	n := q.Question[0]
	if t := n.Qtype; t == wire.TypeAXFR || t == wire.TypeIXFR || n.Qclass != wire.ClassINET {
		return refuse(q, wire.RcodeRefused), KindNone
	}
	if name := strings.ToLower(n.Name); name == Zone+"." || strings.HasSuffix(name, "."+Zone+".") {
		return s.inZone(q), KindMesh
	}
	if a, ok := reverseOf(n.Name); ok {
		if r := s.reverse(q, a); r != nil {
			return r, KindReverse
		}
	}
	return s.others(ctx, q, from, network), KindForwarded
}

// others has a question answered by the upstreams.
func (s *Server) others(ctx context.Context, q *wire.Msg, from netip.Addr, network string) *wire.Msg {
	if len(s.cfg.Upstreams) == 0 {
		return refuse(q, wire.RcodeRefused)
	}
	begin := time.Now()
	r, err := s.forward.forward(ctx, q, from, network)
	s.counts.forwarded(time.Since(begin), err)
	if err != nil {
		s.cfg.Log.Debug("forward a question", "from", from, "name", q.Question[0].Name, "error", err)
		return refuse(q, wire.RcodeServerFailure)
	}
	return r
}

// rcodeName is the name of a code in answers to questions: 16 means something
// else where messages are signed.
func rcodeName(rcode int) string {
	if rcode == wire.RcodeBadVers {
		return "BADVERS"
	}
	return wire.RcodeToString[rcode]
}

// reply begins an answer.
func reply(q *wire.Msg) *wire.Msg {
	r := new(wire.Msg).SetReply(q)
	r.RecursionAvailable = true
	return r
}

// refuse is an answer without one.
func refuse(q *wire.Msg, rcode int) *wire.Msg {
	r := new(wire.Msg).SetRcode(q, rcode)
	r.RecursionAvailable = true
	return r
}

// sizeFor is how large an answer over UDP may be.
func sizeFor(q *wire.Msg) uint16 {
	if opt := q.IsEdns0(); opt != nil {
		return min(max(opt.UDPSize(), wire.MinMsgSize), largestUDP)
	}
	return wire.MinMsgSize
}

func addressOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}
