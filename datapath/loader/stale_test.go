// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
)

// stalePort is what is sent to a pod that is no more.
const stalePort = 4321

// TestPinsOutliveTheirNamespace makes a node's network namespace anew while its pins
// stay. In the new one another pod has the index of the one before: nothing of that
// one's reaches it, links and endpoints of before go, and traffic works.
func TestPinsOutliveTheirNamespace(t *testing.T) {
	for _, c := range []struct {
		name   string
		alive  bool // the old namespace, with its devices
		other  bool // programs, as the host's devices have other addresses
		pruned int  // links that are there until PruneLinks
	}{
		{"same programs", false, false, 1},
		{"other programs", false, true, 0},
		{"the old namespace lives on", true, false, 1},
		{"the old namespace lives on, other programs", true, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			serve(t, w.pods[1], 8080)
			if err := echo(dial(t, w.pods[0], ips(1), 8080), "before", 5*time.Second); err != nil {
				t.Fatal(err)
			}
			inNS(t, w.nodes[0].ns, func() error { return w.agents[0].d.SettleNow(w.eps[0].Device) })
			w.agents[0].stop(t)
			w.renew(t, c.alive, c.other)
			a := w.adopt(t)
			if err := errors.Join(a.attached(t, w), a.closed(t, w)); err != nil {
				t.Fatal(err)
			}
			var n int
			inNS(t, w.nodes[0].ns, func() (err error) {
				n, err = a.d.PruneLinks()
				return err
			})
			if n != c.pruned {
				t.Errorf("%d links were pruned, want %d", n, c.pruned)
			}
			w.agents[0] = a
			a.run(t)
			inNS(t, w.nodes[0].ns, func() error { return a.d.AttachEndpoint(w.eps[0].Device) })
			a.wait(t)
			serve(t, w.pods[0], 8080)
			err := errors.Join(echo(dial(t, w.pods[0], ips(1), 8080), "from the new pod", 5*time.Second),
				echo(dial(t, w.pods[1], ips(0), 8080), "to the new pod", 5*time.Second))
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// renew puts another namespace in the place of the first node's, with the same pins
// and a pod that has the old one's index and address.
func (w *world) renew(t *testing.T, alive, other bool) {
	t.Helper()
	old, pod := w.nodes[0], w.eps[0]
	macs := map[string]net.HardwareAddr{"hawser_host": nil, "hawser_net": nil}
	inNS(t, old.ns, func() error {
		for dev := range macs {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			macs[dev] = l.Attrs().HardwareAddr
		}
		return nil
	})
	if alive {
		inNS(t, w.fabric, func() error {
			l, err := netlink.LinkByName("port1")
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "old1"))
		})
	} else {
		inNS(t, old.ns, func() (err error) {
			for _, dev := range []string{"eth0", "hawser_host", pod.Device} {
				err = errors.Join(err, deleteDevice(dev))
			}
			return err
		})
	}
	fresh := newNode(t, w.fabric, 1, podNet)
	fresh.pin, fresh.fs = old.pin, old.fs
	fd, err := unix.Dup(int(fresh.ns)) // newNode's is closed before the world ends
	if err != nil {
		t.Fatal(err)
	}
	fresh.ns = netns.NsHandle(fd)
	w.nodes[0], w.renewed = fresh, true
	if !other {
		inNS(t, fresh.ns, func() (err error) {
			for dev, mac := range macs {
				l, lerr := netlink.LinkByName(dev)
				if lerr != nil {
					return lerr
				}
				err = errors.Join(err, netlink.LinkSetHardwareAddr(l, mac))
			}
			return err
		})
	}
	w.pods[0], w.eps[0] = newPod(t, fresh, 20, ips(0).String(), ip6s(0).String())
	w.eps[0].Identity = ident(0)
	if w.eps[0].IfIndex != pod.IfIndex {
		t.Fatalf("the new pod has index %d, the old one had %d", w.eps[0].IfIndex, pod.IfIndex)
	}
}

func deleteDevice(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// adopt opens what is pinned and drops what is stale, as an agent does, before any
// program is attached.
func (w *world) adopt(t *testing.T) *agent {
	t.Helper()
	nd, log := w.nodes[0], slog.New(slog.NewTextHandler(testWriter{t}, nil))
	a := &agent{tables: w.tables(0), done: make(chan error, 1)}
	inNS(t, nd.ns, func() (err error) {
		a.d, err = loader.Open(loader.Config{
			PinPath: nd.pin, BPFFS: nd.fs, UnderlayDevice: "eth0", NodeAddr: nd.addr, NodeAddr6: nd.addr6,
			MapSizes: loader.SmallMaps(),
		}, log)
		if err != nil {
			return err
		}
		if !a.d.Adopted() {
			return errors.New("the pinned maps were not adopted")
		}
		if a.r, err = reconcile.New(a.d, a.tables, log); err != nil {
			return err
		}
		gone, err := a.r.DropEndpoints(func(e maps.Endpoint) bool { return !netdev.Stands(int(e.IfIndex), e.HostMAC, "") })
		if err != nil {
			return err
		}
		if len(gone) != 2 || !slices.Contains(gone, ips(0)) || !slices.Contains(gone, ip6s(0)) {
			return fmt.Errorf("%v are stale, want %v and %v", gone, ips(0), ip6s(0))
		}
		flows, err := a.d.ForgetFlows(func(addr netip.Addr) bool { return slices.Contains(gone, addr) })
		if err == nil && flows == 0 {
			err = errors.New("no flow of the old pod was there")
		}
		return err
	})
	return a
}

// attached attaches to the devices that are there now, and asks them.
func (a *agent) attached(t *testing.T, w *world) error {
	t.Helper()
	inNS(t, w.nodes[0].ns, func() error {
		if err := errors.Join(a.d.AttachUnderlay(), a.d.AttachHost()); err != nil {
			return err
		}
		for _, dev := range []string{"eth0", "hawser_net"} {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			on, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
			if err != nil || len(on.Programs) != 1 {
				return fmt.Errorf("%s has programs %v: %w", dev, on, err)
			}
		}
		return nil
	})
	return nil
}

// closed sends to the old pod's address, and wants nothing of it at the device that
// has its index.
func (a *agent) closed(t *testing.T, w *world) error {
	t.Helper()
	var fd int
	inNS(t, w.pods[0], func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))
		return err
	})
	defer unix.Close(fd)
	before, err := a.entered()
	if err != nil {
		return err
	}
	const sent = 5
	sendUDP(t, w.pods[1], netip.AddrPortFrom(ips(0), stalePort), sent)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		now, err := a.entered()
		if err != nil {
			return err
		}
		if now >= before+sent {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d packets came in from the tunnel, want %d", now-before, sent)
		}
	}
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil
		}
		if n > 24 && buf[9] == unix.IPPROTO_UDP && int(buf[22])<<8|int(buf[23]) == stalePort {
			return errors.New("what is for the old pod came to the new one, that has its index")
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// entered is how many packets from_overlay has seen.
func (a *agent) entered() (n uint64, err error) {
	rows, err := maps.ReadMetrics(a.d.Maps().Metrics)
	for _, r := range rows {
		if r.Program == "from_overlay" && r.Direction == datapath.Ingress {
			n += r.Packets
		}
	}
	return n, err
}

func sendUDP(t *testing.T, from netns.NsHandle, to netip.AddrPort, n int) {
	t.Helper()
	inNS(t, from, func() error {
		c, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.Write([]byte("late")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return nil
	})
}
