// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// askVar, in the environment, makes TestAsk the client in a cgroup.
const askVar = "HAWSER_TEST_ASK"

// TestAsk is run in a process of its own: it asks services in the ways that its
// parent wants, and prints what it saw.
func TestAsk(t *testing.T) {
	ways := os.Getenv(askVar)
	if ways == "" {
		t.Skip("run by other tests")
	}
	for _, way := range strings.Fields(ways) {
		how, addr, _ := strings.Cut(way, "=")
		answer, err := ask(how, netip.MustParseAddrPort(addr))
		if err != nil {
			answer = err.Error()
		}
		fmt.Printf("SAW %s\n", answer)
	}
}

// reconnect connects one UDP socket to a service until another backend answers, at
// most so often, and says whether one did.
func reconnect(to netip.AddrPort, tries int) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	first, buf := "", make([]byte, 64)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && tries > 0; tries-- {
		if err := unix.Connect(fd, sa); err != nil {
			return "", err
		}
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			return "", err
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return "", err
		}
		switch got := string(buf[:n]); {
		case first == "":
			first = got
		case got != first:
			return "moved to " + got, nil
		}
	}
	return "stayed with " + first, nil
}

func ask(how string, to netip.AddrPort) (string, error) {
	switch how {
	case "again":
		return reconnect(to, 50)
	case "reconnect":
		return reconnect(to, math.MaxInt)
	case "fuzz":
		return fuzzSockets(to.Addr(), int(to.Port()))
	}
	kind := unix.SOCK_DGRAM
	if how == "tcp" {
		kind = unix.SOCK_STREAM
	}
	family := unix.AF_INET6
	if to.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return "", err
	}
	if how == "moved" { // to where it is now, which is no service
		if err := unix.Connect(fd, sockaddr(to)); err != nil {
			return "", err
		}
		to = netip.MustParseAddrPort("127.0.0.1:8080")
	}
	if how == "second" { // after another service with the same backend
		first := netip.AddrPortFrom(netip.MustParseAddr(vip), 80)
		if err := errors.Join(unix.Sendto(fd, []byte("x"), 0, sockaddr(first)), received(fd)); err != nil {
			return "", err
		}
		how = "sendmsg"
	}
	if how == "direct" { // to where it has sent by the service, by its own address
		if err := errors.Join(unix.Sendto(fd, []byte("x"), 0, sockaddr(to)), received(fd)); err != nil {
			return "", err
		}
		to = netip.MustParseAddrPort("127.0.0.1:8080")
		if family == unix.AF_INET6 {
			to = netip.MustParseAddrPort("[::1]:8080")
		}
	}
	sa := sockaddr(to)
	if how == "sendmsg" {
		if err := unix.Sendto(fd, []byte("x"), 0, sa); err != nil {
			return "", err
		}
	} else {
		if err := unix.Connect(fd, sa); err != nil {
			return "", err
		}
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 64)
	n, from, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return "", err
	}
	peer := from
	if how != "sendmsg" {
		if peer, err = unix.Getpeername(fd); err != nil {
			return "", err
		}
	}
	if from != nil && addrPort(from) != addrPort(peer) {
		return fmt.Sprintf("%s from %s, connected to %s", buf[:n], addrPort(from), addrPort(peer)), nil
	}
	return fmt.Sprintf("%s from %s", buf[:n], addrPort(peer)), nil
}

func received(fd int) error {
	_, _, err := unix.Recvfrom(fd, make([]byte, 64), 0)
	return err
}

// sockaddr is an address for a socket of its family; a mapped one is for IPv6.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	if p, ok := sa.(*unix.SockaddrInet4); ok {
		return netip.AddrPortFrom(netip.AddrFrom4(p.Addr), uint16(p.Port))
	}
	p := sa.(*unix.SockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(p.Addr), uint16(p.Port))
}

// cgroup makes a cgroup and puts the socket programs on it.
func (h *harness) cgroup() string {
	h.t.Helper()
	root, err := loader.CgroupRoot()
	if err != nil {
		h.t.Skip(err)
	}
	dir, err := os.MkdirTemp(root, "hawser-test-*")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			h.t.Error(err)
		}
	})
	err = h.d.AttachSockets(dir)
	if errors.Is(err, loader.ErrNoSockets) {
		h.t.Skip(err)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return dir
}

// asks runs TestAsk in a cgroup below dir and returns what it saw.
func (h *harness) asks(dir string, ways ...string) (saw []string) {
	h.t.Helper()
	pod := filepath.Join(dir, "pod")
	if err := os.Mkdir(pod, 0o755); err != nil {
		h.t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(pod); err != nil {
			h.t.Error(err)
		}
	}()
	place, err := os.Open(pod)
	if err != nil {
		h.t.Fatal(err)
	}
	defer place.Close()
	cmd := exec.CommandContext(h.t.(*testing.T).Context(), os.Args[0], "-test.run=^TestAsk$")
	cmd.Env = append(os.Environ(), askVar+"="+strings.Join(ways, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(place.Fd())}
	var out []byte
	h.in(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	for line := range strings.Lines(string(out)) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "SAW "); ok {
			saw = append(saw, s)
		}
	}
	if len(saw) != len(ways) {
		h.t.Fatalf("asked %d times, saw %d answers:\n%s", len(ways), len(saw), out)
	}
	return saw
}

