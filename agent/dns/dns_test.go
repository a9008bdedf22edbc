// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// directory is a Directory of maps.
type directory struct {
	services  map[string][]netip.Addr // namespace/name
	backends  map[string][]Backend
	workloads map[string][]netip.Addr // cluster/namespace/name
	called    map[netip.Addr][]string
	own, all  bool
}

func (d *directory) Service(ns, name string) ([]netip.Addr, bool) {
	v, ok := d.services[ns+"/"+name]
	return v, ok
}
func (d *directory) Backends(ns, name string) []Backend { return d.backends[ns+"/"+name] }
func (d *directory) Workload(c, ns, name string) []netip.Addr {
	if c == "" {
		c = "east"
	}
	return d.workloads[c+"/"+ns+"/"+name]
}
func (d *directory) Cluster(name string) bool { return name == "east" || name == "west" }
func (d *directory) Namespace(ns string) bool { return ns == "demo" }
func (d *directory) Names(a netip.Addr) []string {
	return d.called[a]
}
func (d *directory) Inside(a netip.Addr) bool {
	return netip.MustParsePrefix("10.1.0.0/16").Contains(a) || netip.MustParsePrefix("fd01::/64").Contains(a)
}
func (d *directory) Known() (own, all bool) { return d.own, d.all }

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func newDirectory() *directory {
	d := &directory{
		own: true, all: true,
		services: map[string][]netip.Addr{"demo/echo": {ip("172.31.1.10"), ip("fd00::10")}, "demo/db": nil, "demo/empty": nil, "demo/many": nil},
		backends: map[string][]Backend{
			"demo/echo": {{Cluster: "east", Workload: "echo-1", Addr: ip("10.1.1.3"), Own: true}, {Cluster: "west", Workload: "echo-1", Addr: ip("10.2.1.3")}, {Cluster: "west", Workload: "echo-2", Addr: ip("10.2.2.3")}},
			"demo/db":   {{Cluster: "east", Workload: "db-0", Addr: ip("10.1.1.5"), Own: true}, {Cluster: "east", Workload: "db-0", Addr: ip("10.1.1.5"), Own: true}, {Cluster: "west", Workload: "db-1", Addr: ip("10.2.1.5")}},
		},
		workloads: map[string][]netip.Addr{"east/demo/client": {ip("10.1.1.2")}, "west/demo/client": {ip("10.2.1.2")}, "west/demo/only": {ip("10.2.1.9")}},
		called: map[netip.Addr][]string{
			ip("172.31.1.10"): {"echo.demo"}, ip("10.1.1.2"): {"client.demo"}, ip("10.2.1.2"): {"west.client.demo"}, ip("fd01::5"): {"six.demo"},
		},
	}
	for i := range 200 {
		d.backends["demo/many"] = append(d.backends["demo/many"], Backend{Cluster: "east", Workload: fmt.Sprint("m-", i), Addr: netip.AddrFrom4([4]byte{10, 1, 9, byte(i)}), Own: true})
	}
	return d
}

