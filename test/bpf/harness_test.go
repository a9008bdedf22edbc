// SPDX-License-Identifier: Apache-2.0

// Package bpf runs the real programs over packets (BPF_PROG_TEST_RUN), each
// test in a fresh network namespace with fresh maps, and looks at what came out:
// verdict, bytes, map contents, counters, events.
//
// Start with harness_test.go; world() says who is where. Traffic through real
// devices is datapath/loader's test.
package bpf

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
	"github.com/hawser-mesh/hawser/identity"
)

// Verdicts of tc programs.
const (
	actOK       = 0
	actShot     = 2
	actRedirect = 7
)

// Who is where. Node 2 is of this cluster (1), node 3 of cluster 2.
const (
	idA identity.Number = 1<<16 + 300 + iota // on this node
	idB                                      // on this node
	idR                                      // on node 2
	idX identity.Number = 2<<16 + 400        // on node 3
)

type host struct {
	name string
	ip   string
	id   identity.Number
	node string // tunnel address, empty here
}

var (
	podA = host{"podA", "10.1.0.5", idA, ""}
	podB = host{"podB", "10.1.0.6", idB, ""}
	podR = host{"podR", "10.2.0.5", idR, node2}
	podX = host{"podX", "10.3.0.5", idX, node3}
)

// The same hosts by their IPv6 addresses.
var (
	podA6 = host{"podA", "fd00:10:1::5", idA, ""}
	podB6 = host{"podB", "fd00:10:1::6", idB, ""}
	podR6 = host{"podR", "fd00:10:2::5", idR, node2}
	podX6 = host{"podX", "fd00:10:3::5", idX, node3}
)

const (
	self6    = "fd00:10:1::1"
	node26   = "fd00:10:2::1"
	node36   = "fd00:10:3::1"
	vip6     = "fd00:96::10"
	idle6    = "fd00:96::11"
	outside6 = "2001:db8:9::9"
	selfOut6 = "2001:db8:1::1" // on the underlay
)

const (
	self  = "192.0.2.1"
	node2 = "192.0.2.2"
	node3 = "192.0.2.3"
	vip   = "10.96.0.10"
)

type harness struct {
	t      testing.TB
	ns     netns.NsHandle
	d      *loader.Datapath
	r      *reconcile.Reconciler
	tables *datapath.Tables
	eps    map[string]datapath.Endpoint
	ring   *ringbuf.Reader
	seen   map[metric]uint64
	device *device // nil where the programs write the tunnel's headers
}

type metric struct {
	reason    datapath.DropReason
	direction datapath.Direction
	program   string
}

func newHarness(t testing.TB) *harness { return newHarnessBits(t, identity.DefaultClusterBits) }

// newHarnessBits is newHarness with another number of cluster bits. The pods'
// identities are not of the clusters that their nodes are in then.
func newHarnessBits(t testing.TB, clusterBits uint32) *harness {
	return newHarnessWith(t, loader.Config{
		ClusterBits: clusterBits, MapSizes: loader.SmallMaps(), Masquerade: loader.MasqueradePorts(),
		NodeAddr6: netip.MustParseAddr(self6), Masquerade6: netip.MustParseAddr(selfOut6),
	})
}

// newHarnessWith is newHarness with other features and sizes.
func newHarnessWith(t testing.TB, cfg loader.Config) *harness {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads eBPF programs and makes network namespaces")
	}
	h := &harness{t: t, eps: map[string]datapath.Endpoint{}, seen: map[metric]uint64{}}
	h.makeNS()
	fs := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if cfg.TunnelDevice != "" {
		h.device = h.newDevice(cfg.TunnelDevice)
	}
	h.in(func() (err error) {
		cfg.PinPath, cfg.BPFFS, cfg.UnderlayDevice = filepath.Join(fs, "test"), fs, "eth0"
		cfg.NodeAddr = netip.MustParseAddr(self)
		h.d, err = loader.Open(cfg, log)
		return err
	})
	t.Cleanup(func() { _ = h.d.Close() })
	h.tables = h.world()
	var err error
	if h.r, err = reconcile.New(h.d, h.tables, log); err != nil {
		t.Fatal(err)
	}
	if h.ring, err = ringbuf.NewReader(h.d.Maps().Events); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = h.ring.Close() })
	h.sync()
	return h
}

// in runs f on a thrown-away thread inside the namespace.
func (h *harness) in(f func() error) {
	h.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(h.ns)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) makeNS() {
	made := make(chan netns.NsHandle)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			h.t.Error(err)
		}
		made <- ns
	}()
	h.ns = <-made
	h.t.Cleanup(func() { _ = h.ns.Close() })
	h.in(func() error {
		var errs []error
		for name, peer := range map[string]string{
			"eth0": "wire", "hawser_host": "hawser_net", podA.name: "inA", podB.name: "inB",
		} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			errs = append(errs, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}))
		}
		return errors.Join(errs...)
	})
}

