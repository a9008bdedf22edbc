// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// narrow makes the underlay device take no more than mtu.
func (h *harness) narrow(mtu int) {
	h.t.Helper()
	h.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(eth0, mtu)
	})
}

// narrowRoute makes the ways to the outside take no more than mtu; it counts for
// programs where it is locked.
func (h *harness) narrowRoute(mtu int, lock bool) {
	h.t.Helper()
	h.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		var errs []error
		for _, gw := range []string{"192.0.2.254", "2001:db8:1::fe"} {
			errs = append(errs, netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(gw), MTU: mtu, MTULock: lock}))
		}
		return errors.Join(errs...)
	})
}

// uncut marks a packet of IPv4 as one that must not be cut, as all of IPv6 are.
func uncut(ls []gopacket.SerializableLayer) []gopacket.SerializableLayer {
	if i, ok := ls[0].(*layers.IPv4); ok {
		i.Flags = layers.IPv4DontFragment
	}
	return ls
}

// headers are those of a datagram.
func headers(f family) int {
	if isIPv6(f.a.ip) {
		return 48
	}
	return 28
}

// tooBig expects that a pod's packet is dropped and that its sender is told.
func (h *harness) tooBig(r result, want told) {
	h.t.Helper()
	h.answered(r, maps.DropPacketTooBig)
	if got := readError(h.t, r.out); got != want {
		h.t.Errorf("told %+v, want %+v", got, want)
	}
}

// What does not fit the way to the outside, its device or its route, is answered: the
// first packet of a flow and later ones, as the sender sent them.
func TestMasqueradeTooBig(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	for _, f := range families() {
		h.serveOutside(f)
	}
	h.sync()
	for _, w := range []struct {
		name   string
		narrow func(int)
		mtu    int
	}{{"device", h.narrow, 1400}, {"route", func(mtu int) { h.narrowRoute(mtu, true) }, 1300}} {
		w.narrow(w.mtu)
		for i, f := range families() {
			fits := w.mtu - headers(f)
			port := uint16(2000 + 10*i + w.mtu)
			own := f.self
			say := func(sport uint16, dst string, dport uint16) told {
				return told{own, f.a.ip, netip.AddrPortFrom(addr(f.a.ip), sport), netip.AddrPortFrom(addr(dst), dport), uint32(w.mtu)}
			}
			send := func(sport uint16, dst string, dport uint16, size int) result {
				h.t.Helper()
				return h.fromPod(f.a, h.sent(f.a, uncut(datagram(f.a.ip, dst, sport, dport, size))))
			}
			t.Run(w.name+" "+f.prefix+"first", func(t *testing.T) {
				h.t = t
				h.tooBig(send(port, f.outside, 53, fits+1), say(port, f.outside, 53))
				h.masked(send(port, f.outside, 53, fits), f.outside, 53)
				h.tooBig(send(port, f.outside, 53, fits+1), say(port, f.outside, 53))
			})
			t.Run(w.name+" "+f.prefix+"established", func(t *testing.T) {
				h.t = t
				got := h.masked(send(port+1, f.outside, 53, 10), f.outside, 53)
				h.passed(h.fromOverlay(h.plain(datagram(f.outside, outsideOf(f), 53, got, 10))))
				h.masked(send(port+1, f.outside, 53, fits), f.outside, 53)
				h.tooBig(send(port+1, f.outside, 53, fits+1), say(port+1, f.outside, 53))
			})
			t.Run(w.name+" "+f.prefix+"service", func(t *testing.T) {
				h.t = t
				for range 2 {
					h.tooBig(send(port+2, f.vip, 443, fits+1), say(port+2, f.vip, 443))
				}
				h.masked(send(port+2, f.vip, 443, fits), f.outside, 8443)
				h.tooBig(send(port+2, f.vip, 443, fits+1), say(port+2, f.vip, 443))
			})
			t.Run(w.name+" "+f.prefix+"another device", func(t *testing.T) {
				h.t = t
				dst := map[bool]string{false: inside, true: inside6}[isIPv6(f.a.ip)]
				if r := send(port+3, dst, 53, fits+1); r.act != actOK {
					t.Errorf("verdict %d, want the stack, which answers", r.act)
				}
			})
		}
	}
}

// outsideOf is the address that the outside sees.
func outsideOf(f family) string {
	if isIPv6(f.a.ip) {
		return selfOut6
	}
	return self
}

// serveOutside makes a service of datagrams whose backend is outside.
func (h *harness) serveOutside(f family) {
	k := datapath.FrontendKey{Addr: addr(f.vip), Port: 443, Protocol: udp}
	h.tables.Frontends.Set(k, datapath.Frontend{Service: 3, Backends: []datapath.Backend{{Addr: addr(f.outside), Port: 8443}}})
}