// start runs a server on loopback and returns its address.
func start(t *testing.T, d Directory, allowed func(netip.Addr) bool, upstreams ...netip.AddrPort) (*Server, string) {
	t.Helper()
	if allowed == nil {
		allowed = func(netip.Addr) bool { return true }
	}
	s, err := New(Config{
		Listen: netip.MustParseAddrPort("127.0.0.1:0"), Upstreams: upstreams, Allowed: allowed, Names: d, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	eventually(t, "the server to listen", func() bool { return s.Status().Listening != "" })
	return s, s.Status().Listening
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func ask(t *testing.T, network, at, name string, qtype uint16) *wire.Msg {
	t.Helper()
	q := new(wire.Msg).SetQuestion(name, qtype)
	r, _, err := (&wire.Client{Net: network, Timeout: 10 * time.Second}).Exchange(q, at)
	if err != nil {
		t.Fatalf("%s over %s: %v", name, network, err)
	}
	return r
}

// said is an answer in a line: code, values sorted, soa when there is one.
func said(r *wire.Msg) string {
	var out []string
	for _, rr := range r.Answer {
		switch v := rr.(type) {
		case *wire.A:
			out = append(out, v.A.String())
		case *wire.AAAA:
			out = append(out, v.AAAA.String())
		case *wire.PTR:
			out = append(out, v.Ptr)
		case *wire.SOA:
			out = append(out, "answer-soa")
		}
		if h := rr.Header(); h.Name != r.Question[0].Name || h.Ttl != ttl {
			out = append(out, "BAD HEADER "+h.String())
		}
	}
	slices.Sort(out)
	for _, rr := range r.Ns {
		if v, ok := rr.(*wire.SOA); ok && v.Hdr.Name == "mesh." && v.Minttl == ttl && v.Hdr.Ttl == ttl {
			out = append(out, "soa")
		}
	}
	return strings.TrimSpace(wire.RcodeToString[r.Rcode] + " " + strings.Join(out, " "))
}

func TestNamesOfTheMesh(t *testing.T) {
	_, at := start(t, newDirectory(), nil)
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"echo.demo.mesh.", wire.TypeA, "NOERROR 172.31.1.10"},
		{"EcHo.DEMO.Mesh.", wire.TypeA, "NOERROR 172.31.1.10"},
		{"echo.demo.mesh.", wire.TypeAAAA, "NOERROR fd00::10"},
		{"echo.demo.mesh.", wire.TypeANY, "NOERROR 172.31.1.10 fd00::10"},
		{"echo.demo.mesh.", wire.TypeMX, "NOERROR soa"},
		{"db.demo.mesh.", wire.TypeA, "NOERROR 10.1.1.5 10.2.1.5"},
		{"db.demo.mesh.", wire.TypeAAAA, "NOERROR soa"},
		{"empty.demo.mesh.", wire.TypeA, "NOERROR soa"},
		{"east.echo.demo.mesh.", wire.TypeA, "NOERROR 10.1.1.3"},
		{"west.echo.demo.mesh.", wire.TypeA, "NOERROR 10.2.1.3 10.2.2.3"},
		{"west.empty.demo.mesh.", wire.TypeA, "NOERROR soa"},
		{"south.echo.demo.mesh.", wire.TypeA, "NXDOMAIN soa"},
		{"echo-2.echo.demo.mesh.", wire.TypeA, "NOERROR 10.2.2.3"},
		{"db-1.db.demo.mesh.", wire.TypeA, "NOERROR 10.2.1.5"},
		{"client.demo.mesh.", wire.TypeA, "NOERROR 10.1.1.2"},
		{"west.client.demo.mesh.", wire.TypeA, "NOERROR 10.2.1.2"},
		// What a peer publishes is no name of this cluster.
		{"only.demo.mesh.", wire.TypeA, "NXDOMAIN soa"},
		{"west.only.demo.mesh.", wire.TypeA, "NOERROR 10.2.1.9"},
		{"nobody.demo.mesh.", wire.TypeA, "NXDOMAIN soa"},
		{"east.nobody.demo.mesh.", wire.TypeA, "NXDOMAIN soa"},
		{"a.east.echo.demo.mesh.", wire.TypeA, "NXDOMAIN soa"},
		{"demo.mesh.", wire.TypeA, "NOERROR soa"},
		{"other.mesh.", wire.TypeA, "NXDOMAIN soa"},
		{"mesh.", wire.TypeA, "NOERROR soa"},
		{"mesh.", wire.TypeSOA, "NOERROR answer-soa"},
		{`ec\.ho.demo.mesh.`, wire.TypeA, "NXDOMAIN soa"},
		{"10.1.31.172.in-addr.arpa.", wire.TypePTR, "NOERROR echo.demo.mesh."},
		{"2.1.1.10.in-addr.arpa.", wire.TypePTR, "NOERROR client.demo.mesh."},
		{"2.1.2.10.IN-ADDR.arpa.", wire.TypePTR, "NOERROR west.client.demo.mesh."},
		{"2.1.1.10.in-addr.arpa.", wire.TypeTXT, "NOERROR soa"},
		{"99.1.1.10.in-addr.arpa.", wire.TypePTR, "NXDOMAIN soa"},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa.", wire.TypePTR, "NOERROR six.demo.mesh."},
		// Nobody else is asked when there are no upstreams.
		{"example.com.", wire.TypeA, "REFUSED"},
		{"1.1.1.1.in-addr.arpa.", wire.TypePTR, "REFUSED"},
		{"1.1.10.in-addr.arpa.", wire.TypePTR, "REFUSED"},
		{"xmesh.", wire.TypeA, "REFUSED"},
		{"demo.mesh.", wire.TypeAXFR, "REFUSED"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := ask(t, network, at, c.name, c.kind)
			if got := said(r); got != c.want {
				t.Errorf("%s %s over %s: %s, want %s", c.name, wire.TypeToString[c.kind], network, got, c.want)
			}
			if ours := strings.HasSuffix(c.want, "soa") || strings.HasPrefix(c.want, "NOERROR"); r.Authoritative != ours || !r.RecursionAvailable {
				t.Errorf("%s: authoritative %v, recursion available %v", c.name, r.Authoritative, r.RecursionAvailable)
			}
		}
	}
}

func TestWhatIsNotKnownYetIsNoNo(t *testing.T) {
	d := newDirectory()
	d.own, d.all = false, false
	s, _ := start(t, d, nil)
	is := func(name string, kind uint16, want string) {
		t.Helper()
		r, _ := s.answer(t.Context(), new(wire.Msg).SetQuestion(name, kind), ip("127.0.0.1"), "udp")
		if got := said(r); got != want {
			t.Errorf("own %v, all %v: %s is %s, want %s", d.own, d.all, name, got, want)
		}
	}
	is("echo.demo.mesh.", wire.TypeA, "NOERROR 172.31.1.10")
	is("nobody.demo.mesh.", wire.TypeA, "SERVFAIL")
	is("other.mesh.", wire.TypeA, "SERVFAIL")
	d.own = true
	is("nobody.demo.mesh.", wire.TypeA, "NXDOMAIN soa")
	is("west.nobody.demo.mesh.", wire.TypeA, "SERVFAIL")
	is("99.1.1.10.in-addr.arpa.", wire.TypePTR, "SERVFAIL")
	d.all = true
	is("west.nobody.demo.mesh.", wire.TypeA, "NXDOMAIN soa")
}

func TestLargeAnswersAreCutAndWholeOverTCP(t *testing.T) {
	_, at := start(t, newDirectory(), nil)
	r := ask(t, "udp", at, "many.demo.mesh.", wire.TypeA)
	r.Compress = true // as it came
	if !r.Truncated || r.Len() > wire.MinMsgSize || len(r.Answer) == 0 {
		t.Errorf("over UDP: truncated %v, %d bytes, %d answers; want some, in 512 bytes", r.Truncated, r.Len(), len(r.Answer))
	}
	q := new(wire.Msg).SetQuestion("many.demo.mesh.", wire.TypeA)
	q.SetEdns0(65535, false)
	r, _, err := (&wire.Client{}).Exchange(q, at)
	if err == nil {
		r.Compress = true
	}
	if err != nil || !r.Truncated || r.Len() > largestUDP || r.IsEdns0() == nil {
		t.Errorf("with EDNS: %v, %d bytes; want at most %d", err, r.Len(), largestUDP)
	}
	if r = ask(t, "tcp", at, "many.demo.mesh.", wire.TypeA); r.Truncated || len(r.Answer) != 200 {
		t.Errorf("over TCP: truncated %v, %d answers, want 200", r.Truncated, len(r.Answer))
	}
}

func TestStrangersGetNothing(t *testing.T) {
	open := &atomic.Bool{}
	s, at := start(t, newDirectory(), func(netip.Addr) bool { return open.Load() })
	for _, network := range []string{"udp", "tcp"} {
		q := new(wire.Msg).SetQuestion("echo.demo.mesh.", wire.TypeA)
		before := s.Status().Refused[refusedSource]
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // no time decides: the refusal does
			for s.Status().Refused[refusedSource] == before && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		c := &wire.Client{Net: network, Timeout: time.Second}
		if r, _, err := c.ExchangeContext(ctx, q, at); err == nil {
			t.Errorf("a stranger was told over %s: %s", network, said(r))
		}
		eventually(t, "the refusal over "+network, func() bool { return s.Status().Refused[refusedSource] > before })
		cancel()
	}
	open.Store(true)
	for _, network := range []string{"udp", "tcp"} {
		if got := said(ask(t, network, at, "echo.demo.mesh.", wire.TypeA)); got != "NOERROR 172.31.1.10" {
			t.Errorf("one who may ask got %s", got)
		}
	}
}

func TestBadPackets(t *testing.T) {
	s, at := start(t, newDirectory(), nil)
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	good, _ := new(wire.Msg).SetQuestion("echo.demo.mesh.", wire.TypeA).Pack()
	bad := [][]byte{{}, {0}, make([]byte, 11), make([]byte, 12), make([]byte, 4096), good[:13], good[:len(good)-1]}
	for i := range good { // every byte changed once
		b := slices.Clone(good)
		b[i] ^= 0xff
		bad = append(bad, b)
	}
	loop := slices.Clone(good)
	loop[12], loop[13] = 0xc0, 12 // a name that points to itself
	bad = append(bad, loop)
	for _, b := range bad {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	tcp, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = tcp.Write([]byte{0xff, 0xff, 1, 2, 3})
	tcp.Close()
	if got := said(ask(t, "udp", at, "echo.demo.mesh.", wire.TypeA)); got != "NOERROR 172.31.1.10" {
		t.Errorf("after bad packets: %s", got)
	}
	if s.Status().Refused[refusedMalformed] == 0 {
		t.Error("no bad packet was counted")
	}
}

func TestOddQuestions(t *testing.T) {
	s, _ := start(t, newDirectory(), nil)
	is := func(what, want string, change func(*wire.Msg)) {
		t.Helper()
		q := new(wire.Msg).SetQuestion("echo.demo.mesh.", wire.TypeA)
		change(q)
		r, _ := s.answer(t.Context(), q, ip("127.0.0.1"), "udp")
		if got := rcodeName(r.Rcode); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	is("two questions", "FORMERR", func(q *wire.Msg) { q.Question = append(q.Question, q.Question[0]) })
	is("none", "FORMERR", func(q *wire.Msg) { q.Question = nil })
	is("an update", "NOTIMP", func(q *wire.Msg) { q.Opcode = wire.OpcodeUpdate })
	is("class chaos", "REFUSED", func(q *wire.Msg) { q.Question[0].Qclass = wire.ClassCHAOS })
	is("EDNS 1", "BADVERS", func(q *wire.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) })
	is("EDNS 0", "NOERROR", func(q *wire.Msg) { q.SetEdns0(1232, true) })
}

// FuzzAnswer feeds packets to everything behind the socket.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"echo.demo.mesh.", ".", "mesh.", "west.echo.demo.mesh.", "1.0.0.127.in-addr.arpa.", `\000\255.mesh.`} {
		q := new(wire.Msg).SetQuestion(name, wire.TypeANY)
		raw, _ := q.Pack()
		f.Add(raw)
		q.SetEdns0(100, true)
		raw, _ = q.Pack()
		f.Add(raw)
	}
	s, err := New(Config{
		Listen: netip.MustParseAddrPort("127.0.0.1:0"), Names: newDirectory(), Log: slog.New(slog.DiscardHandler),
		Allowed: func(netip.Addr) bool { return true },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := new(wire.Msg)
		if q.Unpack(raw) != nil {
			return
		}
		w := &memory{}
		s.handle(t.Context(), w, q, "udp")
		if w.answer == nil || w.answer.Id != q.Id {
			t.Fatalf("no answer to %x", raw)
		}
		if _, err := w.answer.Pack(); err != nil && len(q.Question) == 1 {
			t.Fatalf("the answer to %x cannot be sent: %v", raw, err)
		}
	})
}

