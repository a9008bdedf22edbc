// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// service6 is service for IPv6.
func (h *harness) service6(backends ...host) {
	h.t.Helper()
	h.serve(vip6, 80, tcp, backends...)
	h.sync()
}

func TestServiceOnThisNode6(t *testing.T) {
	h := newHarness(t)
	h.service6(podB6)
	r := h.passed(h.from6(segment(podA6.ip, vip6, 1000, 80, "S")))
	expect(t, r.out, podA6.ip, 1000, podB6.ip, 8080)
	r = h.passed(h.fromPod(podB, h.sent(podB, segment(podB6.ip, podA6.ip, 8080, 1000, "SA"))))
	expect(t, r.out, vip6, 80, podA6.ip, 1000)
	r = h.passed(h.from6(segment(podA6.ip, vip6, 1000, 80, "A")))
	expect(t, r.out, podA6.ip, 1000, podB6.ip, 8080)
	if all, open := h.flows6(); len(all) != 2 || open != 0 {
		t.Errorf("%d flows, %d half-open, want 2 and 0", len(all), open)
	}
	// Its port is of its protocol, and an IPv4 backend is none.
	if r := h.from6(datagram(podA6.ip, vip6, 1000, 80, 4)); r.act != actOK {
		t.Errorf("a datagram: verdict %d", r.act)
	}
	h.service6(podB)
	h.answered(h.from6(segment(podA6.ip, vip6, 1001, 80, "S")), maps.DropNoBackend)
}

func TestServiceOnAnotherNode6(t *testing.T) {
	h := newHarness(t)
	h.service6(podR6)
	r := h.passed(h.from6(segment(podA6.ip, vip6, 1000, 80, "S")))
	expect(t, unwrapped(r.out), podA6.ip, 1000, podR6.ip, 8080)
	r = h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 8080, 1000, "SA"))))
	expect(t, r.out, vip6, 80, podA6.ip, 1000)
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true})
	e := h.dropped(h.from6(segment(podA6.ip, vip6, 1000, 80, "A")), maps.DropPolicyDenied)
	if e.DestID != idR {
		t.Errorf("event %+v", e)
	}
}

func TestServiceSpreadsAndStays6(t *testing.T) {
	h := newHarness(t)
	h.service6(podB6, podR6)
	hit := map[int]int{}
	for port := range uint16(40) {
		first := len(h.passed(h.from6(segment(podA6.ip, vip6, 1000+port, 80, "S"))).out)
		again := len(h.passed(h.from6(segment(podA6.ip, vip6, 1000+port, 80, "S"))).out)
		if first != again {
			t.Fatal("a flow changed its backend")
		}
		hit[first]++
	}
	if len(hit) != 2 {
		t.Errorf("40 flows reached %d backends, want 2", len(hit))
	}
	// All nodes choose the same: so does this one when it has forgotten.
	h.forgetFlows()
	again := map[int]int{}
	for port := range uint16(40) {
		again[len(h.passed(h.from6(segment(podA6.ip, vip6, 1000+port, 80, "S"))).out)]++
	}
	for n := range hit {
		if again[n] != hit[n] {
			t.Errorf("flows spread as %v, then as %v", hit, again)
		}
	}
	h.service6(podB6)
	for port := range uint16(40) {
		r := h.passed(h.from6(segment(podA6.ip, vip6, 1000+port, 80, "S")))
		expect(t, r.out, podA6.ip, 1000+port, podB6.ip, 8080)
	}
}

func TestServiceHairpin6(t *testing.T) {
	h := newHarness(t)
	h.service6(podA6)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true})
	r := h.passed(h.from6(segment(podA6.ip, vip6, 1000, 80, "S")))
	expect(t, r.out, "100::2a01", 1000, podA6.ip, 8080)
	r = h.passed(h.from6(segment(podA6.ip, "100::2a01", 8080, 1000, "SA")))
	expect(t, r.out, vip6, 80, podA6.ip, 1000)
	r = h.passed(h.from6(segment(podA6.ip, vip6, 1000, 80, "A")))
	expect(t, r.out, "100::2a01", 1000, podA6.ip, 8080)
}

