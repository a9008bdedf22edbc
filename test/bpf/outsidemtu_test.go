// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net"
	"net/netip"
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

// narrowRoute makes the ways to the outside take no more than mtu, as far as the kernel
// knows.
func (h *harness) narrowRoute(mtu int) {
	h.t.Helper()
	h.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		var errs []error
		for _, gw := range []string{"192.0.2.254", "2001:db8:1::fe"} {
			errs = append(errs, netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(gw), MTU: mtu, MTULock: true}))
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

// What does not fit the underlay device is answered: the first packet of a flow and
// later ones, as the sender sent them.
func TestMasqueradeTooBig(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	for _, f := range families() {
		h.serveOutside(f)
	}
	h.sync()
	const mtu, port = 1400, 2000
	h.narrow(mtu)
	for _, f := range families() {
		fits := mtu - headers(f)
		say := func(sport uint16, dst string, dport uint16) told {
			return told{f.self, f.a.ip, netip.AddrPortFrom(addr(f.a.ip), sport), netip.AddrPortFrom(addr(dst), dport), mtu}
		}
		send := func(sport uint16, dst string, dport uint16, size int) result {
			h.t.Helper()
			return h.fromPod(f.a, h.sent(f.a, uncut(datagram(f.a.ip, dst, sport, dport, size))))
		}
		t.Run(f.prefix+"first", func(t *testing.T) {
			h.t = t
			h.tooBig(send(port, f.outside, 53, fits+1), say(port, f.outside, 53))
			h.masked(send(port, f.outside, 53, fits), f.outside, 53)
			h.tooBig(send(port, f.outside, 53, fits+1), say(port, f.outside, 53))
		})
		t.Run(f.prefix+"established", func(t *testing.T) {
			h.t = t
			got := h.masked(send(port+1, f.outside, 53, 10), f.outside, 53)
			h.passed(h.fromOverlay(h.plain(datagram(f.outside, outsideOf(f), 53, got, 10))))
			h.masked(send(port+1, f.outside, 53, fits), f.outside, 53)
			h.tooBig(send(port+1, f.outside, 53, fits+1), say(port+1, f.outside, 53))
		})
		t.Run(f.prefix+"service", func(t *testing.T) {
			h.t = t
			for range 2 {
				h.tooBig(send(port+2, f.vip, 443, fits+1), say(port+2, f.vip, 443))
			}
			h.masked(send(port+2, f.vip, 443, fits), f.outside, 8443)
			h.tooBig(send(port+2, f.vip, 443, fits+1), say(port+2, f.vip, 443))
		})
		t.Run(f.prefix+"another device", func(t *testing.T) {
			h.t = t
			dst := map[bool]string{false: inside, true: inside6}[isIPv6(f.a.ip)]
			if r := send(port+3, dst, 53, fits+1); r.act != actOK {
				t.Errorf("verdict %d, want the stack, which answers", r.act)
			}
		})
		t.Run(f.prefix+"an error of the pod", func(t *testing.T) {
			h.t = t
			got := h.masked(send(port+4, f.outside, 53, 10), f.outside, 53)
			h.passed(h.fromOverlay(h.plain(datagram(f.outside, outsideOf(f), 53, got, 10))))
			if isIPv6(f.a.ip) {
				return // such errors have 1,280 bytes at the most
			}
			ls := unreachable(t, f.a.ip, f.outside, 3, datagram(f.outside, f.a.ip, 53, port+4, 10))
			ls[2] = append(ls[2].(gopacket.Payload), make([]byte, mtu)...)
			h.dropped(h.fromPod(f.a, h.sent(f.a, ls)), maps.DropPacketTooBig) // no error about an error
		})
	}
	t.Run("may be cut", func(t *testing.T) {
		h.t = t
		r := h.fromPod(podA, h.sent(podA, datagram(podA.ip, outside, port+5, 53, mtu)))
		h.tooBig(r, told{self, podA.ip, netip.AddrPortFrom(addr(podA.ip), port+5), netip.AddrPortFrom(addr(outside), 53), mtu})
	})
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

// What the kernel believes that a way takes, which an ICMP error from anybody may have
// told it, is not asked for: what fits the device leaves.
func TestMasqueradeNarrowRoute(t *testing.T) {
	h := newHarness(t)
	h.outbound()
	h.narrowRoute(1300)
	for _, f := range families() {
		t.Run(f.prefix, func(t *testing.T) {
			h.t = t
			h.masked(h.fromPod(f.a, h.sent(f.a, uncut(datagram(f.a.ip, f.outside, 1000, 53, 1300)))), f.outside, 53)
		})
	}
}