// A packet of segments counts by those: what is cut so that it fits is not too big.
func TestMasqueradeSegments(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	h.narrow(1400)
	for i, f := range families() {
		for name, transport := range map[string]struct {
			packet  func(int) []gopacket.SerializableLayer
			headers int
		}{
			"tcp": {func(n int) []gopacket.SerializableLayer {
				ls := segment(f.a.ip, f.outside, uint16(1234+i), 80, "A")
				ls[2] = payload(n)
				return uncut(ls)
			}, headers(f) + 12},
			"udp": {func(n int) []gopacket.SerializableLayer {
				return uncut(datagram(f.a.ip, f.outside, uint16(1234+i), 443, n))
			}, headers(f)},
		} {
			t.Run(f.prefix+name, func(t *testing.T) {
				h.t = t
				as := skb{IfIndex: h.ifindex(f.a.name), Segment: uint32(1400 - transport.headers)}
				h.passed(h.runAs(h.d.Programs().FromPod, h.sent(f.a, transport.packet(3000)), as))
				as.Segment++
				h.answered(h.runAs(h.d.Programs().FromPod, h.sent(f.a, transport.packet(3000)), as), maps.DropPacketTooBig)
			})
		}
	}
}

// A packet of IPv4 that may be cut is left to the stack for that: with the node's
// address and its port, at the device by which the stack takes that for the node's.
func TestMasqueradeInPieces(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	h.serveOutside(families()[0])
	h.sync()
	h.narrow(1400)
	const big = 1400 - 28 + 1
	cut := func(t *testing.T, r result, sport uint16, port uint16, dport uint16) uint16 {
		t.Helper()
		h.passed(r)
		eth, i, l4 := decode(t, r.out)
		s, d := ports(l4)
		if !bytes.Equal(eth.DstMAC, h.hostMAC()) || i.SrcIP.String() != self || i.DstIP.String() != outside || i.TTL != 64 {
			t.Errorf("%s → %s with TTL %d for %s, want the stack to forward it from %s", i.SrcIP, i.DstIP, i.TTL, eth.DstMAC, self)
		}
		if d != dport || s == sport || port != 0 && s != port {
			t.Errorf("ports %d → %d, want that of the flow (%d) → %d", s, d, port, dport)
		}
		return s
	}
	send := func(dst string, sport, dport uint16, n int) result {
		return h.fromPod(podA, h.sent(podA, datagram(podA.ip, dst, sport, dport, n)))
	}
	t.Run("first and later", func(t *testing.T) {
		h.t = t
		port := cut(t, send(outside, 1000, 53, big), 1000, 0, 53)
		if got := h.masked(send(outside, 1000, 53, big-1), outside, 53); got != port {
			t.Errorf("port %d became %d", port, got)
		}
		cut(t, send(outside, 1000, 53, big), 1000, port, 53)
	})
	t.Run("service", func(t *testing.T) {
		h.t = t
		cut(t, send(vip, 1001, 443, big), 1001, 0, 8443)
	})
	t.Run("fragments", func(t *testing.T) {
		h.t = t
		d := datagram(podA.ip, outside, 1002, 53, 2800)
		for _, span := range [][2]int{{0, 1440}, {1440, whole}} {
			r := h.passed(h.fromPod(podA, h.sent(podA, fragment(t, d, 1, span[0], span[1]))))
			eth, i, _ := decode(t, r.out)
			if bytes.Equal(eth.DstMAC, h.hostMAC()) != (span[0] == 0) || i.SrcIP.String() != self {
				t.Errorf("fragment at %d from %s for %s", span[0], i.SrcIP, eth.DstMAC)
			}
		}
	})
	t.Run("an error of the pod", func(t *testing.T) {
		h.t = t
		port := h.masked(send(outside, 1003, 53, 10), outside, 53)
		h.passed(h.fromOverlay(h.plain(datagram(outside, self, 53, port, 10))))
		ls := unreachable(t, podA.ip, outside, 3, datagram(outside, podA.ip, 53, 1003, 10))
		ls[2] = append(ls[2].(gopacket.Payload), make([]byte, 1400)...)
		h.passed(h.fromPod(podA, h.sent(podA, ls)))
		h.dropped(h.fromPod(podA, h.sent(podA, uncut(ls))), maps.DropPacketTooBig) // no error about an error
	})
}

// hostMAC is the address of the host's end of its pair.
func (h *harness) hostMAC() (mac net.HardwareAddr) {
	h.in(func() error {
		l, err := netlink.LinkByName("hawser_host")
		if err == nil {
			mac = l.Attrs().HardwareAddr
		}
		return err
	})
	return mac
}

// The MTU of a route that is not locked is the kernel's secret, unless all forwarding
// goes by such (IPv4). docs/guide/outside.md says so.
func TestMasqueradeUnlockedRoute(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	h.narrowRoute(1300, false)
	big := func(port uint16) result {
		return h.fromPod(podA, h.sent(podA, uncut(datagram(podA.ip, outside, port, 53, 1300))))
	}
	h.masked(big(1000), outside, 53)
	h.in(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward_use_pmtu", []byte("1"), 0o644) })
	h.answered(big(1000), maps.DropPacketTooBig)
}
