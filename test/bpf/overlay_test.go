// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

func TestTunnelToPod(t *testing.T) { makes(t, tunnelToPod) }

func tunnelToPod(t *testing.T, h *harness) {
	t.Helper()
	inner := segment(podR.ip, podA.ip, 1000, 80, "S")
	r := h.passed(h.fromOverlay(h.tunnelled(node2, idR, inner)))
	eth, _, _ := decode(t, r.out)
	a := h.eps[podA.name]
	if !bytes.Equal(eth.DstMAC, a.PodMAC[:]) || !bytes.Equal(r.out[14:], h.plain(inner)[14:]) {
		t.Errorf("delivered %x", r.out)
	}
	h.passed(h.fromOverlay(h.tunnelled(node2, identity.RemoteNode, segment(node2, self, 5, 6, "S"))))
}

func TestTunnelSenderChecks(t *testing.T) { makes(t, tunnelSenderChecks) }

func tunnelSenderChecks(t *testing.T, h *harness) {
	t.Helper()
	for name, c := range map[string]struct {
		node   string
		id     identity.Number
		src    string
		dst    string
		reason datapath.DropReason
	}{
		"not a node":                     {"192.0.2.99", idR, podR.ip, podA.ip, maps.DropUnknownSender},
		"number of another cluster":      {node2, idX, podR.ip, podA.ip, maps.DropSpoofedIdentity},
		"own number from other cluster":  {node3, idR, podX.ip, podA.ip, maps.DropSpoofedIdentity},
		"host":                           {node2, identity.Host, podR.ip, podA.ip, maps.DropSpoofedIdentity},
		"world":                          {node2, identity.World, podR.ip, podA.ip, maps.DropSpoofedIdentity},
		"number 0":                       {node2, 0, podR.ip, podA.ip, maps.DropSpoofedIdentity},
		"remote-node from a pod":         {node2, identity.RemoteNode, podR.ip, podA.ip, maps.DropSpoofedSource},
		"remote-node from another node":  {node2, identity.RemoteNode, node3, podA.ip, maps.DropSpoofedSource},
		"workload from a node's address": {node2, idR, node2, podA.ip, maps.DropSpoofedSource},
		"address of another node":        {node2, idR, podX.ip, podA.ip, maps.DropSpoofedSource},
		"address of a pod here":          {node2, idR, podB.ip, podA.ip, maps.DropSpoofedSource},
		"address of nobody":              {node2, idR, "172.16.0.1", podA.ip, maps.DropSpoofedSource},
		"unknown number":                 {node2, idR + 50, podR.ip, podA.ip, maps.DropIdentityUnknown},
		"destination elsewhere":          {node2, idR, podR.ip, podX.ip, maps.DropUnknownDestination},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			e := h.dropped(h.fromOverlay(h.tunnelled(c.node, c.id, segment(c.src, c.dst, 1000, 80, "S"))), c.reason)
			if e.Outer.String() != c.node || e.SourceID != c.id || e.Source.Addr().String() != c.src {
				t.Errorf("event %+v", e)
			}
			if want := map[string]identity.Number{podA.ip: idA}[c.dst]; e.DestID != want {
				t.Errorf("the destination is told as %d, want %d", e.DestID, want)
			}
		})
	}
	h.t = t
	if e := h.dropped(h.fromOverlay(h.tunnelled("192.0.2.99", idR, segment(podR.ip, self, 1000, 80, "S"))), maps.DropUnknownSender); e.DestID != identity.Host {
		t.Errorf("this node is told as %d", e.DestID)
	}
	// Not known by address yet, but inside the sender's pod CIDR.
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment("10.2.0.77", podA.ip, 1000, 80, "S"))))
}

// The checks hold for flows that are established, too.
func TestTunnelSenderOfEstablishedFlow(t *testing.T) { makes(t, tunnelSenderOfEstablishedFlow) }

