// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab/netns"
)

// mapFill is how much is in the maps beside what the packets use, and of which
// family the addresses are.
type mapFill struct {
	ips, policies int
	v6            bool
}

func (f mapFill) String() string {
	s := fmt.Sprintf("%d ipcache, %d policy", f.ips, f.policies)
	if f.v6 {
		s += ", IPv6"
	}
	return s
}

// Numbers of the rig's world.
const (
	rigClient     = identity.Number(1<<16 + 300)
	rigRemote     = identity.Number(1<<16 + 301)
	rigRuleSet    = 5
	rigClientPort = 1000
	rigServerPort = 80
	rigService    = 8080 // port of the backend
	rigRounds     = 100_000
)

func (f mapFill) pod() netip.Addr { return f.addr(10<<24 | 1<<16 | 5) }
func (f mapFill) vip() netip.Addr { return f.addr(10<<24 | 96<<16 | 10) }
func (f mapFill) peer(i int) netip.Addr {
	return f.addr(10<<24 | 2<<16 + uint32(i))
}

// addr is an IPv4 address, or the IPv6 address that ends like it.
func (f mapFill) addr(v4 uint32) netip.Addr {
	a := [16]byte{0: 0xFD, 7: 1}
	if !f.v6 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, v4)))
	}
	binary.BigEndian.PutUint32(a[12:], v4)
	return netip.AddrFrom16(a)
}

// rig is a node without an agent, whose programs run one packet again and again
// (BPF_PROG_TEST_RUN): those of test/perf/bpf, on the maps of the node's own.
type rig struct {
	mapFill
	t      *testing.T
	ns     string
	d      *loader.Datapath
	tables *datapath.Tables
	r      *reconcile.Reconciler
	ep     datapath.Endpoint
	eth    uint32
	coll   *ebpf.Collection
	made   int // changes, of all rounds: written again they would be none
}

func newRig(t *testing.T, f mapFill) *rig {
	t.Helper()
	g := &rig{mapFill: f, t: t, ns: filepath.Join("/run/netns", fmt.Sprintf("hwperf-%d-rig%d%t", os.Getpid(), f.ips, f.v6)), tables: datapath.NewTables()}
	g.fail(netns.Create(g.ns))
	t.Cleanup(func() { removeNetns(t, g.ns) })
	fs := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	log := slog.New(slog.DiscardHandler)
	g.fail(nsthread.InNetns(g.ns, func() (err error) {
		index := map[string]uint32{}
		for name, peer := range map[string]string{"eth0": "wire", "hawser_host": "hawser_net", "pod": "inside"} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			err = errors.Join(err, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}))
			if l, lerr := netlink.LinkByName(name); lerr == nil {
				index[name] = uint32(l.Attrs().Index)
			}
		}
		if err != nil {
			return err
		}
		g.eth = index["eth0"]
		g.ep = datapath.Endpoint{
			ID: 10, Device: "pod", IfIndex: index["pod"], Addrs: []netip.Addr{g.pod()}, Identity: rigClient, RuleSet: rigRuleSet,
			HostMAC: [6]byte{2, 0, 0, 0, 1, 1}, PodMAC: [6]byte{2, 0, 0, 0, 2, 1},
		}
		g.d, err = loader.Open(loader.Config{PinPath: filepath.Join(fs, "perf"), BPFFS: fs, UnderlayDevice: "eth0",
			NodeAddr: nodeAddr(0), ClusterBits: identity.DefaultClusterBits, Masquerade: loader.MasqueradePorts()}, log)
		return err
	}))
	t.Cleanup(func() { _ = g.d.Close() })
	g.load()
	var err error
	g.r, err = reconcile.New(g.d, g.tables, log)
	g.fail(err)
	g.fill()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	g.settle()
	return g
}

