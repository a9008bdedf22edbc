// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// A flood takes this long at least: it is to outnumber, not to outrun; least is the
// pause between its bursts.
const (
	floodTime = 8 * time.Second
	least     = 4 * time.Millisecond
)

// floodSources are the addresses that floods come from, which nobody has.
func floodSources() netip.Prefix { return netip.MustParsePrefix("198.51.100.0/24") }

// cmdFlood is `flood syn|icmp POD`: from outside, 120 % as many flows as the
// conntrack of the pod's node has room for: SYNs that the pod answers and nobody
// confirms, or pings, which it answers. All of them reach the pod, but for those that
// find conntrack full: no SYN may, and some pings must.
func cmdFlood(s *script, args []string) (string, error) {
	if len(args) != 2 || args[0] != "syn" && args[0] != "icmp" {
		return "", usage("flood syn|icmp CLUSTER/POD")
	}
	pod, err1 := s.place(args[1])
	fabric, err2 := s.place("fabric")
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	room, err := s.conntrackRoom(pod.node, args[0] == "syn")
	if err != nil {
		return "", err
	}
	const full = "conntrack full"
	refused, err1 := s.world.drops(pod.node, full)
	before, err2 := taken(args[0], pod.netns)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	// The pod keeps nothing of a SYN: else it answers thousands again at once, more than
	// a CPU's queue has room for.
	err = nsthread.InNetns(pod.netns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0o644)
	})
	if err != nil {
		return "", err
	}
	n := room * 12 / 10
	err = nsthread.InNetns(fabric.netns, func() error {
		nowhere := &netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: ipNet(floodSources())}
		if err := netlink.RouteAdd(nowhere); err != nil {
			return err
		}
		return errors.Join(flood(args[0], pod.addr, n), netlink.RouteDel(nowhere))
	})
	if err != nil {
		return "", err
	}
	after, err1 := taken(args[0], pod.netns)
	late, err2 := s.world.drops(pod.node, full)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	s.count("flood", uint64(n))
	if came, dropped := after-before, late-refused; came+dropped < uint64(n) {
		return "", fmt.Errorf("of a flood of %d, %d reached %s, and %d were dropped as %q", n, came, args[1], dropped, full)
	}
	if some := late > refused; some != (args[0] == "icmp") {
		return "", fmt.Errorf("%d packets were dropped as %q", late-refused, full)
	}
	return fmt.Sprintf("%d packets, room for %d flows, %d found no room\n", n, room, late-refused), nil
}

// taken is how many packets of a kind of flood a network namespace has answered so
// far: SYNs, by cookies, or pings. It is the kernel's count.
func taken(kind, netns string) (n uint64, err error) {
	file, group, name := "/proc/thread-self/net/netstat", "TcpExt:", "SyncookiesSent"
	if kind == "icmp" {
		file, group, name = "/proc/thread-self/net/snmp", "Icmp:", "InEchos"
	}
	var text []byte
	err = nsthread.InNetns(netns, func() (err error) {
		text, err = os.ReadFile(file)
		return err
	})
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		switch fields := strings.Fields(line); {
		case fields[0] != group:
		case names == nil: // the first line has the names, the second the values
			names = fields
		default:
			if at := slices.Index(names, name); at > 0 && at < len(fields) {
				return strconv.ParseUint(fields[at], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("%s has no %s %s", file, group, name)
}

// conntrackRoom is for how many flows of IPv4 a node has room.
func (s *script) conntrackRoom(node string, halfOpen bool) (n int, err error) {
	for _, name := range []string{"ct4", "ct4_open"} {
		if name == "ct4_open" && !halfOpen {
			break
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(s.world.nodes[node].PinPath, "maps", name), nil)
		if err != nil {
			return 0, err
		}
		n += int(m.MaxEntries())
		_ = m.Close()
	}
	return n, nil
}

// flood sends n packets, each of another flow, evenly over floodTime.
func flood(kind string, to netip.Addr, n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	start, source := time.Now(), floodSources().Addr()
	for i := range n {
		const hosts, firstPort, burst = 200, 1024, 50
		if i%hosts == 0 {
			source = floodSources().Addr()
		}
		if i%burst == 0 { // never all that is due at once: it is conntrack that is to be full, not a CPU's queue
			time.Sleep(max(least, time.Until(start.Add(floodTime*time.Duration(i)/time.Duration(n)))))
		}
		source = source.Next()
		packet, err := floodPacket(kind, source, to, uint16(firstPort+i/hosts))
		if err != nil {
			return err
		}
		if err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
			return fmt.Errorf("packet %d of the flood: %w", i, err)
		}
	}
	return nil
}

func floodPacket(kind string, from, to netip.Addr, port uint16) ([]byte, error) {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(port), DstPort: loadPort, SYN: true, Seq: 1, Window: 65535}
	ping := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: port}
	stack := []gopacket.SerializableLayer{ip, tcp}
	err := tcp.SetNetworkLayerForChecksum(ip)
	if kind == "icmp" {
		ip.Protocol, stack = layers.IPProtocolICMPv4, []gopacket.SerializableLayer{ip, ping}
	}
	if err != nil {
		return nil, err
	}
	buf := gopacket.NewSerializeBuffer()
	err = gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...)
	return buf.Bytes(), err
}
