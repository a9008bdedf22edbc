// SPDX-License-Identifier: Apache-2.0

package cleanup_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/agent/cleanup"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// node is a host with all that an agent leaves on it.
type node struct {
	cfg    cleanup.Config
	cgroup string
	bare   []string // what it was before
}

// onNode calls body in a node's network namespace.
func onNode(t *testing.T, attach string, body func(n *node) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads eBPF programs and makes devices")
	}
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "bpf"), unix.MNT_DETACH) })
	pod := filepath.Join(dir, "pod")
	if err := nsthread.CreateNetns(pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nsthread.DeleteNetns(pod) })
	group := cgroup(t, "own")
	err := nsthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := underlay(); err != nil {
			return err
		}
		n := &node{cgroup: group, cfg: cleanup.Config{
			PinPath: filepath.Join(dir, "bpf", "hawser", "n1"), Socket: filepath.Join(dir, "run", "agent.sock"), Cgroup: group,
		}}
		var err error
		if n.bare, err = snapshot(); err != nil {
			return err
		}
		if err := occupy(n, attach, pod, group); err != nil {
			return err
		}
		return errors.Join(body(n), loader.Cleanup(n.cfg.PinPath))
	})
	if err != nil {
		t.Error(err)
	}
}

func cgroup(t *testing.T, what string) string {
	t.Helper()
	root, err := loader.CgroupRoot()
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(root, fmt.Sprintf("hawser-cleanup-%d-%s-%s", os.Getpid(), what, strings.ReplaceAll(t.Name(), "/", "-")))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	return dir
}

// underlay makes eth0, as a host has it, with a filter of somebody else's on a
// device beside it.
func underlay() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth1"}); err != nil {
		return err
	}
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		return err
	}
	other, err := netlink.LinkByName("eth1")
	if err != nil {
		return err
	}
	err = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: other.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	return errors.Join(err, netlink.AddrAdd(l, a), netlink.LinkSetUp(l), netlink.LinkSetUp(other))
}