// answers serves TCP and UDP on an address of the namespace: with who asks.
func (h *harness) answers(at string) {
	h.t.Helper()
	h.in(func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return err
		}
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		lis, err := lc.Listen(h.t.(*testing.T).Context(), "tcp", at)
		if err != nil {
			return err
		}
		pc, err := lc.ListenPacket(h.t.(*testing.T).Context(), "udp", at)
		if err != nil {
			return err
		}
		h.t.Cleanup(func() { _, _ = lis.Close(), pc.Close() })
		go func() {
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = c.Write([]byte(at))
				_, _ = c.Read(make([]byte, 64))
				_ = c.Close()
			}
		}()
		go func() {
			for {
				_, from, err := pc.ReadFrom(make([]byte, 64))
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(at), from)
			}
		}()
		return nil
	})
}

// No packet can reach the service's address here: what is answered was
// translated at the socket.
func TestSocketsReachServices(t *testing.T) {
	h := newHarness(t)
	dir := h.cgroup()
	h.answers("127.0.0.1:8080")
	for _, proto := range []uint8{tcp, udp} {
		h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: proto}, datapath.Frontend{
			Service: 1, Backends: []datapath.Backend{{Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}},
		})
	}
	h.sync()
	want := "127.0.0.1:8080 from " + vip + ":80"
	for i, got := range h.asks(dir, "tcp="+vip+":80", "udp="+vip+":80", "sendmsg="+vip+":80") {
		if got != want {
			t.Errorf("way %d: saw %q, want %q", i, got, want)
		}
	}
	// What is no service is left alone, and shown as it is.
	for i, got := range h.asks(dir, "tcp=127.0.0.1:8080", "udp=127.0.0.1:8080", "sendmsg=127.0.0.1:8080") {
		if got != "127.0.0.1:8080 from 127.0.0.1:8080" {
			t.Errorf("way %d: saw %q", i, got)
		}
	}
	// A socket that connects again is not what it was before.
	if got := h.asks(dir, "moved="+vip+":80")[0]; got != "127.0.0.1:8080 from 127.0.0.1:8080" {
		t.Errorf("connected again: saw %q", got)
	}
	// One that has sent to a service and then connects to the backend itself shows that.
	if got := h.asks(dir, "direct="+vip+":80")[0]; got != "127.0.0.1:8080 from 127.0.0.1:8080" {
		t.Errorf("connected to the backend after sending to the service: saw %q", got)
	}
	links, err := maps.Dump[uint64, maps.SockLink](h.d.Maps().SockLinks)
	if err != nil || len(links) != 0 {
		t.Errorf("%d links (%v), want none: their sockets are closed", len(links), err)
	}
	peers, err := maps.Dump[maps.SockKey, maps.SockPeer](h.d.Maps().SockPeers)
	if err != nil {
		t.Fatal(err)
	}
	connected := 0
	for k, v := range peers {
		if v.Addr.Netip().String() != vip || v.Port.Uint16() != 80 || k.Port.Uint16() != 8080 || k.Cookie == 0 {
			t.Errorf("%+v: %+v", k, v)
		}
		if v.Flags&maps.SockConnected != 0 {
			connected++
		}
	}
	// The connected ones are closed.
	if len(peers) != 1 || connected != 0 {
		t.Errorf("%d sockets, %d connected, want 1 and 0", len(peers), connected)
	}
	// One that sends to another service with the same backend sees that one answer.
	second := datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 81, Protocol: udp}
	h.tables.Frontends.Set(second, datapath.Frontend{Service: 2, Backends: []datapath.Backend{{Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}}})
	h.sync()
	if got := h.asks(dir, "second="+vip+":81")[0]; got != "127.0.0.1:8080 from "+vip+":81" {
		t.Errorf("sent to a second service: saw %q", got)
	}
	// Off again, the address is one that nobody has.
	if err := h.d.DetachSockets(); err != nil {
		t.Fatal(err)
	}
	for i, got := range h.asks(dir, "tcp="+vip+":80", "sendmsg="+vip+":80") {
		if got != "network is unreachable" {
			t.Errorf("without programs, way %d: saw %q", i, got)
		}
	}
}