func TestAddressBecomesService6(t *testing.T) {
	h := newHarness(t)
	syn := segment(podA6.ip, vip6, 1000, 80, "S")
	if r := h.from6(syn); r.act != actOK {
		t.Fatalf("verdict %d", r.act)
	}
	h.service6(podB6)
	expect(t, h.passed(h.from6(syn)).out, podA6.ip, 1000, podB6.ip, 8080)
}

// A client stays with its backend, also across flows, and leaves it with it.
func TestSessionAffinity6(t *testing.T) {
	h := newHarness(t)
	k := datapath.FrontendKey{Addr: addr(vip6), Port: 80, Protocol: tcp}
	backends := func(hosts ...host) {
		f := datapath.Frontend{Service: 1, Affinity: 100}
		for _, b := range hosts {
			f.Backends = append(f.Backends, datapath.Backend{Addr: addr(b.ip), Port: 8080})
		}
		h.tables.Frontends.Set(k, f)
		h.sync()
	}
	backends(podB6, podR6)
	reached := map[int]int{}
	for port := range uint16(30) {
		reached[len(h.passed(h.from6(segment(podA6.ip, vip6, 1000+port, 80, "S"))).out)]++
	}
	if len(reached) != 1 {
		t.Errorf("one client reached %v", reached)
	}
	clients, err := maps.Dump[maps.AffinityKey, maps.Affinity](h.d.Maps().Affinities)
	if err != nil || len(clients) != 1 {
		t.Errorf("clients %v: %v", clients, err)
	}
	for c := range clients {
		if c.Client.Netip().String() != podA6.ip {
			t.Errorf("client %s", c.Client.Netip())
		}
	}
	backends(podR6)
	expect(t, unwrapped(h.passed(h.from6(segment(podA6.ip, vip6, 2000, 80, "S"))).out), podA6.ip, 2000, podR6.ip, 8080)
	backends(podB6)
	expect(t, h.passed(h.from6(segment(podA6.ip, vip6, 2001, 80, "S"))).out, podA6.ip, 2001, podB6.ip, 8080)
}

func TestNoBackendIsTold6(t *testing.T) {
	h := newHarness(t)
	h.serve(vip6, 80, tcp)
	h.serve(vip6, 80, udp)
	h.sync()
	from := map[string]func([]gopacket.SerializableLayer) result{
		podA6.ip: h.from6,
		self6:    func(ls []gopacket.SerializableLayer) result { return h.fromHost(h.plain(ls)) },
	}
	for src, send := range from {
		for name, c := range map[string]struct {
			flags    string
			seq, ack uint32 // of the reset, for a segment with 4 bytes
			want     string
		}{
			"S": {"S", 0, 7 + 4 + 1, "RA"}, "A": {"A", 9, 0, "R"}, "F": {"F", 0, 7 + 4 + 1, "RA"}, "FA": {"FA", 9, 0, "R"},
		} {
			t.Run(name+" from "+src, func(t *testing.T) {
				h.t = t
				ls := segment(src, vip6, 1000, 80, c.flags)
				tcp := ls[1].(*layers.TCP)
				tcp.Seq, tcp.Ack = 7, 9
				r := send(ls)
				h.answered(r, maps.DropNoBackend)
				expect(t, r.out, vip6, 80, src, 1000)
				_, i, l4 := decode6(t, r.out)
				got := l4.(*layers.TCP)
				if !got.RST || got.ACK != (c.want == "RA") || got.SYN || got.FIN || got.Seq != c.seq || got.Ack != c.ack || i.Length != 20 {
					t.Errorf("answer %+v", got)
				}
			})
		}
		t.Run("reset from "+src, func(t *testing.T) {
			h.t = t
			h.dropped(send(segment(src, vip6, 1000, 80, "R")), maps.DropNoBackend)
		})
		for _, size := range []int{0, 4, 100, 1000} {
			t.Run("datagram from "+src, func(t *testing.T) {
				h.t = t
				r := send(datagram(src, vip6, 1000, 80, size))
				h.answered(r, maps.DropNoBackend)
				_, i, _ := decode6(t, r.out)
				icmp := r.out[54:]
				if i.SrcIP.String() != vip6 || i.DstIP.String() != src || icmp[0] != 1 || icmp[1] != 4 ||
					net.IP(icmp[8+24:8+40]).String() != vip6 || binary.BigEndian.Uint16(icmp[8+40+2:]) != 80 {
					t.Errorf("answer %v %x", i, icmp)
				}
			})
		}
	}
}

