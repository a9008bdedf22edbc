// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

const (
	outside = "203.0.113.9"
	inside  = "198.51.100.7" // behind another device than the underlay
	inside6 = "2001:db8:2::7"
)

// outbound gives the namespace a way out: by default through the underlay.
func (h *harness) outbound() {
	h.t.Helper()
	h.in(func() error {
		var errs []error
		for _, name := range []string{"eth0", "wire", podA.name, "inA", podB.name, "inB"} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			errs = append(errs, err)
		}
		eth0, err1 := netlink.LinkByName("eth0")
		inB, err2 := netlink.LinkByName("inB")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		for _, a := range []struct {
			l  netlink.Link
			ip string
		}{{eth0, self + "/24"}, {inB, "198.51.100.1/24"}, {eth0, selfOut6 + "/64"}, {inB, "2001:db8:2::1/64"}} {
			ip, _ := netlink.ParseAddr(a.ip)
			if ip.IP.To4() == nil {
				ip.Flags = unix.IFA_F_NODAD
			}
			errs = append(errs, netlink.AddrAdd(a.l, ip))
		}
		for _, gw := range []string{"192.0.2.254", "2001:db8:1::fe"} {
			errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(gw)}))
		}
		for _, pod := range []host{podA, podB} {
			for _, family := range []string{"ipv4", "ipv6"} {
				errs = append(errs, os.WriteFile("/proc/sys/net/"+family+"/conf/"+pod.name+"/forwarding", []byte("1"), 0o644))
			}
		}
		for _, n := range []struct {
			l  netlink.Link
			ip string
		}{{eth0, "192.0.2.254"}, {inB, inside}, {eth0, "2001:db8:1::fe"}, {inB, inside6}} {
			errs = append(errs, netlink.NeighAdd(&netlink.Neigh{
				LinkIndex: n.l.Attrs().Index, IP: net.ParseIP(n.ip), State: unix.NUD_PERMANENT,
				HardwareAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9},
			}))
		}
		return errors.Join(errs...)
	})
}

// masked expects a packet of a pod with the node's address, and returns the port
// that it got.
func (h *harness) masked(r result, dst string, dport uint16) uint16 {
	h.t.Helper()
	h.passed(r)
	var from, to net.IP
	var l4 gopacket.TransportLayer
	var ttl uint8
	own, echo := self, 14+20+4
	if isIPv6(dst) {
		_, i, l := decode6(h.t, r.out)
		from, to, l4, ttl, own, echo = i.SrcIP, i.DstIP, l, i.HopLimit, selfOut6, 14+40+4
	} else {
		_, i, l := decode(h.t, r.out)
		from, to, l4, ttl = i.SrcIP, i.DstIP, l, i.TTL
	}
	s, d := ports(l4)
	if l4 == nil {
		s = uint16(r.out[echo])<<8 | uint16(r.out[echo+1])
		d = dport
	}
	rng := loader.MasqueradePorts()
	if from.String() != own || to.String() != dst || d != dport || ttl != 63 || s < rng.First || s >= rng.First+rng.Count {
		h.t.Errorf("sent %s:%d → %s:%d with TTL %d", from, s, to, d, ttl)
	}
	return s
}

func echoReply(src, dst string, id uint16) []gopacket.SerializableLayer {
	return []gopacket.SerializableLayer{
		ip(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(0, 0), Id: id, Seq: 1},
	}
}