// memory is a wire.ResponseWriter that keeps the answer.
type memory struct {
	wire.ResponseWriter
	answer *wire.Msg
}

func (m *memory) RemoteAddr() net.Addr       { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9} }
func (m *memory) WriteMsg(r *wire.Msg) error { m.answer = r; return nil }

// Names mean the backends that connections go to: those of the best rank, in all
// clusters or in the one that is named; and a peer does not take the name of a
// backend of ours.
func TestBestBackends(t *testing.T) {
	d := newDirectory()
	d.backends["demo/db"] = []Backend{
		{Cluster: "east", Workload: "db-0", Addr: ip("10.1.1.5"), Own: true, Rank: 2}, {Cluster: "east", Workload: "db-1", Addr: ip("10.1.1.6"), Own: true, Rank: 4},
		{Cluster: "west", Workload: "db-0", Addr: ip("10.2.1.5")}, {Cluster: "west", Workload: "db-2", Addr: ip("10.2.1.6"), Rank: 4},
	}
	s := &Server{cfg: Config{Names: d}}
	for _, c := range []struct {
		got  []netip.Addr
		want string
	}{
		{s.plain("demo", "db").addrs, "10.2.1.5"},
		{s.qualified("east", "demo", "db").addrs, "10.1.1.5"},
		{s.qualified("west", "demo", "db").addrs, "10.2.1.5"},
		{s.qualified("db-0", "demo", "db").addrs, "10.1.1.5"},
		{s.qualified("db-2", "demo", "db").addrs, "10.2.1.6"},
	} {
		if len(c.got) != 1 || c.got[0] != ip(c.want) {
			t.Errorf("answered %v, want %s", c.got, c.want)
		}
	}
}

// Of each family the best backends are answered, as connections choose.
func TestBestOfEachFamily(t *testing.T) {
	d := newDirectory()
	d.backends["demo/db"] = []Backend{
		{Cluster: "east", Workload: "db-0", Addr: ip("10.1.1.5"), Own: true}, {Cluster: "east", Workload: "db-1", Addr: ip("10.1.1.6"), Own: true, Rank: 1},
		{Cluster: "east", Workload: "db-1", Addr: ip("fd00::6"), Own: true, Rank: 1}, {Cluster: "east", Workload: "db-2", Addr: ip("fd00::7"), Own: true, Rank: 2},
	}
	_, at := start(t, d, nil)
	for qtype, want := range map[uint16]string{wire.TypeA: "10.1.1.5", wire.TypeAAAA: "fd00::6"} {
		r := ask(t, "udp", at, "db.demo.mesh.", qtype)
		if len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), "\t"+want) {
			t.Errorf("%s: %v, want %s", wire.TypeToString[qtype], r.Answer, want)
		}
	}
}
