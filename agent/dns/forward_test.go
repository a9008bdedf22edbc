// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	wire "github.com/miekg/dns"

	"github.com/hawser-mesh/hawser/internal/testutil/ports"
)

// upstream is a played resolver on loopback, UDP and TCP.
func upstream(t *testing.T, h wire.HandlerFunc) netip.AddrPort {
	t.Helper()
	at := ports.Free(t).String() // of both protocols
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*wire.Server{{PacketConn: pc, Handler: h}, {Listener: lis, Handler: h}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() { _ = s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

func answerA(w wire.ResponseWriter, q *wire.Msg, a string) {
	r := new(wire.Msg).SetReply(q)
	rr, _ := wire.NewRR(q.Question[0].Name + " 5 IN A " + a)
	r.Answer = []wire.RR{rr}
	_ = w.WriteMsg(r)
}

func TestOthersAreAsked(t *testing.T) {
	var seen atomic.Pointer[wire.Msg]
	up := upstream(t, func(w wire.ResponseWriter, q *wire.Msg) {
		seen.Store(q)
		if q.Question[0].Name == "gone.example." {
			_ = w.WriteMsg(new(wire.Msg).SetRcode(q, wire.RcodeNameError))
			return
		}
		answerA(w, q, "192.0.2.7")
	})
	s, at := start(t, newDirectory(), nil, up)
	for _, network := range []string{"udp", "tcp"} {
		if got := said(ask(t, network, at, "example.com.", wire.TypeA)); got != "NOERROR 192.0.2.7" {
			t.Errorf("over %s: %s", network, got)
		}
	}
	if got := said(ask(t, "udp", at, "gone.example.", wire.TypeA)); got != "NXDOMAIN" {
		t.Errorf("what does not exist: %s", got)
	}
	seen.Store(nil)
	if got := said(ask(t, "udp", at, "nobody.demo.mesh.", wire.TypeA)); got != "NXDOMAIN soa" || seen.Load() != nil {
		t.Errorf("a name of the mesh: %s; it left the node: %v", got, seen.Load())
	}
	// What else a client says stays here.
	q := new(wire.Msg).SetQuestion("example.com.", wire.TypeA)
	q.SetEdns0(4096, false)
	q.IsEdns0().Option = []wire.EDNS0{&wire.EDNS0_LOCAL{Code: 65001, Data: []byte("secret")}}
	r, _, err := (&wire.Client{}).Exchange(q, at)
	if err != nil || r.IsEdns0() == nil || len(seen.Load().IsEdns0().Option) != 0 {
		t.Errorf("with EDNS: %v; the upstream saw %v", err, seen.Load())
	}
	st := s.Status()
	if st.Forwards != 4 || st.ForwardFailed != 0 || st.Answers[AnswerKey{KindForwarded, "NOERROR", "udp"}] != 2 {
		t.Errorf("counted %+v", st)
	}
}

func TestCutAnswersStayCut(t *testing.T) {
	up := upstream(t, func(w wire.ResponseWriter, q *wire.Msg) {
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			r := new(wire.Msg).SetReply(q)
			r.Truncated = true
			_ = w.WriteMsg(r)
			return
		}
		answerA(w, q, "192.0.2.8")
	})
	_, at := start(t, newDirectory(), nil, up)
	if r := ask(t, "udp", at, "big.example.", wire.TypeA); !r.Truncated {
		t.Error("the client is not told to ask over TCP")
	}
	if got := said(ask(t, "tcp", at, "big.example.", wire.TypeA)); got != "NOERROR 192.0.2.8" {
		t.Errorf("over TCP: %s", got)
	}
}

func TestAnotherUpstreamIsAskedAndRemembered(t *testing.T) {
	var first, second atomic.Int32
	bad := upstream(t, func(w wire.ResponseWriter, q *wire.Msg) {
		first.Add(1)
		_ = w.WriteMsg(new(wire.Msg).SetRcode(q, wire.RcodeServerFailure))
	})
	good := upstream(t, func(w wire.ResponseWriter, q *wire.Msg) {
		second.Add(1)
		answerA(w, q, "192.0.2.9")
	})
	_, at := start(t, newDirectory(), nil, bad, good)
	for i := range 3 {
		if got := said(ask(t, "udp", at, fmt.Sprintf("a%d.example.", i), wire.TypeA)); got != "NOERROR 192.0.2.9" {
			t.Errorf("question %d: %s", i, got)
		}
	}
	if first.Load() != 1 || second.Load() != 3 {
		t.Errorf("the one that fails was asked %d times, the other %d; want 1 and 3", first.Load(), second.Load())
	}
}

func TestAnswersToOtherQuestionsAreNotTaken(t *testing.T) {
	up := upstream(t, func(w wire.ResponseWriter, q *wire.Msg) {
		q.Question[0].Name = "other.example."
		answerA(w, q, "192.0.2.66")
	})
	_, at := start(t, newDirectory(), nil, up)
	if got := said(ask(t, "udp", at, "example.com.", wire.TypeA)); got != "SERVFAIL" {
		t.Errorf("got %s", got)
	}
}

// An upstream that asks this server again must not make questions out of one.
func TestALoopEndsByItself(t *testing.T) {
	var asked atomic.Int32
	var at atomic.Pointer[string]
	up := upstream(t, func(w wire.ResponseWriter, q *wire.Msg) {
		asked.Add(1)
		c := q.Copy()
		c.Id = wire.Id()
		// From another address than the upstream's own, with the case changed.
		if asked.Load()%2 == 1 {
			c.Question[0].Name = "LOOP.example."
		}
		d := &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)}}
		if r, _, err := (&wire.Client{Dialer: d, Timeout: 2 * forwardTimeout}).Exchange(c, *at.Load()); err == nil {
			r.Id, r.Question = q.Id, q.Question
			_ = w.WriteMsg(r)
		}
	})
	s, addr := start(t, newDirectory(), nil, up)
	at.Store(&addr)
	// The client is not the upstream's address either.
	q := new(wire.Msg).SetQuestion("loop.example.", wire.TypeA)
	c := &wire.Client{Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 8)}}, Timeout: 2 * forwardTimeout}
	r, _, err := c.Exchange(q, addr)
	if err != nil || said(r) != "SERVFAIL" {
		t.Errorf("a loop: %v %v, want SERVFAIL", err, r)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the upstream was asked %d times, want once", n)
	}
	if st := s.Status(); st.ForwardFailed != 2 {
		t.Errorf("counted %+v, want the question and the one that came back", st)
	}
	// One that asks back from the address at which it is asked is told at once.
	f := newForwarder([]netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:53")})
	key := keyOf(question(q), "udp")
	f.begin(key)
	if _, err := f.forward(t.Context(), q, ip("10.0.0.9"), "udp"); !errors.Is(err, errLoop) {
		t.Errorf("the upstream itself: %v, want %v", err, errLoop)
	}
	f.end(key)
	if f.cameBack(key, ip("10.0.0.9")) {
		t.Error("nobody asks any more, and it still is a loop")
	}
}