func TestMasquerade(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	t.Run("tcp", func(t *testing.T) {
		h.t = t
		port := h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 1234, 80, "S"))), outside, 80)
		if again := h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 1234, 80, "S"))), outside, 80); again != port {
			t.Errorf("port %d became %d", port, again)
		}
		if other := h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 1235, 80, "S"))), outside, 80); other == port {
			t.Errorf("two flows have port %d", port)
		}
		r := h.passed(h.fromOverlay(h.plain(segment(outside, self, 80, port, "SA"))))
		expect(t, r.out, outside, 80, podA.ip, 1234)
		h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 1234, 80, "A"))), outside, 80)
		// Only the far end of the flow is answered for.
		for _, ls := range [][]gopacket.SerializableLayer{
			segment(outside, self, 81, port, "A"), segment("203.0.113.10", self, 80, port, "A"),
			segment(outside, self, 80, port^1, "A"), datagram(outside, self, 80, port, 4),
		} {
			if r := h.fromOverlay(h.plain(ls)); r.act != actOK {
				t.Errorf("the host's own packet: verdict %d", r.act)
			}
		}
		r = h.passed(h.fromOverlay(h.plain(unreachable(t, "198.18.0.1", self, 4, segment(self, outside, port, 80, "A")))))
		tells(t, r.out, "198.18.0.1", podA.ip, podA.ip, 1234, outside, 80)
		if r := h.fromOverlay(h.plain(unreachable(t, "198.18.0.1", self, 4, segment(self, outside, port^1, 80, "A")))); r.act != actOK {
			t.Errorf("an error about the host's own flow: verdict %d", r.act)
		}
	})
	t.Run("udp", func(t *testing.T) {
		h.t = t
		port := h.masked(h.fromPod(podA, h.sent(podA, datagram(podA.ip, outside, 1234, 5300, 10))), outside, 5300)
		r := h.passed(h.fromOverlay(h.plain(datagram(outside, self, 5300, port, 10))))
		expect(t, r.out, outside, 5300, podA.ip, 1234)
	})
	t.Run("udp fragments", func(t *testing.T) {
		h.t = t
		d := datagram(podA.ip, outside, 1236, 5300, 3000)
		f1 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 1, 0, 1400))))
		f2 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 1, 1400, 2800))))
		f3 := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 1, 2800, whole))))
		_, _, l4 := decode(t, joined(t, f1.out, f2.out, f3.out))
		port, _ := ports(l4)
		d = datagram(outside, self, 5300, port, 3000)
		f1 = h.passed(h.fromOverlay(h.plain(fragment(t, d, 2, 0, 1400))))
		f2 = h.passed(h.fromOverlay(h.plain(fragment(t, d, 2, 1400, whole))))
		expect(t, joined(t, f1.out, f2.out), outside, 5300, podA.ip, 1236)
		if r := h.fromOverlay(h.plain(fragment(t, d, 3, 1400, whole))); r.act != actOK {
			t.Errorf("a fragment of nobody's: verdict %d", r.act)
		}
	})
	t.Run("echo", func(t *testing.T) {
		h.t = t
		id := h.masked(h.fromPod(podA, h.sent(podA, echoRequest(podA.ip, outside))), outside, 0)
		r := h.passed(h.fromOverlay(h.plain(echoReply(outside, self, id))))
		_, i, _ := decode(t, r.out)
		if got := uint16(r.out[38])<<8 | uint16(r.out[39]); i.DstIP.String() != podA.ip || got != 77 {
			t.Errorf("answer to %s with id %d", i.DstIP, got)
		}
		if r := h.fromOverlay(h.plain(echoRequest(outside, self))); r.act != actOK {
			t.Errorf("a ping of the host: verdict %d", r.act)
		}
	})
	t.Run("another protocol", func(t *testing.T) {
		h.t = t
		gre := []gopacket.SerializableLayer{ip(podA.ip, outside, layers.IPProtocolGRE), gopacket.Payload(make([]byte, 20))}
		h.dropped(h.fromPod(podA, h.sent(podA, gre)), maps.DropUnsupportedProtocol)
	})
	t.Run("out of another device", func(t *testing.T) {
		h.t = t
		if r := h.fromPod(podA, h.sent(podA, segment(podA.ip, inside, 1234, 80, "S"))); r.act != actOK {
			t.Errorf("verdict %d, want the stack", r.act)
		}
	})
	t.Run("time is over", func(t *testing.T) {
		h.t = t
		ls := segment(podA.ip, outside, 1234, 80, "A")
		ls[0].(*layers.IPv4).TTL = 1
		if r := h.fromPod(podA, h.sent(podA, ls)); r.act != actOK {
			t.Errorf("verdict %d, want the stack, which answers", r.act)
		}
	})
	t.Run("answers to the outside keep the address", func(t *testing.T) {
		h.t = t
		h.passed(h.fromOverlay(h.plain(segment(outside, podA.ip, 4000, 80, "S"))))
		r := h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 80, 4000, "SA")))
		if r.act != actOK {
			t.Errorf("verdict %d, want the stack", r.act)
		}
		expect(t, r.out, podA.ip, 80, outside, 4000)
	})
	t.Run("backend outside", func(t *testing.T) {
		h.t = t
		k := datapath.FrontendKey{Addr: addr(vip), Port: 443, Protocol: tcp}
		h.tables.Frontends.Set(k, datapath.Frontend{Service: 3, Backends: []datapath.Backend{{Addr: addr(outside), Port: 8443}}})
		h.sync()
		port := h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1234, 443, "S"))), outside, 8443)
		r := h.passed(h.fromOverlay(h.plain(segment(outside, self, 8443, port, "SA"))))
		expect(t, r.out, vip, 443, podA.ip, 1234)
		if got := h.masked(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1234, 443, "A"))), outside, 8443); got != port {
			t.Errorf("port %d became %d", port, got)
		}
		r = h.passed(h.fromOverlay(h.plain(unreachable(t, outside, self, 3, segment(self, outside, port, 8443, "A")))))
		tells(t, r.out, vip, podA.ip, podA.ip, 1234, vip, 443)
	})
	t.Run("policy", func(t *testing.T) {
		h.t = t
		h.rules(podA, datapath.RuleSet{ID: 9, Egress: true})
		h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 9999, 80, "S"))), maps.DropPolicyDenied)
	})
}

