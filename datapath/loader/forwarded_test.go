// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// lan is a host behind another device of a node, which forwards for it. It has the
// node's addresses, too.
type lan struct {
	ns  netns.NsHandle
	own map[bool]netip.Addr // by whether it is IPv6
}

func newLAN(t *testing.T, nd *node) *lan {
	t.Helper()
	l := &lan{ns: newNS(t), own: map[bool]netip.Addr{false: netip.MustParseAddr("198.51.100.7"), true: netip.MustParseAddr("fd00:77::7")}}
	var gatewayMAC net.HardwareAddr
	inNS(t, nd.ns, func() error {
		if err := veth("lan0", "eth0", l.ns, 1500); err != nil {
			return err
		}
		dev, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		gatewayMAC = dev.Attrs().HardwareAddr
		errs := []error{give(dev, "198.51.100.1/24"), give(dev, "fd00:77::1/64")}
		for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			errs = append(errs, os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0o644))
		}
		return errors.Join(errs...)
	})
	inNS(t, l.ns, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		errs := []error{
			up("eth0"), give(dev, "198.51.100.7/24"), give(dev, "fd00:77::7/64"),
			give(dev, nd.addr.String()+"/32"), give(dev, nd.addr6.String()+"/128"),
		}
		for _, gw := range []string{"198.51.100.1", "fd00:77::1"} {
			errs = append(errs, netlink.NeighAdd(&netlink.Neigh{
				LinkIndex: dev.Attrs().Index, IP: net.ParseIP(gw), State: unix.NUD_PERMANENT, HardwareAddr: gatewayMAC,
			}), netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: net.ParseIP(gw)}))
		}
		return errors.Join(errs...)
	})
	return l
}

// give adds an address that is used at once.
func give(dev netlink.Link, a string) error {
	full := addr(a)
	full.Flags = unix.IFA_F_NODAD
	return netlink.AddrAdd(dev, full)
}

// send sends a datagram from an address of a namespace.
func send(t *testing.T, ns netns.NsHandle, from, to netip.Addr, text string) {
	t.Helper()
	inNS(t, ns, func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9000)))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte(text))
		return errors.Join(err, c.Close())
	})
}

// What a node sends to its pods is the host's. What it merely forwards is not, be
// it from the node's own address: the kernel refuses that by IPv4, the programs by
// IPv6.
func TestForwardedIsNotTheHosts(t *testing.T) {
	for _, attach := range []string{loader.AttachTCX, loader.AttachClsact} {
		t.Run(attach, func(t *testing.T) { forwarded(t, attach) })
	}
}

// ear is who listens for datagrams in a pod.
type ear struct{ heard chan string }

func listen(t *testing.T, pod netns.NsHandle) *ear {
	t.Helper()
	e := &ear{heard: make(chan string, 64)}
	var pc net.PacketConn
	inNS(t, pod, func() (err error) {
		pc, err = net.ListenPacket("udp", ":9000")
		return err
	})
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		defer close(e.heard)
		for buf := make([]byte, 64); ; {
			n, _, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			e.heard <- string(buf[:n])
		}
	}()
	return e
}

// hears expects this as the next datagram.
func (e *ear) hears(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-e.heard:
		if got != want {
			t.Fatalf("heard %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%q was not heard", want)
	}
}

// denied is how many packets policy has denied on node 0.
func (w *world) denied(t *testing.T) (n uint64) {
	t.Helper()
	for _, r := range w.dropped(t, 0) {
		if r.Reason == maps.DropPolicyDenied {
			n += r.Packets
		}
	}
	return n
}

func forwarded(t *testing.T, attach string) {
	w := newWorldWith(t, attach)
	nd, a := w.nodes[0], w.agents[0]
	far := newLAN(t, nd)
	pod := listen(t, w.pods[0])
	families := []struct{ node, pod, lan netip.Addr }{{nd.addr, ips(0), far.own[false]}, {nd.addr6, ip6s(0), far.own[true]}}

	// Nothing is denied: all ways are open, but for what the kernel refuses.
	for _, f := range families {
		send(t, far.ns, f.node, f.pod, "posed "+f.node.String())
		if f.node.Is6() {
			pod.hears(t, "posed "+f.node.String())
		}
		send(t, far.ns, f.lan, f.pod, "lan")
		pod.hears(t, "lan")
	}
	a.tables.RuleSets.Set(7, datapath.RuleSet{ID: 7, Ingress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Identity: identity.Host}: {},
	}})
	ep := w.eps[0]
	ep.RuleSet = 7
	a.tables.Endpoints.Set(ep.ID, ep)
	a.wait(t)
	for _, f := range families {
		want := w.denied(t) + 1
		send(t, far.ns, f.node, f.pod, "posed")
		if f.node.Is6() {
			want++
		}
		send(t, far.ns, f.lan, f.pod, "lan")
		for deadline := time.Now().Add(10 * time.Second); w.denied(t) < want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("from %s: %d denied, want %d; %+v", f.node, w.denied(t), want, w.dropped(t, 0))
			}
		}
		send(t, nd.ns, f.node, f.pod, "host")
		pod.hears(t, "host")
		ping(t, nd.ns, f.pod)
	}
	t.Run("answers without a socket", func(t *testing.T) { refused(t, w, nd) })
	t.Run("masquerade", func(t *testing.T) {
		if _, err := exec.LookPath("nft"); err != nil {
			t.Skip("needs nft")
		}
		inNS(t, nd.ns, func() error {
			return nft("add table ip lan; add chain ip lan out { type nat hook postrouting priority 100; }; " +
				"add rule ip lan out oifname hawser_host ip saddr 198.51.100.0/24 masquerade")
		})
		send(t, far.ns, far.own[false], ips(0), "masked")
		pod.hears(t, "masked") // the node speaks for it
	})
	links, err := a.d.Attachments()
	found := slices.ContainsFunc(links, func(l loader.Attachment) bool { return l.Program == "from_stack" && l.Device == "hawser_host" })
	if err != nil || found != (attach == loader.AttachTCX) {
		t.Errorf("links %+v, %v", links, err)
	}
}

func nft(rules string) error {
	out, err := exec.Command("nft", rules).CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// refused has a pod connect to what nobody on its node listens to: the kernel
// answers by itself, with no socket behind the packet.
func refused(t *testing.T, w *world, nd *node) {
	for _, to := range []netip.Addr{nd.addr, nd.addr6} {
		inNS(t, w.pods[0], func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 9).String(), 5*time.Second)
			if err == nil {
				return errors.Join(errors.New("connected to nobody"), c.Close())
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("tcp to %s: %w", to, err)
			}
			u, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
			if err != nil {
				return err
			}
			defer u.Close()
			if _, err := u.Write([]byte("x")); err != nil {
				return err
			}
			if err := u.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			if _, err = u.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("udp to %s: %w", to, err)
			}
			return nil
		})
	}
}
