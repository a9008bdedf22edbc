// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab/netns"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

const (
	perfEndpoints = 1000
	perfBaseRules = 100 // that every endpoint has before
	perfPeer      = identity.Number(1<<16 + 7)
	perfPort      = 8080
)

// policyNode is a node without an agent: an engine, tables and the reconciler over
// maps of the sizes that an agent has, and the programs loaded.
type policyNode struct {
	t       *testing.T
	ns      string
	d       *loader.Datapath
	e       *policy.Engine
	tables  *datapath.Tables
	r       *reconcile.Reconciler
	ifindex uint32
}

// newPolicyNode has perfEndpoints endpoints of which no two have equal labels, so
// that each has a rule set of its own, and perfBaseRules rules for all of them.
func newPolicyNode(t *testing.T) *policyNode {
	t.Helper()
	n := &policyNode{t: t, ns: filepath.Join("/run/netns", fmt.Sprintf("hwperf-%d-policy", os.Getpid())), tables: datapath.NewTables()}
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fail(netns.Create(n.ns))
	t.Cleanup(func() { removeNetns(t, n.ns) })
	fs := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	log := slog.New(slog.DiscardHandler)
	fail(nsthread.InNetns(n.ns, func() (err error) {
		for name, peer := range map[string]string{"eth0": "wire", "hawser_host": "hawser_net"} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			err = errors.Join(err, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}))
		}
		eth, lerr := netlink.LinkByName("eth0")
		if err = errors.Join(err, lerr); err != nil {
			return err
		}
		n.ifindex = uint32(eth.Attrs().Index)
		n.d, err = loader.Open(loader.Config{PinPath: filepath.Join(fs, "perf"), BPFFS: fs, UnderlayDevice: "eth0",
			NodeAddr: nodeAddr(0), ClusterBits: identity.DefaultClusterBits}, log)
		return err
	}))
	t.Cleanup(func() { _ = n.d.Close() })
	var err error
	n.e, err = policy.New(policy.Config{Cluster: "east"})
	fail(err)
	n.r, err = reconcile.New(n.d, n.tables, log)
	fail(err)
	n.fill()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- n.r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	n.settle()
	return n
}

func endpointLabels(i int) labels.Set {
	return labels.New(
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
		labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: "demo"},
		labels.Label{Source: labels.Kubernetes, Key: "role", Value: "server"},
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: fmt.Sprintf("app-%d", i)},
	)
}

func endpointAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }

// perfPeers is how many identities the base rules are about.
const perfPeers = 1000

func (n *policyNode) fill() {
	peer := func(i int) labels.Set {
		return labels.New(
			labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
			labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: "demo"},
			labels.Label{Source: labels.Kubernetes, Key: "client", Value: fmt.Sprint(i)},
		)
	}
	for i := range perfPeers {
		number := perfPeer + identity.Number(i)
		if err := n.e.UpsertIdentity(number, "east", peer(i)); err != nil {
			n.t.Fatal(err)
		}
		n.tables.Identities.Set(number, datapath.Identity{Number: number, ClusterID: 1})
	}
	n.tables.Nodes.Set(nodeAddr(1), datapath.Node{Tunnel: nodeAddr(1), ClusterID: 1})
	n.tables.IPCache.Set(datapath.IPKey{Prefix: netip.PrefixFrom(clientAddr(), 32)}, datapath.IPEntry{Identity: perfPeer, Tunnel: nodeAddr(1)})
	for i := range perfBaseRules {
		n.e.UpsertObject(allowObject(fmt.Sprintf("base-%d", i), api.NewSelector(is("role", "server")),
			api.NewSelector(is("client", fmt.Sprint(i+1))), uint16(1000+i)))
	}
	for i := range perfEndpoints {
		id, err := n.e.AcquireRuleSet(endpointLabels(i))
		if err != nil {
			n.t.Fatal(err)
		}
		n.tables.Endpoints.Set(uint16(i+1), datapath.Endpoint{
			ID: uint16(i + 1), IfIndex: uint32(10000 + i), Addrs: []netip.Addr{endpointAddr(i)}, Identity: 1<<16 + 5000, RuleSet: id,
		})
	}
}

func clientAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 2, 0, 5}) }

// settle publishes and waits until the kernel has it all.
func (n *policyNode) settle() {
	n.t.Helper()
	n.e.Publish(n.tables.RuleSets)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, s := range n.r.Status() {
		if err := n.r.Wait(ctx, s.Table, s.Revision); err != nil {
			n.t.Fatalf("%v: %+v", err, n.r.Status())
		}
	}
}

// packet is a SYN of the peer to an endpoint, as the tunnel brings it.
func (n *policyNode) packet(i int) []byte {
	n.t.Helper()
	ip := func(src, dst netip.Addr, proto layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	outer, inner := ip(nodeAddr(1), nodeAddr(0), layers.IPProtocolUDP), ip(clientAddr(), endpointAddr(i), layers.IPProtocolTCP)
	udp := &layers.UDP{SrcPort: 40000, DstPort: 8472}
	tcp := &layers.TCP{SrcPort: 40000, DstPort: perfPort, SYN: true, Window: 1000}
	err := errors.Join(udp.SetNetworkLayerForChecksum(outer), tcp.SetNetworkLayerForChecksum(inner))
	b := gopacket.NewSerializeBuffer()
	err = errors.Join(err, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		eth, outer, udp, &layers.VXLAN{ValidIDFlag: true, VNI: uint32(perfPeer)}, eth, inner, tcp))
	if err != nil {
		n.t.Fatal(err)
	}
	return b.Bytes()
}

