// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

const (
	connectServices = 1000
	connectBackends = 10
	connectCount    = 50_000
)

// connectAgain connects sockets, of datagrams, which sends nothing, or of streams
// without waiting: one socket again and again, or a new one each time.
func connectAgain(r role) (outcome, error) {
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: r.Addr.Addr().As4()}
	*(*[2]byte)(unsafe.Pointer(&sa.Port)) = [2]byte{byte(r.Addr.Port() >> 8), byte(r.Addr.Port())}
	fd := -1
	for i := range r.Count {
		if fd < 0 || r.Fresh {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
			var err error
			kind := unix.SOCK_DGRAM
			if r.Stream {
				kind = unix.SOCK_STREAM | unix.SOCK_NONBLOCK
			}
			if fd, err = unix.Socket(unix.AF_INET, kind, 0); err != nil {
				return outcome{}, fmt.Errorf("socket: %w", err)
			}
		}
		if _, _, e := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)); e != 0 && e != unix.EINPROGRESS {
			return outcome{}, fmt.Errorf("connect %d to %s: %w", i, r.Addr, e)
		}
	}
	return outcome{Count: r.Count}, unix.Close(fd)
}

// datagrams sends one and waits for its answer, again and again.
func datagrams(r role) (outcome, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return outcome{}, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(r.Addr.Port()), Addr: r.Addr.Addr().As4()}); err != nil {
		return outcome{}, fmt.Errorf("connect to %s: %w", r.Addr, err)
	}
	one, n := []byte{1}, 0
	for end := time.Now().Add(time.Duration(r.Millis) * time.Millisecond); time.Now().Before(end); n++ {
		if err := ask(fd, one); err != nil {
			return outcome{}, err
		}
	}
	return outcome{Count: n}, nil
}

// tempCgroup is a cgroup of the test's own.
func tempCgroup(t *testing.T) string {
	t.Helper()
	root, err := loader.CgroupRoot()
	if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp(root, "hwperf-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sockService is the UDP address of the i-th service.
func sockService(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}), 53)
}

// TestPerfConnect times connect() to a service at the socket: the program on real
// sockets by the kernel's statistics, net of an empty program on the same calls.
func TestPerfConnect(t *testing.T) {
	r := newReport(t, "connect", fmt.Sprintf("the program on connect(), %d connects a round on one CPU, kernel statistics; %d services of %d backends; net of an empty program in its place", connectCount, connectServices, connectBackends))
	g := newRig(t, mapFill{ips: 10_000, policies: 100})
	g.services()
	ours, bare := tempCgroup(t), tempCgroup(t)
	g.fail(g.d.AttachSockets(ours))
	t.Cleanup(func() { g.fail(g.d.DetachSockets()) })
	empty, lookups := g.bareSockets(bare)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	g.fail(err)
	defer stats.Close()
	prog := g.d.Programs().SockConnect4
	ways := []struct {
		name, goal    string
		fresh, stream bool
		to            netip.AddrPort
	}{
		{"connect() to a service, UDP, the same socket again", "≤ 150", false, false, sockService(7)},
		{"connect() to a service, UDP, new socket", "≤ 150", true, false, sockService(7)},
		{"connect() to a service, TCP, new socket", "≤ 150", true, true, sockService(8)},
		{"connect() to no service, UDP, new socket", "", true, false, netip.MustParseAddrPort("10.98.0.1:53")},
		{"connect() to no service, TCP, new socket", "", true, true, netip.MustParseAddrPort("10.98.0.1:53")},
	}
	raw := map[string][]float64{}
	note := func(name string, v float64) { raw[name] = append(raw[name], v) }
	for range flags.rounds {
		for _, w := range ways {
			watch := watchPrograms(t, empty, lookups)
			g.connects(bare, w.to, w.fresh, w.stream)
			base := watch()
			watch = watchPrograms(t, prog)
			g.connects(ours, w.to, w.fresh, w.stream)
			note(w.name, watch()[0]-base[0])
			note("empty, "+w.name, base[0])
			note("lookups, "+w.name, base[1]-base[0])
		}
		stop := g.churn()
		for _, w := range ways {
			watch := watchPrograms(t, empty)
			g.connects(bare, w.to, w.fresh, w.stream)
			base := watch()
			watch = watchPrograms(t, prog)
			g.connects(ours, w.to, w.fresh, w.stream)
			note(w.name+under(), watch()[0]-base[0])
		}
		stop(r)
	}
	for _, w := range ways {
		r.add(w.name, "ns", w.goal, raw[w.name])
		r.add("  in multiples of two hash lookups", "×", "", ratios(raw[w.name], raw["lookups, "+w.name]))
		r.add("  empty program", "ns", "", raw["empty, "+w.name])
		r.add("  calibration: two hash lookups, net", "ns", "", raw["lookups, "+w.name])
		r.add("  "+under(), "ns", "", raw[w.name+under()])
		r.add("  "+under()+" / quiet", "×", "≤ 1.10", ratios(raw[w.name+under()], raw[w.name]))
	}
	r.finish(t)
}