// A UDP socket that connects to a service again and again keeps its backend, until
// the service's backends change.
func TestSocketConnectsAgain(t *testing.T) {
	h := newHarness(t)
	dir := h.cgroup()
	row := datapath.Frontend{Service: 1}
	for _, at := range []string{"127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082"} {
		h.answers(at)
		a := netip.MustParseAddrPort(at)
		row.Backends = append(row.Backends, datapath.Backend{Addr: a.Addr(), Port: a.Port()})
	}
	key := datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: udp}
	h.tables.Frontends.Set(key, row)
	h.sync()
	if got := h.asks(dir, "again="+vip+":80")[0]; !strings.HasPrefix(got, "stayed with ") {
		t.Errorf("without a change: %s", got)
	}
	saw := make(chan string, 1)
	go func() { saw <- h.asks(dir, "reconnect="+vip+":80")[0] }()
	var link maps.SockLink
	for end := time.Now().Add(5 * time.Second); link.BackendPort.Uint16() == 0; {
		links, err := maps.Dump[uint64, maps.SockLink](h.d.Maps().SockLinks)
		if err != nil || time.Now().After(end) {
			t.Fatalf("no socket is connected: %v", err)
		}
		for _, l := range links {
			link = l
		}
	}
	other := slices.IndexFunc(row.Backends, func(b datapath.Backend) bool { return b.Port != link.BackendPort.Uint16() })
	row.Backends = row.Backends[other : other+1 : other+1]
	h.tables.Frontends.Set(key, row)
	h.sync()
	if got := <-saw; got != fmt.Sprintf("moved to 127.0.0.1:%d", row.Backends[0].Port) {
		t.Errorf("backends were narrowed to %v: %s", row.Backends, got)
	}
}

// A connected socket that finds the map of its kind full is balanced all the same,
// and shows the service.
func TestSocketsFindNoRoom(t *testing.T) {
	const room = 64
	sizes := loader.SmallMaps()
	sizes.Sockets = room
	h := newHarnessWith(t, loader.Config{ClusterBits: identity.DefaultClusterBits, MapSizes: sizes})
	dir := h.cgroup()
	h.answers("127.0.0.1:8080")
	h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: tcp}, datapath.Frontend{
		Service: 1, Backends: []datapath.Backend{{Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}},
	})
	h.sync()
	for cookie := range uint64(room) {
		if err := h.d.Maps().SockLinks.Put(1<<40+cookie, maps.SockLink{}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := h.asks(dir, "tcp="+vip+":80")[0], "127.0.0.1:8080 from "+vip+":80"; got != want {
		t.Errorf("saw %q, want %q", got, want)
	}
}

// A service without backends is left to the packet, which is answered.
func TestSocketsLeaveIdleServices(t *testing.T) {
	h := newHarness(t)
	dir := h.cgroup()
	h.idle()
	for i, got := range h.asks(dir, "tcp="+vip+":80", "udp="+vip+":80", "sendmsg="+vip+":80") {
		if got != "network is unreachable" {
			t.Errorf("way %d: saw %q", i, got)
		}
	}
}

// IPv6 sockets reach IPv6 services, and IPv4 services by mapped addresses.
func TestIPv6SocketsReachServices(t *testing.T) {
	h := newHarness(t)
	dir := h.cgroup()
	h.answers("127.0.0.1:8080")
	h.answers("[::1]:8080")
	mapped := "::ffff:" + vip
	for _, proto := range []uint8{tcp, udp} {
		for vip, backend := range map[string]string{vip: "127.0.0.1", vip6: "::1", idle6: "127.0.0.1"} {
			h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: proto}, datapath.Frontend{
				Service: 1, Backends: []datapath.Backend{{Addr: netip.MustParseAddr(backend), Port: 8080}},
			})
		}
	}
	h.sync()
	for _, c := range []struct{ ask, shown, answer string }{
		{"[" + vip6 + "]:80", "[" + vip6 + "]:80", "[::1]:8080"},
		{"[" + mapped + "]:80", "[" + mapped + "]:80", "127.0.0.1:8080"},
		{"[::1]:8080", "[::1]:8080", "[::1]:8080"},
	} {
		for i, got := range h.asks(dir, "tcp="+c.ask, "udp="+c.ask, "sendmsg="+c.ask) {
			if want := c.answer + " from " + c.shown; got != want {
				t.Errorf("%s, way %d: saw %q, want %q", c.ask, i, got, want)
			}
		}
	}
	if got := h.asks(dir, "direct=["+vip6+"]:80")[0]; got != "[::1]:8080 from [::1]:8080" {
		t.Errorf("connected to the backend after sending to the service: saw %q", got)
	}
	// A backend of the other family cannot take the connection.
	for i, got := range h.asks(dir, "tcp=["+idle6+"]:80", "sendmsg=["+idle6+"]:80") {
		if got != "network is unreachable" {
			t.Errorf("way %d: saw %q", i, got)
		}
	}
	peers, err := maps.Dump[maps.SockKey, maps.SockPeer](h.d.Maps().SockPeers)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range peers {
		if v.Flags&maps.SockConnected != 0 {
			t.Errorf("%+v: %+v: the connected ones are closed", k, v)
		}
	}
	if len(peers) != 2 {
		t.Errorf("%d sockets, want those that sent", len(peers))
	}
}