// occupy makes what an agent makes, and ends as it does when it is killed.
func occupy(n *node, attach, pod, group string) error {
	if _, err := netdev.EnsureHostDevice(netdev.HostConfig{}); err != nil {
		return err
	}
	dev, err := netdev.EnsurePod(netdev.PodConfig{ContainerID: "c1", Netns: pod, Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.5")}})
	if err != nil {
		return err
	}
	if err := netdev.EnsureRoute(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("192.0.2.1"), 1450); err != nil {
		return err
	}
	const port = 8472
	if _, err := netdev.EnsureTunnelDevice(context.Background(), netdev.TunnelConfig{Port: port}); err != nil {
		return err
	}
	d, err := loader.Open(loader.Config{
		PinPath: n.cfg.PinPath, TunnelDevice: netdev.TunnelDevice, BPFFS: filepath.Dir(filepath.Dir(n.cfg.PinPath)), UnderlayDevice: "eth0", NodeAddr: netip.MustParseAddr("192.0.2.1"), Attach: attach, MapSizes: loader.SmallMaps(),
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	err = errors.Join(d.AttachTunnel(), netdev.SetTunnelUp(port), d.AttachEndpoint(dev.HostDevice), d.AttachUnderlay(), d.AttachHost())
	if err := d.AttachSockets(group); err != nil && !errors.Is(err, loader.ErrNoSockets) {
		return err
	}
	return errors.Join(err, d.Close())
}

// snapshot is all of a network namespace that an agent could change.
func snapshot() ([]string, error) {
	var out []string
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		a := l.Attrs()
		out = append(out, fmt.Sprintf("device %s %s mtu %d flags %v", a.Name, l.Type(), a.MTU, a.Flags&^net.FlagRunning))
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			return nil, err
		}
		for _, q := range qdiscs {
			out = append(out, fmt.Sprintf("qdisc %s %s", a.Name, q.Type()))
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, ad := range addrs {
			if !ad.IP.IsLinkLocalUnicast() { // the kernel's own come when they come
				out = append(out, fmt.Sprintf("address %s %s", a.Name, ad.IPNet))
			}
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	routes6, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	for _, r := range append(routes, routes6...) {
		if r.Dst == nil || !r.Dst.IP.IsLinkLocalUnicast() && !r.Dst.IP.IsMulticast() {
			out = append(out, "route "+r.String())
		}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		out = append(out, "rule "+r.String())
	}
	for _, key := range []string{"all/forwarding", "default/forwarding", "eth0/forwarding", "all/rp_filter", "eth0/rp_filter"} {
		value, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + key)
		if err != nil {
			return nil, err
		}
		out = append(out, "sysctl "+key+" "+strings.TrimSpace(string(value)))
	}
	slices.Sort(out)
	return out, nil
}

// TestNothingRemains compares a host before an agent was there with it after its
// clean-up, and asks the kernel for each program, map and link by its number.
func TestNothingRemains(t *testing.T) {
	for _, attach := range []string{"", loader.AttachClsact} {
		t.Run("attach="+attach, func(t *testing.T) {
			onNode(t, attach, func(n *node) error {
				if now, err := snapshot(); err != nil || slices.Equal(now, n.bare) {
					t.Errorf("an agent changes nothing? %v", err)
				}
				if on, err := onCgroup(n.cgroup); err != nil || on == 0 {
					t.Errorf("no program is on the cgroup, %v", err)
				}
				found, err := cleanup.Find(n.cfg)
				if err != nil {
					return err
				}
				kinds := map[string]int{}
				for _, it := range found {
					kinds[it.Kind]++
				}
				for kind, least := range map[string]int{"filter": 1, "link": 5, "program": 9, "map": 20, "pins": 1, "route": 1, "device": 3} {
					if kinds[kind] < least {
						t.Errorf("%d of kind %s found, want %d or more: %v", kinds[kind], kind, least, found)
					}
				}
				items, err := cleanup.Run(t.Context(), n.cfg)
				if err != nil {
					return err
				}
				for _, it := range items {
					if it.Result != cleanup.Removed {
						t.Errorf("%s %s is %s", it.Kind, it.Name, it.Result)
					}
					if exists(it.Kind, it.ID) {
						t.Errorf("the kernel still has %s %s", it.Kind, it.Name)
					}
				}
				if now, err := snapshot(); err != nil || !slices.Equal(now, n.bare) {
					t.Errorf("%v\nbefore the agent:\n%s\nafter its clean-up:\n%s", err, strings.Join(n.bare, "\n"), strings.Join(now, "\n"))
				}
				if _, err := os.Stat(filepath.Dir(n.cfg.PinPath)); !os.IsNotExist(err) {
					t.Errorf("the directory of pins: %v", err)
				}
				if on, err := onCgroup(n.cgroup); err != nil || on > 0 {
					t.Errorf("%d programs are on the cgroup, %v", on, err)
				}
				again, err := cleanup.Run(t.Context(), n.cfg)
				if len(again) > 0 {
					t.Errorf("the second time it found %v", again)
				}
				return err
			})
		})
	}
}

// onCgroup is how many programs the kernel runs for the sockets of a cgroup.
func onCgroup(path string) (n int, err error) {
	dir, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCgroupInetSockRelease} {
		on, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: at})
		if err != nil {
			return n, err
		}
		n += len(on.Programs)
	}
	return n, nil
}

func exists(kind string, id uint32) bool {
	switch kind {
	case loader.KindLink:
		l, err := link.NewFromID(link.ID(id))
		return err == nil && l.Close() == nil
	case loader.KindMap:
		return loader.MapExists(id)
	case loader.KindProgram, loader.KindFilter:
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		return err == nil && p.Close() == nil
	}
	return false
}

// TestWhatIsHeldIsTold has another process hold a map: first it counts as an
// agent that runs, then what is left is told with who holds it.
func TestWhatIsHeldIsTold(t *testing.T) {
	onNode(t, "", func(n *node) error {
		m, err := ebpf.LoadPinnedMap(filepath.Join(n.cfg.PinPath, "maps", "ipcache"), nil)
		if err != nil {
			return err
		}
		fd, err := unix.Dup(m.FD())
		if err != nil {
			return err
		}
		if err := m.Close(); err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), "map")
		holder := exec.CommandContext(t.Context(), "sleep", "60")
		holder.ExtraFiles = []*os.File{file}
		if err := errors.Join(holder.Start(), file.Close()); err != nil {
			return err
		}
		defer func() {
			_ = holder.Process.Kill()
			_ = holder.Wait()
		}()
		who := fmt.Sprintf("process %d (sleep)", holder.Process.Pid)
		var running *cleanup.RunningError
		if _, err := cleanup.Run(t.Context(), n.cfg); !errors.As(err, &running) || !slices.Contains(running.Who, who) {
			t.Errorf("with an agent that runs: %v, want %s", err, who)
		}
		if found, err := cleanup.Find(n.cfg); err != nil || len(found) < 30 {
			t.Errorf("after the refusal %d are there, %v", len(found), err)
		}
		n.cfg.Force = true
		items, err := cleanup.Run(t.Context(), n.cfg)
		if err == nil || !strings.Contains(err.Error(), "map ipcache: held by "+who) {
			t.Errorf("forced: %v, want that %s holds ipcache", err, who)
		}
		for _, it := range items {
			if left := it.Result == cleanup.Left; left != (it.Kind == loader.KindMap && it.Name == "ipcache") {
				t.Errorf("%s %s is %s", it.Kind, it.Name, it.Result)
			}
		}
		return nil
	})
}

// TestAgentThatAnswersIsRunning refuses by the socket alone.
func TestAgentThatAnswersIsRunning(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: looks at the programs of devices")
	}
	socket := filepath.Join(t.TempDir(), "agent.sock")
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	var running *cleanup.RunningError
	_, err = cleanup.Run(t.Context(), cleanup.Config{PinPath: filepath.Join(t.TempDir(), "pins"), Socket: socket})
	if !errors.As(err, &running) || !strings.Contains(err.Error(), socket) {
		t.Errorf("%v, want that it answers on %s", err, socket)
	}
}

// TestFilesOfOthersStay removes the agent's files only: an API server may have
// its data in the same directory.
func TestFilesOfOthersStay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: looks at the devices of a namespace of its own")
	}
	dir := t.TempDir()
	for _, name := range []string{"state/endpoints/1.json", "state/podcidr.json", "state/etcd/member", "tls/tls.key", "tls/enrolment.json"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	err := nsthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		_, err := cleanup.Run(t.Context(), cleanup.Config{
			PinPath: filepath.Join(dir, "pins"), StateDir: filepath.Join(dir, "state"), TLSDir: filepath.Join(dir, "tls"),
		})
		return err
	})
	if err != nil {
		t.Error(err)
	}
	var left []string
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, _ error) error {
		if !d.IsDir() {
			left = append(left, strings.TrimPrefix(path, dir+"/"))
		}
		return nil
	})
	if want := []string{"state/etcd/member"}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "tls")); !os.IsNotExist(err) {
		t.Errorf("the empty directory: %v", err)
	}
}
