// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/identity"
)

// newOutside makes a host on the fabric that knows nothing of pods.
func newOutside(t *testing.T, fabric netns.NsHandle, addrs ...string) netns.NsHandle {
	t.Helper()
	ns := newNS(t)
	inNS(t, fabric, func() error {
		if err := veth("outside", "eth0", ns, 1500); err != nil {
			return err
		}
		l, err1 := netlink.LinkByName("outside")
		br, err2 := netlink.LinkByName("br0")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, br)
	})
	inNS(t, ns, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		errs := []error{up("eth0")}
		for _, a := range addrs {
			errs = append(errs, give(dev, a))
		}
		return errors.Join(errs...)
	})
	return ns
}

// tellClients has a host answer whoever connects, or sends a datagram, with the
// address that it sees.
func tellClients(t *testing.T, ns netns.NsHandle, port int) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	inNS(t, ns, func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			u, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		}
		return err
	})
	t.Cleanup(func() { _, _ = l.Close(), u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(c.RemoteAddr().String()))
			_ = c.Close()
		}
	}()
	go func() {
		b := make([]byte, 4096)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(from.String()), from)
		}
	}()
}

// exchange sends a datagram of so many bytes and returns the answer.
func exchange(t *testing.T, ns netns.NsHandle, network string, to netip.AddrPort, size int) (string, error) {
	t.Helper()
	var c net.Conn
	inNS(t, ns, func() (err error) {
		c, err = net.DialTimeout(network, to.String(), 5*time.Second)
		return err
	})
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if network == "udp" {
		if _, err := c.Write(make([]byte, size)); err != nil {
			return "", err
		}
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// What a pod sends to the outside comes from the node's address of the family, and
// its answers find back: connections with large segments, datagrams in one piece and
// in several, pings, and errors. What the node sends itself is untouched.
func TestMasqueradeToTheOutside(t *testing.T) {
	needRoot(t)
	fabric := newFabric(t)
	nd := newNode(t, fabric, 1, podNet)
	// Of several addresses an answer has the first of IPv4, and the last of IPv6.
	out := newOutside(t, fabric, "192.0.2.99/24", "192.0.2.98/24", "2001:db8:1::98/64", "2001:db8:1::99/64")
	pod, ep := newPod(t, nd, 10, ips(0).String(), ip6s(0).String())
	ep.Identity = ident(0)
	own6 := netip.MustParseAddr("2001:db8:1::1")
	inNS(t, nd.ns, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		errs := []error{give(dev, own6.String()+"/64")}
		for _, f := range []string{"ipv4", "ipv6"} { // as netdev has it
			errs = append(errs, os.WriteFile("/proc/sys/net/"+f+"/conf/"+ep.Device+"/forwarding", []byte("1"), 0o644))
		}
		return errors.Join(errs...)
	})
	tb := datapath.NewTables()
	tb.Endpoints.Set(ep.ID, ep)
	tb.Identities.Set(ident(0), datapath.Identity{Number: ident(0), ClusterID: 1})
	for _, a := range []netip.Addr{nd.addr, nd.addr6, own6} {
		tb.IPCache.Set(single(a), datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost})
	}
	for _, a := range ep.Addrs {
		tb.IPCache.Set(single(a), datapath.IPEntry{Identity: ident(0)})
	}
	rng := loader.MasqueradePorts()
	a := startAgentOf(t, loader.Config{Masquerade: rng, Masquerade6: own6}, nd, tb, ep.Device)
	t.Cleanup(func() {
		a.stop(t)
		inNS(t, nd.ns, func() error { return loader.Cleanup(nd.pin) })
	})
	a.wait(t)
	if was, err := loader.MasqueradedAs6(nd.pin); err != nil || was.IsValid() {
		t.Errorf("without flows: %v, %v", was, err)
	}
	tellClients(t, out, 8080)
	serve(t, out, 8081)
	for _, c := range []struct{ own, far netip.Addr }{
		{nd.addr, netip.MustParseAddr("192.0.2.99")}, {own6, netip.MustParseAddr("2001:db8:1::99")},
	} {
		t.Run(c.far.String(), func(t *testing.T) {
			to := netip.AddrPortFrom(c.far, 8080)
			for _, s := range []struct {
				network string
				size    int
			}{{"tcp", 0}, {"udp", 10}, {"udp", 3000}} {
				text, err := exchange(t, pod, s.network, to, s.size)
				if err != nil {
					t.Fatalf("%s, %d bytes: %v", s.network, s.size, err)
				}
				seen := netip.MustParseAddrPort(text)
				if seen.Addr().Unmap() != c.own || seen.Port() < rng.First || seen.Port() >= rng.First+rng.Count {
					t.Errorf("%s, %d bytes: the outside sees %s, want %s", s.network, s.size, seen, c.own)
				}
				text, err = exchange(t, nd.ns, s.network, to, s.size)
				if err != nil {
					t.Fatalf("the node's own %s, %d bytes: %v", s.network, s.size, err)
				}
				if seen = netip.MustParseAddrPort(text); seen.Addr().Unmap() != c.own || seen.Port() < rng.First+rng.Count {
					t.Errorf("the node's own %s: the outside sees %s", s.network, seen)
				}
			}
			pour(t, dial(t, pod, c.far, 8081))
			want := netip.Addr{}
			if c.own.Is6() {
				want = c.own // for who takes the programs over
			}
			if was, err := loader.MasqueradedAs6(nd.pin); err != nil || was != want {
				t.Errorf("flows leave as %v, %v; want %v", was, err, want)
			}
			ping(t, pod, c.far)
			ping(t, nd.ns, c.far)
			ping(t, out, c.own)
			if text, err := exchange(t, pod, "udp", netip.AddrPortFrom(c.far, 8082), 10); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a closed port answers %q, %v", text, err)
			}
		})
	}
	inNS(t, nd.ns, func() error { return setMTU("eth0", narrowUnderlay) })
	inNS(t, out, func() error { return narrowRoutes("eth0") })
	for far, other := range map[string]string{"192.0.2.99": "192.0.2.98", "2001:db8:1::99": "2001:db8:1::98"} {
		t.Run(far+", narrow", func(t *testing.T) {
			to := netip.AddrPortFrom(netip.MustParseAddr(far), 8080)
			if text, err := exchange(t, pod, "udp", to, narrowUnderlay); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("a datagram that is too big: %q, %v", text, err)
			}
			if text, err := exchange(t, pod, "udp", to, narrowUnderlay); err != nil {
				t.Errorf("a sender that knows: %q, %v", text, err)
			}
			// Of this one the pod has heard nothing; a connection learns while it sends trains.
			pour(t, dial(t, pod, netip.MustParseAddr(other), 8081))
		})
	}
}

// narrowUnderlay is less than a pod's route takes.
const narrowUnderlay = 1400

func setMTU(dev string, mtu int) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	return netlink.LinkSetMTU(l, mtu)
}

// narrowRoutes has a host send no more than the narrow underlay takes, as a link takes
// the same both ways, but say that it takes segments as before.
func narrowRoutes(dev string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(l, family)
		errs = append(errs, err)
		for _, r := range routes {
			r.MTU, r.AdvMSS = narrowUnderlay, 1500-60
			errs = append(errs, netlink.RouteReplace(&r))
		}
	}
	return errors.Join(errs...)
}