func tunnelSenderOfEstablishedFlow(t *testing.T, h *harness) {
	t.Helper()
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1000, 80, "S"))))
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 80, 1000, "SA"))))
	ack := segment(podR.ip, podA.ip, 1000, 80, "A")
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, ack)))
	h.dropped(h.fromOverlay(h.tunnelled("192.0.2.99", idR, ack)), maps.DropUnknownSender)
	h.dropped(h.fromOverlay(h.tunnelled(node3, idR, ack)), maps.DropSpoofedIdentity)
	h.dropped(h.fromOverlay(h.tunnelled(node2, identity.Host, ack)), maps.DropSpoofedIdentity)
	e := h.dropped(h.fromOverlay(h.plain(ack)), maps.DropSpoofedSource)
	if e.Outer.IsValid() {
		t.Errorf("untunnelled packet has an outer source: %+v", e)
	}
}

func TestUntunnelledIsWorld(t *testing.T) { makes(t, untunnelledIsWorld) }

func untunnelledIsWorld(t *testing.T, h *harness) {
	t.Helper()
	if r := h.fromOverlay(h.plain(segment("203.0.113.9", self, 1000, 22, "S"))); r.act != actOK {
		t.Errorf("packet to the host: verdict %d", r.act)
	}
	h.passed(h.fromOverlay(h.plain(segment("203.0.113.9", podA.ip, 1000, 80, "S"))))
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Identity: idR}: {},
	}})
	// The right address without the tunnel is not the right identity.
	e := h.dropped(h.fromOverlay(h.plain(segment(podR.ip, podA.ip, 2000, 80, "S"))), maps.DropPolicyDenied)
	if e.SourceID != identity.World || e.Direction != datapath.Ingress || e.RuleSet != 5 {
		t.Errorf("event %+v", e)
	}
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 2000, 80, "S"))))
	// Replies to what a pod asked of the world come back.
	if r := h.fromPod(podA, h.sent(podA, segment(podA.ip, "203.0.113.9", 3000, 80, "S"))); r.act != actOK {
		t.Fatalf("to the world: verdict %d", r.act)
	}
	h.passed(h.fromOverlay(h.plain(segment("203.0.113.9", podA.ip, 80, 3000, "SA"))))
	h.dropped(h.fromOverlay(h.plain(segment(podB.ip, podA.ip, 80, 3000, "SA"))), maps.DropSpoofedSource)
}

func TestHostPaths(t *testing.T) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true})
	h.passed(h.fromHost(h.plain(segment(self, podA.ip, 1000, 80, "S"))))
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, self, 80, 1000, "SA"))))
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, self, 1001, 80, "S"))), maps.DropPolicyDenied)
	r := h.passed(h.fromHost(h.plain(segment(self, podR.ip, 1000, 80, "S"))))
	if vni := r.out[14+20+8+4:][:3]; !bytes.Equal(vni, []byte{0, 0, 6}) {
		t.Errorf("VNI %x, want remote-node", vni)
	}
	// What the host only forwards is not the host.
	e := h.dropped(h.fromHost(h.plain(segment("203.0.113.9", podA.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
	if e.SourceID != identity.World {
		t.Errorf("event %+v", e)
	}
	h.dropped(h.fromHost(h.plain(segment("203.0.113.9", podR.ip, 1000, 80, "S"))), maps.DropSpoofedSource)
}

// The cluster part of an identity has 8, 9 or 10 bits: what is a cluster's own
// number with some is another's with others.
func TestTunnelSenderCheckByClusterBits(t *testing.T) {
	for bits, id := range map[uint32]uint32{8: 255, 9: 511, 10: 1023} {
		h := newHarnessBits(t, bits)
		space, err := identity.NewSpace(bits)
		if err != nil {
			t.Fatal(err)
		}
		first, last := space.Range(id)
		node := netip.MustParseAddr(node3)
		h.tables.Nodes.Set(node, datapath.Node{Tunnel: node, ClusterID: id})
		for _, n := range []identity.Number{first - 1, first, first + 1, last} {
			h.tables.Identities.Set(n, datapath.Identity{Number: n, ClusterID: id})
		}
		h.sync()
		from := func(n identity.Number) result {
			return h.fromOverlay(h.tunnelled(node3, n, segment(podX.ip, podA.ip, 1000, 80, "S")))
		}
		for _, n := range []identity.Number{first, first + 1, last} {
			h.passed(from(n))
		}
		h.dropped(from(first-1), maps.DropSpoofedIdentity)
		h.dropped(from(identity.Number(1)<<(24-bits)), maps.DropSpoofedIdentity) // cluster 1's
	}
}