func (g *rig) fail(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// load compiles and loads the programs of test/perf/bpf with the maps and
// constants of the node's.
func (g *rig) load() {
	g.t.Helper()
	object := filepath.Join(g.t.TempDir(), "measured.o")
	out, err := exec.CommandContext(g.t.Context(), "clang-19", "-target", "bpfel", "-O2", "-g", "-mcpu=v3",
		"-Wall", "-Wextra", "-Werror", "-c", "bpf/measured.c", "-o", object).CombinedOutput()
	if err != nil {
		g.t.Fatalf("compile: %v\n%s", err, out)
	}
	spec, err := ebpf.LoadCollectionSpec(object)
	g.fail(err)
	own, err := objects.LoadHawser()
	g.fail(err)
	for name := range own.Programs {
		delete(spec.Programs, name)
	}
	values := g.constants()
	for name, v := range own.Variables {
		if at := v.Offset; v.SectionName == ".rodata" {
			g.fail(spec.Variables[name].Set(values[at : at+v.Size()]))
		}
	}
	pins, err := filepath.Glob(filepath.Join(g.d.Config().PinPath, "maps", "*"))
	g.fail(err)
	replace := map[string]*ebpf.Map{}
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		g.fail(err)
		defer m.Close()
		name := filepath.Base(pin)
		if name == "slots" {
			continue // these programs jump among themselves
		}
		replace[name] = m
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	spec.Maps["maglev"].InnerMap.MaxEntries = g.d.Config().MapSizes.Maglev
	g.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	g.fail(err)
	g.t.Cleanup(g.coll.Close)
	for slot, name := range []string{"slot_pod6", "slot_overlay6"} {
		g.fail(g.coll.Maps["slots"].Put(uint32(slot), g.coll.Programs[name]))
	}
	for _, key := range []byte{0, 1} {
		g.fail(g.coll.Maps["calibration"].Put(append([]byte{key}, make([]byte, 15)...), make([]byte, g.coll.Maps["calibration"].ValueSize())))
	}
}

// constants is what the loaded programs have in .rodata.
func (g *rig) constants() []byte {
	g.t.Helper()
	info, err := g.d.Programs().FromPod.Info()
	g.fail(err)
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		g.fail(err)
		defer m.Close()
		if mi, err := m.Info(); err == nil && strings.HasSuffix(mi.Name, ".rodata") {
			v, err := m.LookupBytes(uint32(0))
			g.fail(err)
			return v
		}
	}
	g.t.Fatal("the programs have no constants")
	return nil
}

// fill is the world: the pod here, all addresses of the ipcache on one other
// node, a rule set that allows what the packets are.
func (g *rig) fill() {
	tb := g.tables
	tb.Endpoints.Set(g.ep.ID, g.ep)
	tb.Nodes.Set(nodeAddr(1), datapath.Node{Tunnel: nodeAddr(1), ClusterID: 1})
	for _, id := range []identity.Number{rigClient, rigRemote} {
		tb.Identities.Set(id, datapath.Identity{Number: id, ClusterID: 1})
	}
	for i := range g.ips {
		a := g.peer(i)
		tb.IPCache.Set(datapath.IPKey{Prefix: netip.PrefixFrom(a, a.BitLen())}, datapath.IPEntry{Identity: rigRemote, Tunnel: nodeAddr(1)})
	}
	set := datapath.RuleSet{ID: rigRuleSet, Ingress: true, Egress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{}}
	for _, port := range []uint16{rigServerPort, rigService} {
		set.Entries[datapath.PolicyKey{Direction: datapath.Egress, Identity: rigRemote, Protocol: unix.IPPROTO_TCP, Port: port}] = datapath.PolicyEntry{}
		set.Entries[datapath.PolicyKey{Direction: datapath.Ingress, Identity: rigRemote, Protocol: unix.IPPROTO_TCP, Port: port}] = datapath.PolicyEntry{}
	}
	for i := len(set.Entries); i < g.policies; i++ {
		k := datapath.PolicyKey{Direction: datapath.Egress, Identity: rigRemote + 1 + identity.Number(i), Protocol: unix.IPPROTO_TCP, Port: rigServerPort}
		set.Entries[k] = datapath.PolicyEntry{}
	}
	tb.RuleSets.Set(set.ID, set)
	tb.Frontends.Set(datapath.FrontendKey{Addr: g.vip(), Port: rigServerPort, Protocol: unix.IPPROTO_TCP}, datapath.Frontend{
		Service: 1, Backends: []datapath.Backend{{Addr: g.peer(1), Port: rigService}}})
}

// settle waits until the kernel has the tables.
func (g *rig) settle() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, s := range g.r.Status() {
		if err := g.r.Wait(ctx, s.Table, s.Revision); err != nil {
			g.t.Fatalf("%v: %+v", err, g.r.Status())
		}
	}
}

