// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/identity"
)

const (
	podNet  = "10.0.0.0/8"
	podNet6 = "fd00::/16"
)

// world is two nodes with a pod each.
type world struct {
	fabric netns.NsHandle
	nodes  [2]*node
	pods   [2]netns.NsHandle
	eps    [2]datapath.Endpoint
	agents [2]*agent
	// renewed: the first node's namespace is to be closed
	renewed bool
}

func ips(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.%d.0.5", n+1)) }

func ip6s(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::5", n+1)) }

func ident(n int) identity.Number { return identity.Number(1<<16 + 300 + n) }

func newWorld(t *testing.T) *world { return newWorldWith(t, "") }

// makes are who makes the tunnel's headers on the two nodes.
func makes() map[string][2]string {
	dev := netdev.TunnelDevice
	return map[string][2]string{"ebpf": {}, "netdev": {dev, dev}, "netdev and ebpf": {dev, ""}}
}

func newWorldWith(t *testing.T, attach string) *world { return newWorldOf(t, attach, [2]string{}) }

func newWorldOf(t *testing.T, attach string, tunnels [2]string) *world {
	needRoot(t)
	w := &world{fabric: newFabric(t)}
	for i := range w.nodes {
		w.nodes[i] = newNode(t, w.fabric, i+1, podNet)
		w.nodes[i].tunnel = tunnels[i]
		w.pods[i], w.eps[i] = newPod(t, w.nodes[i], uint16(i+10), ips(i).String(), ip6s(i).String())
		w.eps[i].Identity = ident(i)
	}
	for i := range w.nodes {
		w.agents[i] = startAgentWith(t, attach, w.nodes[i], w.tables(i), w.eps[i].Device)
	}
	t.Cleanup(func() {
		for i, a := range w.agents {
			a.stop(t)
			inNS(t, w.nodes[i].ns, func() error { return loader.Cleanup(w.nodes[i].pin) })
			if _, err := os.Stat(w.nodes[i].pin); !os.IsNotExist(err) {
				t.Errorf("clean-up left %s", w.nodes[i].pin)
			}
		}
		if w.renewed {
			_ = w.nodes[0].ns.Close()
		}
	})
	for _, a := range w.agents {
		a.wait(t)
	}
	return w
}

// tables are what node i's agent would know.
func (w *world) tables(i int) *datapath.Tables {
	tb := datapath.NewTables()
	other := 1 - i
	tb.Endpoints.Set(w.eps[i].ID, w.eps[i])
	tb.Nodes.Set(w.nodes[other].addr, datapath.Node{Tunnel: w.nodes[other].addr, ClusterID: 1})
	for n := range w.nodes {
		tb.Identities.Set(ident(n), datapath.Identity{Number: ident(n), ClusterID: 1})
		var tunnel netip.Addr
		hostIs := datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost}
		if n != i {
			tunnel = w.nodes[n].addr
			hostIs = datapath.IPEntry{Identity: identity.RemoteNode, Tunnel: tunnel, Flags: datapath.IPRemoteNode}
		}
		for _, a := range []netip.Addr{w.nodes[n].addr, w.nodes[n].addr6} {
			tb.IPCache.Set(single(a), hostIs)
		}
		for _, a := range []netip.Addr{ips(n), ip6s(n)} {
			tb.IPCache.Set(single(a), datapath.IPEntry{Identity: ident(n), Tunnel: tunnel})
		}
	}
	return tb
}

func single(a netip.Addr) datapath.IPKey {
	return datapath.IPKey{Prefix: netip.PrefixFrom(a, a.BitLen())}
}

// serve answers each line with itself, on TCP, in a namespace.
func serve(t *testing.T, ns netns.NsHandle, port int) {
	t.Helper()
	var l net.Listener
	inNS(t, ns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
}

func dial(t *testing.T, ns netns.NsHandle, to netip.Addr, port uint16) net.Conn {
	t.Helper()
	var c net.Conn
	inNS(t, ns, func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, port).String(), 5*time.Second)
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func echo(c net.Conn, text string, timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, text); err != nil {
		return err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if got != text+"\n" {
		return fmt.Errorf("sent %q, got %q back", text, got)
	}
	return nil
}

// ping sends an ICMP echo and waits for its answer.
func ping(t *testing.T, ns netns.NsHandle, to netip.Addr) {
	t.Helper()
	if to.Is6() {
		ping6(t, ns, to)
		return
	}
	var c net.Conn
	inNS(t, ns, func() (err error) {
		c, err = net.Dial("ip4:icmp", to.String())
		return err
	})
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	request := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}
	binary.BigEndian.PutUint16(request[2:], ^(uint16(0x0800) + 0x1234 + 1))
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1500)
	for {
		n, err := c.Read(answer)
		if err != nil {
			t.Fatalf("ping %s: %v", to, err)
		}
		// The read gives the IP header too.
		if n >= 28 && answer[20] == 0 && answer[24] == 0x12 {
			return
		}
	}
}