func TestOneClientDoesNotUseUpWhatOthersNeed(t *testing.T) {
	hold := make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(hold) }) }
	defer release()
	var waiting atomic.Int32
	up := upstream(t, func(w wire.ResponseWriter, q *wire.Msg) {
		if q.Question[0].Name != "free.example." {
			waiting.Add(1)
			<-hold
		}
		answerA(w, q, "192.0.2.1")
	})
	f := newForwarder([]netip.AddrPort{up})
	var wg sync.WaitGroup
	question := func(i int) *wire.Msg { return new(wire.Msg).SetQuestion(fmt.Sprintf("q%d.example.", i), wire.TypeA) }
	for i := range maxPerClient {
		wg.Go(func() { _, _ = f.forward(t.Context(), question(i), ip("10.1.1.2"), "tcp") })
	}
	eventually(t, "all to wait", func() bool { return waiting.Load() == maxPerClient })
	if _, err := f.forward(t.Context(), question(1000), ip("10.1.1.2"), "udp"); !errors.Is(err, errBusy) {
		t.Errorf("one question more: %v, want %v", err, errBusy)
	}
	if _, err := f.forward(t.Context(), new(wire.Msg).SetQuestion("free.example.", wire.TypeA), ip("10.1.1.3"), "udp"); err != nil {
		t.Errorf("another client: %v", err)
	}
	release()
	wg.Wait()
	if f.total != 0 || len(f.waiting) != 0 {
		t.Errorf("%d wait after all have been answered: %v", f.total, f.waiting)
	}
}

func TestHostUpstreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.1\nnameserver bad\nnameserver\n" +
		"nameserver 0.0.0.0\nnameserver fd00::53\nnameserver 10.0.0.3\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := HostUpstreams(path, netip.MustParseAddrPort("10.0.0.1:53"))
	want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:53"), netip.MustParseAddrPort("[fd00::53]:53"), netip.MustParseAddrPort("10.0.0.3:53")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v, want %v", got, err, want)
	}
	if got, err := HostUpstreams(path+".none", want[0]); err != nil || got != nil {
		t.Errorf("without a file: %v %v", got, err)
	}
}

func TestAnAddressInUseIsTriedAgain(t *testing.T) {
	at := ports.Free(t).String() // of both protocols
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Listen: netip.MustParseAddrPort(pc.LocalAddr().String()), Names: newDirectory(), Log: slog.New(slog.DiscardHandler),
		Allowed: func(netip.Addr) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- s.Run(ctx) }()
	eventually(t, "the problem to be told", func() bool { return s.Status().Problem != "" })
	_ = pc.Close()
	eventually(t, "the server to listen", func() bool { return s.Status().Listening != "" })
	if p := s.Status().Problem; p != "" {
		t.Errorf("it listens, and still says %q", p)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("it ended with %v", err)
	}
}