// world is everything in place and every pod open.
func (h *harness) world() *datapath.Tables {
	tb := datapath.NewTables()
	six := []host{podA6, podB6, podR6, podX6}
	for i, p := range []host{podA, podB, podR, podX} {
		cluster := uint32(p.id >> 16)
		tb.Identities.Set(p.id, datapath.Identity{Number: p.id, ClusterID: cluster})
		entry := datapath.IPEntry{Identity: p.id}
		if p.node != "" {
			entry.Tunnel = netip.MustParseAddr(p.node)
		}
		tb.IPCache.Set(key(p.ip+"/32"), entry)
		tb.IPCache.Set(key(six[i].ip+"/128"), entry)
		if p.node == "" {
			ep := datapath.Endpoint{
				ID: uint16(10 + i), Device: p.name, Identity: p.id, Addrs: []netip.Addr{netip.MustParseAddr(p.ip), netip.MustParseAddr(six[i].ip)},
				IfIndex: h.ifindex(p.name), HostMAC: [6]byte{2, 0, 0, 0, 1, byte(i)}, PodMAC: [6]byte{2, 0, 0, 0, 2, byte(i)},
			}
			h.eps[p.name] = ep
			tb.Endpoints.Set(ep.ID, ep)
		}
	}
	tb.IPCache.Set(key(self+"/32"), datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost})
	tb.IPCache.Set(key(self6+"/128"), datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost})
	for i, n := range []string{node2, node3} {
		a := netip.MustParseAddr(n)
		tb.IPCache.Set(key([]string{node26, node36}[i]+"/128"), datapath.IPEntry{
			Identity: identity.RemoteNode, Tunnel: a, Flags: datapath.IPRemoteNode,
		})
		tb.Nodes.Set(a, datapath.Node{Tunnel: a, ClusterID: uint32(i + 1)})
		tb.IPCache.Set(key(n+"/32"), datapath.IPEntry{
			Identity: identity.RemoteNode, Tunnel: a, Flags: datapath.IPRemoteNode,
		})
	}
	tb.IPCache.Set(key("10.1.0.0/16"), datapath.IPEntry{Flags: datapath.IPCIDR})
	tb.IPCache.Set(key("10.2.0.0/16"), datapath.IPEntry{Tunnel: netip.MustParseAddr(node2), Flags: datapath.IPCIDR})
	tb.IPCache.Set(key("fd00:10:1::/64"), datapath.IPEntry{Flags: datapath.IPCIDR})
	tb.IPCache.Set(key("fd00:10:2::/64"), datapath.IPEntry{Tunnel: netip.MustParseAddr(node2), Flags: datapath.IPCIDR})
	return tb
}

func key(prefix string) datapath.IPKey { return datapath.IPKey{Prefix: netip.MustParsePrefix(prefix)} }

// hostKey is the ipcache's key of a host.
func hostKey(p host) datapath.IPKey {
	a := netip.MustParseAddr(p.ip)
	return datapath.IPKey{Prefix: netip.PrefixFrom(a, a.BitLen())}
}

func (h *harness) ifindex(name string) (index uint32) {
	h.in(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			index = uint32(l.Attrs().Index)
		}
		return err
	})
	return index
}

// sync waits until the kernel has the tables.
func (h *harness) sync() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, s := range h.r.Status() {
		if err := h.r.Wait(ctx, s.Table, s.Revision); err != nil {
			h.t.Fatalf("%v: %+v", err, h.r.Status())
		}
	}
}

// rules gives a pod a rule set with these entries, default deny as told.
func (h *harness) rules(p host, set datapath.RuleSet) {
	h.t.Helper()
	h.tables.RuleSets.Set(set.ID, set)
	ep := h.eps[p.name]
	ep.RuleSet = set.ID
	h.tables.Endpoints.Set(ep.ID, ep)
	h.sync()
}

// skb is struct __sk_buff as the test run takes it.
type skb struct {
	_       [8]byte
	Mark    uint32
	_       [24]byte
	CameIn  uint32 // the device where the kernel received it; 0: nowhere
	IfIndex uint32
	_       [132]byte
	Segment uint32 // bytes behind the headers of each segment that it is cut into; 0: it is one
	_       [12]byte
}

// result is what one packet led to.
type result struct {
	act int
	out []byte
}

