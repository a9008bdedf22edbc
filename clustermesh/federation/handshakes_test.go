// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// knock offers a certificate to the federation port, and waits until it is told
// what becomes of the connection.
func knock(t *testing.T, at *testCluster, cfg *tls.Config) {
	t.Helper()
	raw, err := net.Dial("tcp", at.m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, cfg)
	_ = c.SetDeadline(time.Now().Add(within))
	if err := c.HandshakeContext(t.Context()); err == nil {
		_, _ = c.Read(make([]byte, 1))
	}
}

// Each handshake that is refused is counted once, by its reason.
func TestRefusedHandshakesAreCounted(t *testing.T) {
	a, b := pair(t)
	stranger, err := pki.NewCA("nobody", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	poser, err := pki.NewCA(b.name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	agent, err := b.etcd.CA.Issue(pki.Request{Role: pki.RoleAgent, Name: "n1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	expired, err := b.etcd.CA.Issue(pki.Request{Role: pki.RoleAPIServer}, time.Now().Add(-10*365*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	with := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: certs, InsecureSkipVerify: true, ServerName: peering.FederationServerName, NextProtos: []string{"h2"}}
	}
	old := with(*apiServerOf(t, b.etcd.CA))
	old.MaxVersion = tls.VersionTLS12
	unbelieving := with(*apiServerOf(t, b.etcd.CA))
	unbelieving.VerifyConnection = func(tls.ConnectionState) error { return errors.New("no") }
	plain := with(*apiServerOf(t, b.etcd.CA))
	plain.NextProtos = nil
	agentCert, expiredCert := agent.TLS(), expired.TLS()
	for what, tc := range map[string]struct {
		cfg    *tls.Config
		reason string
	}{
		"a cluster that is no peer":   {with(*apiServerOf(t, stranger)), "stranger"},
		"the peer's name, another CA": {with(*apiServerOf(t, poser)), "authority"},
		"an agent":                    {with(agentCert), "role"},
		"a certificate of long ago":   {with(expiredCert), "expired"},
		"ourselves":                   {with(*apiServerOf(t, a.etcd.CA)), "own"},
		"no certificate":              {with(), "tls"},
		"an old TLS":                  {old, "tls"},
		"no HTTP/2":                   {plain, "tls"},
		"who does not believe us":     {unbelieving, "remote"},
	} {
		before := a.m.RefusedHandshakes()
		knock(t, a, tc.cfg)
		before[tc.reason]++
		eventually(t, what+" to be counted as "+tc.reason, func() bool { return a.m.RefusedHandshakes()[tc.reason] == before[tc.reason] })
		for reason, n := range a.m.RefusedHandshakes() {
			if n != before[reason] {
				t.Errorf("%s: %d counted as %s, want %d", what, n, reason, before[reason])
			}
		}
	}
	raw, err := net.Dial("tcp", a.m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw.Close()
	eventually(t, "who hangs up to be counted", func() bool { return a.m.RefusedHandshakes()["closed"] == 1 })
	if a.status(b).GetState() != stateConnected {
		t.Error("the peer's stream did not live through it")
	}
}

// A flood of refused handshakes does not fill the log; who only hangs up is not in it.
func TestRefusedHandshakesAreLoggedNowAndThen(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	now := time.Unix(1e9, 0)
	h := &handshakes{now: func() time.Time { return now }}
	from := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 40000}
	for range 100 {
		h.refuse(log, from, peering.NoPeerAnyMore("west"))
		h.refuse(log, from, io.EOF)
	}
	now = now.Add(handshakesLogged)
	h.refuse(log, from, peering.NoPeerAnyMore("west"))
	if lines := strings.Count(out.String(), "handshake refused"); lines != handshakesTold+1 || !strings.Contains(out.String(), "untold_before=95") ||
		strings.Count(out.String(), "level=WARN") != lines || !strings.Contains(out.String(), "from=192.0.2.7:40000 reason=stranger") || strings.Contains(out.String(), "EOF") {
		t.Errorf("%d lines:\n%s", lines, out.String())
	}
	if got := h.byReason(); got["stranger"] != 101 || got["closed"] != 100 || len(got) != len(HandshakeReasons()) {
		t.Errorf("counted %v", got)
	}
}

// A peer that is removed after its certificate was believed is not served.
func TestPeerRemovedBetweenHandshakeAndService(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	trust, err := peering.NewTrust(a.name, a.creds, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for _, removed := range []bool{false, true} {
		if err := trust.SetPeer(b.name, [][]byte{b.etcd.CA.Certificate().Raw}); err != nil {
			t.Fatal(err)
		}
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p := newPort(lis, trust, a.m, a.m.join, time.Now, slog.New(slog.DiscardHandler))
		go knockAt(lis.Addr().String(), &tls.Config{Certificates: []tls.Certificate{*apiServerOf(t, b.etcd.CA)},
			InsecureSkipVerify: true, ServerName: peering.FederationServerName, NextProtos: []string{"h2"}})
		raw, err := lis.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Server(raw, trust.ServerConfig())
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if removed {
			trust.RemovePeer(b.name)
		}
		fed, routed := newHandover(lis.Addr()), make(chan struct{})
		go func() { defer close(routed); p.route(c, fed, newHandover(lis.Addr())) }()
		select {
		case <-routed:
			if !removed {
				t.Error("a peer was not served")
			}
			if n := p.refused.byReason()["stranger"]; n != 1 || len(p.conns) != 0 {
				t.Errorf("%d counted, %d connections kept", n, len(p.conns))
			}
		case got := <-fed.conns:
			if removed {
				t.Error("a peer that was removed is served")
			}
			got.Close()
		case <-time.After(within):
			t.Error("the connection went nowhere")
		}
		raw.Close()
		lis.Close()
	}
}

// Who opens connections and says nothing leaves room for callers from elsewhere.
func TestSilentCallersLeaveRoom(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	trust, err := peering.NewTrust(a.name, a.creds, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := trust.SetPeer(b.name, [][]byte{b.etcd.CA.Certificate().Raw}); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPort(lis, trust, a.m, a.m.join, time.Now, slog.New(slog.DiscardHandler))
	p.within = time.Hour // the silent stay
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for range 2 * handshakesAtOne {
		c, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "the silent to be hung up on, but for half", func() bool {
		return p.refused.byReason()["crowd"] == 2*handshakesAtOne-handshakesAtOne/2
	})
	elsewhere := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: within}
	for range handshakesOfOne / 2 {
		c, err := tls.DialWithDialer(elsewhere, "tcp", lis.Addr().String(), &tls.Config{Certificates: []tls.Certificate{*apiServerOf(t, b.etcd.CA)},
			InsecureSkipVerify: true, ServerName: peering.FederationServerName, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatalf("a peer from another address: %v", err)
		}
		c.Close()
	}
	if n := p.refused.byReason()["timeout"]; n != 0 {
		t.Errorf("%d of the silent have ended: this shows nothing", n)
	}
}

// What counts as one caller.
func TestSourcesOfHandshakes(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7/32", "[::ffff:192.0.2.7]:1": "192.0.2.7/32", "[2001:db8::1:2:3:4]:1": "2001:db8::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		if got := sourceOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got.String() != want {
			t.Errorf("%s counts as %s, want %s", addr, got, want)
		}
	}
	s := sources{begun: map[netip.Prefix]int{}}
	one, two := netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("192.0.2.8/32")
	for range handshakesOfOne {
		if !s.enter(one, true) {
			t.Fatal("too few")
		}
	}
	if s.enter(one, true) || !s.enter(two, true) || !s.enter(one, false) {
		t.Error("one address is limited, when room is scarce")
	}
	for range handshakesOfOne + 1 {
		s.leave(one)
	}
	if s.leave(two); len(s.begun) != 0 || !s.enter(one, true) {
		t.Errorf("still under way: %v", s.begun)
	}
}

// knockAt is a caller that stays until it is hung up on.
func knockAt(addr string, cfg *tls.Config) {
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Read(make([]byte, 1))
}