func TestHostToService6(t *testing.T) {
	h := newHarness(t)
	h.service6(podB6)
	r := h.passed(h.fromHost(h.plain(segment(self6, vip6, 1000, 80, "S"))))
	expect(t, r.out, self6, 1000, podB6.ip, 8080)
	r = h.passed(h.fromPod(podB, h.sent(podB, segment(podB6.ip, self6, 8080, 1000, "SA"))))
	expect(t, r.out, vip6, 80, self6, 1000)
	r = h.passed(h.fromHost(h.plain(segment(self6, vip6, 1000, 80, "A"))))
	expect(t, r.out, self6, 1000, podB6.ip, 8080)
	h.service6(podR6)
	r = h.passed(h.fromHost(h.plain(segment(self6, vip6, 1001, 80, "S"))))
	expect(t, unwrapped(r.out), self6, 1001, podR6.ip, 8080)
	r = h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, self6, 8080, 1001, "SA"))))
	expect(t, r.out, vip6, 80, self6, 1001)
	h.dropped(h.fromHost(h.plain(segment(outside6, vip6, 1001, 80, "S"))), maps.DropNoTunnelEndpoint)
	// The flow of a backend that went is given another one.
	r = h.passed(h.fromHost(h.plain(segment(self6, vip6, 1000, 80, "A"))))
	expect(t, unwrapped(r.out), self6, 1000, podR6.ip, 8080)
}

func TestConntrackFull6(t *testing.T) {
	h := newHarness(t)
	h.establishFrom(podA6, podR6, 1000)
	ct := h.d.Maps().Ct6
	for i := range ct.MaxEntries() - 1 {
		k := maps.Tuple6{Source: maps.Addr{1, byte(i >> 16), byte(i >> 8), byte(i)}}
		if err := ct.Put(k, maps.CTEntry{}); err != nil {
			t.Fatalf("filling entry %d: %v", i, err)
		}
	}
	h.passed(h.from6(segment(podA6.ip, podR6.ip, 1001, 80, "S")))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 80, 1001, "SA"))))
	h.dropped(h.from6(segment(podA6.ip, podR6.ip, 1001, 80, "A")), maps.DropConntrackFull)
	h.passed(h.from6(segment(podA6.ip, podR6.ip, 1000, 80, "A")))
	// IPv4 has a table of its own.
	h.establish(1000)
}

func TestConntrackCounts6(t *testing.T) {
	h := newHarness(t)
	h.establishFrom(podA6, podR6, 1000)
	h.passed(h.from6(segment(podA6.ip, podR6.ip, 1000, 80, "FA")))
	all, open := h.flows6()
	if len(all) != 1 || open != 0 {
		t.Fatalf("%d flows, %d half-open", len(all), open)
	}
	var now uint32
	for k, e := range all {
		now = e.LastSeen
		if e.Packets != [2]uint32{3, 1} || e.Bytes[0] == 0 || e.TCP != maps.CTFinForward || e.SrcID != uint32(idA) ||
			e.DstID != uint32(idR) || e.Flags&maps.CTReplied == 0 || k.Source.Netip().String() != podA6.ip || k.SourcePort.Uint16() != 1000 {
			t.Errorf("%+v: %+v", k, e)
		}
	}
	limits := maps.Timeouts{TCP: 1000, HalfOpen: 10, Closing: 100, Other: 10}
	for want, at := range []uint32{now + 900, now + 2000} {
		if seen, deleted, err := maps.CollectConntrack[maps.Tuple6](h.d.Maps().Ct6, limits, at); err != nil || seen != 1 || deleted != want {
			t.Errorf("collected %d of %d: %v, want %d", deleted, seen, err, want)
		}
	}
}