// run hands a packet to a program as if it came in on the device.
func (h *harness) run(prog *ebpf.Program, dev string, packet []byte) result {
	h.t.Helper()
	return h.runAs(prog, packet, skb{IfIndex: h.ifindex(dev)})
}

// runAs is run for a packet of which the kernel knows more.
func (h *harness) runAs(prog *ebpf.Program, packet []byte, as skb) result {
	h.t.Helper()
	opts := &ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+256), Context: as}
	var ret uint32
	h.in(func() (err error) {
		ret, err = prog.Run(opts)
		return err
	})
	return result{int(int32(ret)), opts.DataOut}
}

func (h *harness) fromPod(p host, packet []byte) result {
	h.t.Helper()
	return h.run(h.d.Programs().FromPod, p.name, packet)
}

func (h *harness) fromOverlay(packet []byte) result {
	h.t.Helper()
	if h.device != nil {
		return h.fromWire(packet)
	}
	return h.run(h.d.Programs().FromOverlay, "eth0", packet)
}

func (h *harness) fromHost(packet []byte) result {
	h.t.Helper()
	return h.run(h.d.Programs().FromHost, "hawser_net", packet)
}

// passed expects a redirect.
func (h *harness) passed(r result) result {
	h.t.Helper()
	if r.act != actRedirect {
		h.t.Fatalf("verdict %d, want a redirect; events %+v", r.act, h.events())
	}
	return r
}

// dropped expects a drop with this reason, its counter moved by one and its
// event, which it returns.
func (h *harness) dropped(r result, reason datapath.DropReason) datapath.Event {
	h.t.Helper()
	if r.act != actShot {
		h.t.Fatalf("verdict %d, want a drop (%s)", r.act, maps.ReasonName(reason))
	}
	return h.reason(reason)
}

// answered is dropped for a packet whose sender is told.
func (h *harness) answered(r result, reason datapath.DropReason) datapath.Event {
	h.t.Helper()
	if r.act != actRedirect {
		h.t.Fatalf("verdict %d, want an answer (%s)", r.act, maps.ReasonName(reason))
	}
	return h.reason(reason)
}

// reason expects the one event of a drop and its counter.
func (h *harness) reason(reason datapath.DropReason) datapath.Event {
	h.t.Helper()
	events := h.events()
	if len(events) != 1 || events[0].Reason != reason {
		for _, e := range events {
			h.t.Logf("dropped with %q at line %d", maps.ReasonName(e.Reason), e.Line)
		}
		h.t.Fatalf("%d events, want one with %q", len(events), maps.ReasonName(reason))
	}
	e := events[0]
	if n := h.moved(metric{reason, e.Direction, e.Program}); n != 1 {
		h.t.Errorf("counter of %q moved by %d, want 1", maps.ReasonName(reason), n)
	}
	return e
}

// moved is by how many packets a counter moved since it was last asked for.
func (h *harness) moved(m metric) uint64 {
	h.t.Helper()
	rows, err := maps.ReadMetrics(h.d.Maps().Metrics)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, r := range rows {
		if (metric{r.Reason, r.Direction, r.Program}) == m {
			n := r.Packets - h.seen[m]
			h.seen[m] = r.Packets
			return n
		}
	}
	return 0
}

// events drains the ring.
func (h *harness) events() (out []datapath.Event) {
	h.t.Helper()
	h.ring.SetDeadline(time.Now().Add(5 * time.Millisecond))
	for {
		rec, err := h.ring.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		e, err := maps.DecodeEvent(rec.RawSample)
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, e)
	}
}

// flows are all conntrack entries, and how many are half-open.
func (h *harness) flows() (all map[maps.Tuple4]maps.CTEntry, open int) {
	h.t.Helper()
	all, err := maps.Dump[maps.Tuple4, maps.CTEntry](h.d.Maps().Ct4)
	if err != nil {
		h.t.Fatal(err)
	}
	half, err := maps.Dump[maps.Tuple4, maps.CTEntry](h.d.Maps().Ct4Open)
	if err != nil {
		h.t.Fatal(err)
	}
	for k, v := range half {
		all[k] = v
	}
	return all, len(half)
}

// flows6 is flows for IPv6.
func (h *harness) flows6() (all map[maps.Tuple6]maps.CTEntry, open int) {
	h.t.Helper()
	all, err := maps.Dump[maps.Tuple6, maps.CTEntry](h.d.Maps().Ct6)
	if err != nil {
		h.t.Fatal(err)
	}
	half, err := maps.Dump[maps.Tuple6, maps.CTEntry](h.d.Maps().Ct6Open)
	if err != nil {
		h.t.Fatal(err)
	}
	for k, v := range half {
		all[k] = v
	}
	return all, len(half)
}