func (w *world) dropped(t *testing.T, i int) []maps.MetricRow {
	t.Helper()
	rows, err := maps.ReadMetrics(w.agents[i].d.Maps().Metrics)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestPodsAcrossNodes(t *testing.T) {
	for name, tunnels := range makes() {
		t.Run(name, func(t *testing.T) { podsAcrossNodes(t, newWorldOf(t, "", tunnels)) })
	}
}

func podsAcrossNodes(t *testing.T, w *world) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("node 0 %+v\nnode 1 %+v", w.dropped(t, 0), w.dropped(t, 1))
		}
	})
	pairs := []struct {
		name string
		from netns.NsHandle
		to   netip.Addr
		at   netns.NsHandle
	}{
		{"pod to remote pod", w.pods[0], ips(1), w.pods[1]},
		{"remote pod to pod", w.pods[1], ips(0), w.pods[0]},
		{"host to own pod", w.nodes[0].ns, ips(0), w.pods[0]},
		{"host to remote pod", w.nodes[0].ns, ips(1), w.pods[1]},
		{"pod to own host", w.pods[0], w.nodes[0].addr, w.nodes[0].ns},
		{"pod to remote host", w.pods[0], w.nodes[1].addr, w.nodes[1].ns},
	}
	served := map[netns.NsHandle]bool{}
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			if !served[p.at] {
				serve(t, p.at, 8080)
			}
			ping(t, p.from, p.to)
			if err := echo(dial(t, p.from, p.to, 8080), "hello", 5*time.Second); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("frag needed", func(t *testing.T) { w.fragNeeded(t) })
}

// fragNeeded sends a packet that fits no tunnel and expects to be told.
func (w *world) fragNeeded(t *testing.T) {
	inNS(t, w.pods[0], func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		route := podRoute(l)
		route.MTU = 0 // the pod no longer knows better
		if err := netlink.RouteReplace(route); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Port: 9, Addr: ips(1).As4()}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
			unix.Connect(fd, to))
		if err != nil {
			return err
		}
		return toldTooBig(fd, unix.IPPROTO_IP, unix.IP_MTU)
	})
}

// toldTooBig sends datagrams that fit no tunnel on a connected socket until the
// kernel refuses them, and checks the path MTU that it learnt.
func toldTooBig(fd, level, option int) error {
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := unix.Write(fd, make([]byte, 1450))
		if errors.Is(err, unix.EMSGSIZE) {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("an oversized datagram is still accepted (%w)", err)
		}
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	if err == nil && mtu != 1500-overhead {
		err = fmt.Errorf("path MTU is %d, want %d", mtu, 1500-overhead)
	}
	return err
}

func (a *agent) ids(t *testing.T) (out []string) {
	t.Helper()
	infos, err := a.d.ListMaps()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range infos {
		out = append(out, fmt.Sprintf("map %s %d", m.Name, m.ID))
	}
	links, err := a.d.Attachments()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, fmt.Sprintf("link %s %s %d", l.Program, l.Device, l.LinkID))
	}
	info, err := a.d.Programs().FromPod.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return append(out, fmt.Sprintf("program %d", id))
}

// A restarted agent starts with empty tables and must not be noticed: not by
// the kernel's ids, not by an open connection.
func TestRestartIsNotSeen(t *testing.T) {
	all := makes()
	for _, name := range []string{"ebpf", "netdev"} {
		t.Run(name, func(t *testing.T) { restartIsNotSeen(t, newWorldOf(t, "", all[name])) })
	}
}

func restartIsNotSeen(t *testing.T, w *world) {
	serve(t, w.pods[1], 8080)
	c := dial(t, w.pods[0], ips(1), 8080)
	if err := echo(c, "before", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	before := w.agents[0].ids(t)
	w.agents[0].stop(t)
	if err := echo(c, "while stopped", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	empty := datapath.NewTables()
	w.agents[0] = startAgent(t, w.nodes[0], empty, w.eps[0].Device)
	w.agents[0].wait(t)
	if !w.agents[0].d.Adopted() {
		t.Error("pinned maps were not adopted")
	}
	if after := w.agents[0].ids(t); !slices.Equal(before, after) {
		t.Errorf("ids before %v\nafter %v", before, after)
	}
	if err := echo(c, "empty tables", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := echo(dial(t, w.pods[0], ips(1), 8080), "new", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	// Declared complete, an empty table empties the kernel.
	if err := w.agents[0].r.MarkComplete("endpoints"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		left, err := maps.Dump[maps.IPKey, maps.Endpoint](w.agents[0].d.Maps().Endpoints)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("endpoints still in the kernel: %v", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A revoked rule stops the open connection at its next packet.
func TestRevokedRuleStopsOpenConnection(t *testing.T) {
	w := newWorld(t)
	serve(t, w.pods[1], 8080)
	rule := datapath.RuleSet{ID: 7, Ingress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Identity: ident(0), Protocol: 6, Port: 8080}: {Origin: 3},
	}}
	server := w.agents[1]
	server.tables.RuleSets.Set(7, rule)
	ep := w.eps[1]
	ep.RuleSet = 7
	server.tables.Endpoints.Set(ep.ID, ep)
	server.wait(t)
	c := dial(t, w.pods[0], ips(1), 8080)
	if err := echo(c, "allowed", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	server.tables.RuleSets.Set(7, datapath.RuleSet{ID: 7, Ingress: true})
	server.wait(t)
	if err := echo(c, "revoked", 300*time.Millisecond); err == nil {
		t.Fatal("the connection outlived its rule")
	}
	denied := slices.ContainsFunc(w.dropped(t, 1), func(r maps.MetricRow) bool {
		return r.Reason == maps.DropPolicyDenied && r.Direction == datapath.Ingress
	})
	if !denied {
		t.Errorf("no drop counted: %+v", w.dropped(t, 1))
	}
	server.tables.RuleSets.Set(7, rule)
	server.wait(t)
	// The connection recovers by retransmission: the flow is judged again.
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != "revoked\n" {
		t.Fatalf("after the rule came back: %q, %v", got, err)
	}
}
