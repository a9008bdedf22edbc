// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
)

// ping6 is ping by ICMPv6, whose checksum the kernel makes.
func ping6(t *testing.T, ns netns.NsHandle, to netip.Addr) {
	t.Helper()
	var c net.Conn
	inNS(t, ns, func() (err error) {
		c, err = net.Dial("ip6:ipv6-icmp", to.String())
		return err
	})
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{128, 0, 0, 0, 0x12, 0x34, 0, 1}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1500)
	for {
		n, err := c.Read(answer)
		if err != nil {
			t.Fatalf("ping %s: %v", to, err)
		}
		if n >= 8 && answer[0] == 129 && answer[4] == 0x12 {
			return
		}
	}
}

// pour sends more than any buffer or segment holds, and has it back.
func pour(t *testing.T, c net.Conn) {
	t.Helper()
	out := make([]byte, 4<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(out)
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(out)
		sent <- err
	}()
	back := make([]byte, len(out))
	if _, err := io.ReadFull(c, back); err != nil {
		t.Fatal(errors.Join(err, <-sent))
	}
	if err := <-sent; err != nil || !bytes.Equal(out, back) {
		t.Errorf("what came back is something else (%v)", err)
	}
}

// IPv6 pods and hosts reach each other over the IPv4 tunnel, in large packets and
// small ones, by address and by service.
func TestPodsAcrossNodes6(t *testing.T) {
	for name, tunnels := range makes() {
		t.Run(name, func(t *testing.T) { podsAcrossNodes6(t, newWorldOf(t, "", tunnels)) })
	}
}

func podsAcrossNodes6(t *testing.T, w *world) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("node 0 %+v\nnode 1 %+v", w.dropped(t, 0), w.dropped(t, 1))
		}
	})
	served := map[netns.NsHandle]bool{}
	for _, p := range []struct {
		name string
		from netns.NsHandle
		to   netip.Addr
		at   netns.NsHandle
	}{
		{"pod to remote pod", w.pods[0], ip6s(1), w.pods[1]},
		{"remote pod to pod", w.pods[1], ip6s(0), w.pods[0]},
		{"host to own pod", w.nodes[0].ns, ip6s(0), w.pods[0]},
		{"host to remote pod", w.nodes[0].ns, ip6s(1), w.pods[1]},
		{"pod to own host", w.pods[0], w.nodes[0].addr6, w.nodes[0].ns},
		{"pod to remote host", w.pods[0], w.nodes[1].addr6, w.nodes[1].ns},
	} {
		t.Run(p.name, func(t *testing.T) {
			if !served[p.at] {
				serve(t, p.at, 8080)
			}
			ping(t, p.from, p.to)
			c := dial(t, p.from, p.to, 8080)
			if err := echo(c, "hello", 5*time.Second); err != nil {
				t.Fatal(err)
			}
			pour(t, c)
		})
	}
	t.Run("by service", func(t *testing.T) {
		serve(t, w.pods[1], 8081)
		serve(t, w.pods[0], 8081)
		vip := netip.MustParseAddr("fd00:96::10")
		for port, backend := range map[uint16]netip.Addr{80: ip6s(1), 81: ip6s(0)} {
			w.agents[0].tables.Frontends.Set(datapath.FrontendKey{Addr: vip, Port: port, Protocol: unix.IPPROTO_TCP}, datapath.Frontend{
				Service: 1, Backends: []datapath.Backend{{Addr: backend, Port: 8081}},
			})
		}
		w.agents[0].tables.Frontends.Set(datapath.FrontendKey{Addr: vip, Port: 82, Protocol: unix.IPPROTO_TCP}, datapath.Frontend{Service: 2})
		w.agents[0].wait(t)
		pour(t, dial(t, w.pods[0], vip, 80))
		pour(t, dial(t, w.pods[0], vip, 81)) // itself
		pour(t, dial(t, w.nodes[0].ns, vip, 80))
		inNS(t, w.pods[0], func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(vip, 82).String(), 5*time.Second)
			if err == nil {
				return errors.Join(errors.New("an idle service answers"), c.Close())
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("an idle service does not refuse: %w", err)
			}
			return nil
		})
	})
	t.Run("too big", func(t *testing.T) { inNS(t, w.pods[0], func() error { return tooBig(ip6s(1)) }) })
}

// tooBig sends a datagram that fits no tunnel and expects to be told.
func tooBig(to netip.Addr) error {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	route := podRoute6(l)
	route.MTU = 0 // the pod no longer knows better
	if err := netlink.RouteReplace(route); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
		unix.Connect(fd, &unix.SockaddrInet6{Port: 9, Addr: to.As16()}))
	if err != nil {
		return err
	}
	return toldTooBig(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
}