// Without a free port a flow takes that of one that is half-open. When all are of
// established ones it is refused, and gets one when another is over.
func TestMasqueradeExhausted(t *testing.T) {
	h := newHarnessWith(t, loader.Config{
		MapSizes: loader.SmallMaps(), Masquerade: loader.PortRange{First: 20000, Count: 4}, NodeAddr6: addr(self6), Masquerade6: addr(selfOut6),
	})
	h.outbound()
	for family, w := range waysOut() {
		t.Run(family+"ports", func(t *testing.T) {
			h.t = t
			masqueradeExhausted(t, h, w)
		})
	}
}

func masqueradeExhausted(t *testing.T, h *harness, w wayOut) {
	open := func(port uint16, dst string) result {
		return h.fromPod(w.a, h.sent(w.a, segment(w.a.ip, dst, port, 80, "S")))
	}
	for port := range uint16(8) {
		h.passed(open(900+port, w.far))
	}
	for port := range uint16(4) {
		if masked, ok := h.maskedSYN(w, 1000+port); !ok || !h.confirmed(t, w, 1000+port, masked) {
			t.Fatalf("flow %d is not opened", port)
		}
	}
	h.dropped(open(1004, w.far), maps.DropNoSNATPort)
	// One whose port another has taken says more: it gets no other.
	h.dropped(open(900, w.far), maps.DropNoSNATPort)
	elsewhere := map[string]string{outside: "203.0.113.10", outside6: "2001:db8:9::a"}
	h.passed(open(1004, elsewhere[w.far])) // ports are per destination
	now := h.now()
	if seen, deleted := h.collectPorts(w, 10, now+100); seen != 5 || deleted != 0 {
		t.Errorf("of %d ports %d were deleted while all flows live", seen, deleted)
	}
	h.forgetOut(w, 1000)
	if _, deleted := h.collectPorts(w, 1<<30, now); deleted != 0 {
		t.Error("a port was deleted that is too young")
	}
	if _, deleted := h.collectPorts(w, 10, now+100); deleted != 1 {
		t.Errorf("%d ports deleted, want that of the flow that is over", deleted)
	}
	deadline := time.Now().Add(5 * time.Second)
	for open(1004, w.far).act != actRedirect {
		if time.Now().After(deadline) {
			t.Fatal("the free port is not found")
		}
	}
}

// collectPorts is a pass of the collector over a family's ports.
func (h *harness) collectPorts(w wayOut, grace, now uint32) (seen, deleted int) {
	h.t.Helper()
	m := h.d.Maps()
	collect, flows, half := maps.CollectMasquerade[maps.SNATKey, maps.SNATEntry], m.Ct4, m.Ct4Open
	ports := []*ebpf.Map{m.Snat4, m.Snat4Open}
	if isIPv6(w.far) {
		collect, flows, half = maps.CollectMasquerade[maps.SNAT6Key, maps.SNAT6Entry], m.Ct6, m.Ct6Open
		ports = []*ebpf.Map{m.Snat6, m.Snat6Open}
	}
	for _, p := range ports {
		s, d, err := collect(p, flows, half, grace, now)
		if err != nil {
			h.t.Fatal(err)
		}
		seen, deleted = seen+s, deleted+d
	}
	return seen, deleted
}

// forgetOut has conntrack forget the flow of podA's port to the outside.
func (h *harness) forgetOut(w wayOut, port uint16) {
	h.t.Helper()
	from, to := addr(w.a.ip), addr(w.far)
	var err error
	if to.Is6() {
		err = h.d.Maps().Ct6.Delete(maps.Tuple6{
			Source: from.As16(), Destination: to.As16(), SourcePort: maps.PortFrom(port), DestPort: maps.PortFrom(80), Protocol: tcp,
		}.FlowKey())
	} else {
		err = h.d.Maps().Ct4.Delete(maps.Tuple4{
			Source: from.As4(), Destination: to.As4(), SourcePort: maps.PortFrom(port), DestPort: maps.PortFrom(80), Protocol: tcp,
		}.FlowKey())
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// Without masquerading, the stack routes what pods send.
func TestPodsKeepAddresses(t *testing.T) {
	h := newHarnessWith(t, loader.Config{MapSizes: loader.SmallMaps()})
	h.outbound()
	r := h.fromPod(podA, h.sent(podA, segment(podA.ip, outside, 1234, 80, "S")))
	if r.act != actOK {
		t.Errorf("verdict %d, want the stack", r.act)
	}
	expect(t, r.out, podA.ip, 1234, outside, 80)
}