// perfSKB is struct __sk_buff as the test run takes it.
type perfSKB struct {
	_       [40]byte
	IfIndex uint32
	_       [148]byte
}

// allowed runs the program over a packet; the calling thread is in the node's
// namespace.
func (n *policyNode) allowed(packet []byte) (bool, error) {
	const shot = 2
	ret, err := n.d.Programs().FromOverlay.Run(&ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+256), Context: perfSKB{IfIndex: n.ifindex}})
	return ret != shot, err
}

// TestPerfPolicyKernel measures a change of policy until the kernel has it: for
// all endpoints of a node, and a thousand changes a second.
func TestPerfPolicyKernel(t *testing.T) {
	r := newReport(t, "policy-kernel", fmt.Sprintf("changes of policy into real maps of default sizes: %d endpoints, each with a rule set of its own of %d entries", perfEndpoints, perfBaseRules+1))
	n := newPolicyNode(t)
	every := api.NewSelector(is("role", "server"))
	client := api.NewSelector(is("client", "0"))
	var add, del, one []float64
	change := func(f func()) float64 {
		start := time.Now()
		f()
		n.settle()
		return float64(time.Since(start).Microseconds()) / 1000
	}
	for range max(flags.rounds, 10) {
		add = append(add, change(func() { n.e.UpsertObject(allowObject("new", every, client, perfPort)) }))
		n.verify(true)
		del = append(del, change(func() { n.e.DeleteObject(api.ClusterWide, "new") }))
		n.verify(false)
		mine := api.NewSelector(is("app", "app-7"))
		one = append(one, change(func() { n.e.UpsertObject(allowObject("one", mine, client, perfPort)) }))
		change(func() { n.e.DeleteObject(api.ClusterWide, "one") })
	}
	r.add(fmt.Sprintf("one rule more, until the kernel has it for %d endpoints", perfEndpoints), "ms", "< 50", add)
	r.add(fmt.Sprintf("one rule less, until the kernel has it for %d endpoints", perfEndpoints), "ms", "< 50", del)
	r.add("one rule more that one endpoint has", "ms", "", one)
	flips, pace := n.flips(3*time.Second, time.Millisecond)
	r.addOps("policy change → verdict flips, 1,000 changes/s", "ms", "p99 < 20", flips)
	r.note("flips: %d changes in %.1f s, each of another endpoint's policy, from the change in the engine to the first test run of from_overlay with the new verdict", len(flips), pace.Seconds())
	r.finish(t)
}

// verify looks at every endpoint's verdict.
func (n *policyNode) verify(want bool) {
	n.t.Helper()
	err := nsthread.InNetns(n.ns, func() error {
		for i := range perfEndpoints {
			if got, err := n.allowed(n.packet(i)); err != nil || got != want {
				return fmt.Errorf("endpoint %d: allowed=%v (%w), want %v", i, got, err, want)
			}
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// flip is a change that was made and what it must lead to.
type flip struct {
	endpoint int
	allow    bool
	made     time.Time
}

// flips changes one endpoint's policy after the other at a pace, and returns for
// each the ms until its verdict was another.
func (n *policyNode) flips(during, every time.Duration) (took []float64, total time.Duration) {
	n.t.Helper()
	packets := make([][]byte, perfEndpoints)
	selectors := make([]api.Selector, perfEndpoints)
	for i := range packets {
		packets[i], selectors[i] = n.packet(i), api.NewSelector(is("app", fmt.Sprintf("app-%d", i)))
	}
	client := api.NewSelector(is("client", "0"))
	made := make(chan flip, 1<<16)
	begin := time.Now()
	go func() {
		defer close(made)
		for i := 0; time.Since(begin) < during; i++ {
			time.Sleep(time.Until(begin.Add(time.Duration(i) * every)))
			f := flip{endpoint: i % perfEndpoints, allow: i/perfEndpoints%2 == 0, made: time.Now()}
			name := fmt.Sprintf("flip-%d", f.endpoint)
			if f.allow {
				n.e.UpsertObject(allowObject(name, selectors[f.endpoint], client, perfPort))
			} else {
				n.e.DeleteObject(api.ClusterWide, name)
			}
			n.e.Publish(n.tables.RuleSets)
			made <- f
		}
	}()
	err := nsthread.InNetns(n.ns, func() error {
		for f := range made {
			for {
				got, err := n.allowed(packets[f.endpoint])
				if err != nil {
					return err
				}
				if got == f.allow {
					break
				}
				if time.Since(f.made) > 10*time.Second {
					return fmt.Errorf("endpoint %d: the verdict did not flip", f.endpoint)
				}
			}
			took = append(took, float64(time.Since(f.made).Microseconds())/1000)
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return took, time.Since(begin)
}
