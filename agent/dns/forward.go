// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// forwardTimeout is for how long a question waits for all upstreams, and
	// upstreamTimeout for one of them.
	forwardTimeout  = 5 * time.Second
	upstreamTimeout = 2 * time.Second
	// maxForwards is how many questions wait at once, maxPerClient how many of
	// one address: a pod cannot use up what the others need.
	maxForwards  = 512
	maxPerClient = 64
)

var (
	errBusy = errors.New("too many questions are waiting")
	errLoop = errors.New("the resolver that is asked has asked back")
)

// forwarder asks the upstreams. Equal questions that wait at the same time are
// asked once: a question that comes back to this server, through whichever
// resolvers, waits for itself and ends with its time; it never multiplies.
type forwarder struct {
	upstreams []netip.AddrPort
	good      atomic.Uint32 // index of the upstream that answered last
	same      singleflight.Group

	mu      sync.Mutex
	waiting map[netip.Addr]int // questions by client
	total   int
	asked   map[string]struct{} // questions that upstreams have now
}

func newForwarder(upstreams []netip.AddrPort) *forwarder {
	return &forwarder{upstreams: upstreams, waiting: map[netip.Addr]int{}, asked: map[string]struct{}{}}
}

// forward is the answer to a client's question over UDP or TCP. The answer is
// the caller's.
func (f *forwarder) forward(ctx context.Context, q *wire.Msg, from netip.Addr, network string) (*wire.Msg, error) {
	out := question(q)
	key := keyOf(out, network)
	if f.cameBack(key, from) {
		return nil, errLoop
	}
	if !f.enter(from) {
		return nil, errBusy
	}
	defer f.leave(from)
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	// Whoever asked first may be gone while others wait: the time is bounded, but
	// not by the first one's.
	done := f.same.DoChan(key, func() (any, error) {
		f.begin(key)
		defer f.end(key)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forwardTimeout)
		defer cancel()
		return f.ask(ctx, out, network)
	})
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("no resolver has answered within %s", forwardTimeout)
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return clean(q, r.Val.(*wire.Msg).Copy()), nil
	}
}

func (f *forwarder) begin(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[key] = struct{}{}
}

func (f *forwarder) end(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.asked, key)
}

// cameBack reports whether an upstream asks what it is being asked. Loops by way
// of others are not seen here; they end with their time.
func (f *forwarder) cameBack(key string, from netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, asked := f.asked[key]
	return asked && slices.ContainsFunc(f.upstreams, func(u netip.AddrPort) bool { return u.Addr() == from && !from.IsLoopback() })
}

func (f *forwarder) enter(from netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.total >= maxForwards || f.waiting[from] >= maxPerClient {
		return false
	}
	f.total++
	f.waiting[from]++
	return true
}

func (f *forwarder) leave(from netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total--
	if f.waiting[from]--; f.waiting[from] == 0 {
		delete(f.waiting, from)
	}
}

// ask tries one upstream after the other, beginning with the one that answered
// last.
func (f *forwarder) ask(ctx context.Context, q *wire.Msg, network string) (*wire.Msg, error) {
	var errs []error
	var refused *wire.Msg
	first := int(f.good.Load())
	for i := range f.upstreams {
		at := (first + i) % len(f.upstreams)
		r, err := askOne(ctx, q, f.upstreams[at], network)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s: %w", f.upstreams[at], err))
		case r.Rcode == wire.RcodeServerFailure || r.Rcode == wire.RcodeRefused:
			refused = r // perhaps another one knows
		default:
			f.good.Store(uint32(at))
			return r, nil
		}
	}
	if refused != nil {
		return refused, nil
	}
	return nil, errors.Join(errs...)
}

// askOne asks from a port and with a number that nobody can guess, and takes no
// answer to another question.
func askOne(ctx context.Context, q *wire.Msg, at netip.AddrPort, network string) (*wire.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	q = q.Copy()
	q.Id = wire.Id()
	c := &wire.Client{Net: network, Timeout: upstreamTimeout}
	r, _, err := c.ExchangeContext(ctx, q, at.String())
	if err != nil {
		return nil, err
	}
	if !r.Response || len(r.Question) != 1 || !sameQuestion(r.Question[0], q.Question[0]) {
		return nil, errors.New("it answered another question")
	}
	return r, nil
}

func sameQuestion(a, b wire.Question) bool {
	return strings.EqualFold(a.Name, b.Name) && a.Qtype == b.Qtype && a.Qclass == b.Qclass
}

// question is what is sent for a client's question: nothing of it but the
// question itself, its flags and the size of answers.
func question(q *wire.Msg) *wire.Msg {
	out := &wire.Msg{Question: []wire.Question{q.Question[0]}}
	out.RecursionDesired, out.CheckingDisabled, out.AuthenticatedData = q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData
	if opt := q.IsEdns0(); opt != nil {
		out.SetEdns0(sizeFor(q), opt.Do())
	}
	return out
}

func keyOf(q *wire.Msg, network string) string {
	n := q.Question[0]
	key := fmt.Sprintf("%s %d %d %t %t %t %s", network, n.Qtype, n.Qclass, q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData,
		strings.ToLower(n.Name)) // resolvers that guard themselves change the case at each hop
	if opt := q.IsEdns0(); opt != nil {
		key += fmt.Sprintf(" %d %t", opt.UDPSize(), opt.Do())
	}
	return key
}

// clean makes an upstream's answer one to the client's question.
func clean(q, r *wire.Msg) *wire.Msg {
	r.Id, r.Question, r.RecursionAvailable = q.Id, q.Question, true
	r.Authoritative = false
	extra := r.Extra[:0]
	for _, rr := range r.Extra {
		switch rr.Header().Rrtype {
		case wire.TypeOPT, wire.TypeTSIG, wire.TypeSIG: // between the upstream and us
		default:
			extra = append(extra, rr)
		}
	}
	r.Extra = extra
	return r
}