// segment is a TCP packet of 74 bytes with Ethernet's header, as a pod sends it;
// of IPv6, whose header has 20 bytes more, it has 94.
func (g *rig) segment(src, dst netip.Addr, sport, dport uint16, flags func(*layers.TCP)) []byte {
	g.t.Helper()
	tcp := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Window: 1000}
	flags(tcp)
	const payload = 74 - 14 - 20 - 20
	if g.v6 {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		g.fail(tcp.SetNetworkLayerForChecksum(ip))
		return g.serialize(g.ether(layers.EthernetTypeIPv6), ip, tcp, gopacket.Payload(make([]byte, payload)))
	}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	g.fail(tcp.SetNetworkLayerForChecksum(ip))
	return g.serialize(g.ether(layers.EthernetTypeIPv4), ip, tcp, gopacket.Payload(make([]byte, payload)))
}

func (g *rig) serialize(ls ...gopacket.SerializableLayer) []byte {
	g.t.Helper()
	b := gopacket.NewSerializeBuffer()
	g.fail(gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...))
	return b.Bytes()
}

func (g *rig) ether(carries layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: net.HardwareAddr(g.ep.PodMAC[:]), DstMAC: net.HardwareAddr(g.ep.HostMAC[:]), EthernetType: carries}
}

// tunnelled is such a packet as the tunnel brings it.
func (g *rig) tunnelled(segment []byte) []byte {
	g.t.Helper()
	outer := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: nodeAddr(1).AsSlice(), DstIP: nodeAddr(0).AsSlice()}
	udp := &layers.UDP{SrcPort: 40000, DstPort: 8472}
	g.fail(udp.SetNetworkLayerForChecksum(outer))
	return g.serialize(g.ether(layers.EthernetTypeIPv4), outer, udp, &layers.VXLAN{ValidIDFlag: true, VNI: uint32(rigRemote)}, gopacket.Payload(segment))
}

func ack(tcp *layers.TCP)    { tcp.ACK = true }
func syn(tcp *layers.TCP)    { tcp.SYN = true }
func synAck(tcp *layers.TCP) { tcp.SYN, tcp.ACK = true, true }

// testRun is the part of union bpf_attr that BPF_PROG_TEST_RUN uses.
type testRun struct {
	fd, retval, inSize, outSize uint32
	in, out                     uint64
	repeat, duration            uint32
	ctxInSize, ctxOutSize       uint32
	ctxIn, ctxOut               uint64
	flags, cpu, batch, _        uint32
}

// redirected is what a program that sends the packet on returns.
const redirected = 7

// run runs a program over a packet that comes in on a device, and returns the
// ns that a round took. The thread must be in the namespace.
func (g *rig) run(prog *ebpf.Program, packet []byte, ifindex uint32, repeat int) (float64, error) {
	const cmd = 10 // BPF_PROG_TEST_RUN
	skb := perfSKB{IfIndex: ifindex}
	a := testRun{fd: uint32(prog.FD()), inSize: uint32(len(packet)), in: uint64(uintptr(unsafe.Pointer(&packet[0]))), repeat: uint32(repeat),
		ctxInSize: uint32(unsafe.Sizeof(skb)), ctxIn: uint64(uintptr(unsafe.Pointer(&skb)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a))
	runtime.KeepAlive(packet)
	runtime.KeepAlive(&skb)
	switch {
	case errno == unix.EINTR:
		return g.run(prog, packet, ifindex, repeat)
	case errno != 0:
		return 0, fmt.Errorf("test run: %w", errno)
	case a.retval != redirected:
		return 0, fmt.Errorf("verdict %d, want a redirect: the timing would be of another path", int32(a.retval))
	}
	return float64(a.duration), nil
}

// in runs f in the node's namespace on a thread that nothing interrupts.
func (g *rig) in(f func() error) {
	g.t.Helper()
	g.fail(nsthread.InNetns(g.ns, func() error {
		if err := undisturbed(); err != nil {
			return err
		}
		return f()
	}))
}

// undisturbed gives this thread one CPU, and way before others, until it ends.
func undisturbed() error {
	var set unix.CPUSet
	set.Set(1)
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
	return errors.Join(unix.SchedSetaffinity(0, &set), unix.SchedSetAttr(0, &attr, 0))
}

// wrong is how many rounds so far did not end in a redirect.
func (g *rig) wrong() (n uint64) {
	g.t.Helper()
	g.fail(g.coll.Variables["wrong"].Get(&n))
	return n
}
