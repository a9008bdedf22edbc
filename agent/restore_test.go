// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// The ways' MTUs that the programs went by are read out of the adopted map.
func TestAdoptedPathMTUs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes eBPF maps")
	}
	spec, err := objects.LoadHawser()
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := ebpf.NewMap(spec.Maps["nodes"])
	if err != nil {
		t.Fatal(err)
	}
	defer nodes.Close()
	for id, n := range map[uint32]maps.Node{
		1: {Addr: maps.AddrFrom(netip.MustParseAddr("192.0.2.2")), Cluster: 1, MTU: 1400},
		2: {Addr: maps.AddrFrom(netip.MustParseAddr("192.0.2.3")), Cluster: 1},
		3: {MTU: 1500},
	} {
		if err := nodes.Put(id, n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := adoptedPathMTUs(nodes)
	if want := "map[192.0.2.2:1400]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v; want %s", got, err, want)
	}
}

// A node whose way's MTU is only remembered is probed, whoever else is nearer.
func TestRememberedPathMTUsAreMeasured(t *testing.T) {
	v := testView(t)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w := &watchman{
		self: liveness.NodeID{Cluster: "east", Node: "n1"}, view: v, table: v.alive, wake: make(chan struct{}, 1),
		probes: liveness.NewProbes(liveness.ProbesConfig{Self: netip.MustParseAddr("192.0.2.1"), Conn: conn, Log: slog.New(slog.DiscardHandler)}),
	}
	const many = 30
	for i := range many {
		name, addr := fmt.Sprintf("n%d", i+2), netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 2)})
		k := kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, name)
		v.apply(store.Batch{Changes: []store.Change{{Key: k, KV: kvstore.KV{Key: k.String()}, Record: &keyspacev1.Node{
			Name: name, Cluster: "east", TunnelAddress: addr.String(), Mtu: 1500, Capabilities: []string{liveness.Capability},
		}}}})
	}
	w.retarget()
	var left liveness.NodeID
	var addr netip.Addr
	for _, c := range w.table.Candidates() {
		if !w.targets[c.NodeID] {
			left, addr = c.NodeID, c.Addr
		}
	}
	if !addr.IsValid() {
		t.Fatalf("all of %d nodes are probed anyway", many)
	}
	v.ips.AssumePathMTUs(map[netip.Addr]uint32{addr: 1400})
	v.moved = true
	w.retarget()
	if !w.targets[left] {
		t.Errorf("%s, whose way's MTU is remembered, is not among the probed: %v", left, w.targets)
	}
	v.ips.SetPathMTU(addr, 1400)
	v.moved = true
	w.retarget()
	if w.targets[left] {
		t.Errorf("%s is still probed, although the MTU was measured", left)
	}
}