// services adds services of many backends, and a way out of the namespace.
func (g *rig) services() {
	g.t.Helper()
	for i := range connectServices {
		f := datapath.Frontend{Service: uint32(i + 10)}
		for b := range connectBackends {
			f.Backends = append(f.Backends, datapath.Backend{Addr: g.peer(i*connectBackends + b), Port: 53})
		}
		at := sockService(i)
		proto := uint8(unix.IPPROTO_UDP)
		if i%2 == 0 {
			proto = unix.IPPROTO_TCP
		}
		g.tables.Frontends.Set(datapath.FrontendKey{Addr: at.Addr(), Port: at.Port(), Protocol: proto}, f)
	}
	g.settle()
	g.fail(nsthread.InNetns(g.ns, func() error {
		l, err := netlink.LinkByName("pod")
		if err != nil {
			return err
		}
		peer, err := netlink.LinkByName("inside")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(peer), netlink.LinkSetUp(l), netlink.AddrAdd(l, &netlink.Addr{IPNet: hostNet(nodeAddr(0))}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 0, 0, 0), Mask: net.CIDRMask(8, 32)}}))
	}))
}

// bareSockets puts calibration programs on connect(): an empty one, and two
// hash lookups.
func (g *rig) bareSockets(cgroup string) (empty, lookups *ebpf.Program) {
	g.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 64, MaxEntries: 16384})
	g.fail(err)
	g.t.Cleanup(func() { _ = m.Close() })
	g.fail(m.Put(make([]byte, 16), make([]byte, 64)))
	end := asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
	for _, ins := range []asm.Instructions{end, append(twoLookups(m), end...)} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "perf_connect", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL", Instructions: ins,
		})
		g.fail(err)
		g.t.Cleanup(func() { _ = p.Close() })
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: p})
		g.fail(err)
		g.t.Cleanup(func() { _ = l.Close() })
		empty, lookups = lookups, p
	}
	return empty, lookups
}

// connects runs a client below a cgroup.
func (g *rig) connects(cgroup string, to netip.AddrPort, fresh, stream bool) {
	g.t.Helper()
	pod := filepath.Join(cgroup, "pod")
	g.fail(os.Mkdir(pod, 0o755))
	defer func() { g.fail(os.Remove(pod)) }()
	place, err := os.Open(pod)
	g.fail(err)
	defer place.Close()
	cmd := command(g.t, role{Mode: "connect", Netns: g.ns, CPU: 1, Addr: to, Count: connectCount, Fresh: fresh, Stream: stream})
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(place.Fd())}
	if out, err := cmd.Output(); err != nil {
		g.t.Fatalf("connect to %s: %v: %s", to, err, out)
	}
}
