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

const (
	lan     = "192.0.2.50"
	lanHost = "10.7.0.9"
	lanVNI  = identity.Number(4096)
)

// newExternal is the harness with an external tunnel endpoint, behind which a
// prefix is that policy gave a number.
func newExternal(t *testing.T) (h *harness, cidr identity.Number) {
	h = newHarness(t)
	return h, h.addExternal()
}

func (h *harness) addExternal() (cidr identity.Number) {
	cidr = identity.LocalBase + 5
	a := netip.MustParseAddr(lan)
	h.tables.Nodes.Set(a, datapath.Node{Tunnel: a, ClusterID: datapath.ExternalCluster, VNI: uint32(lanVNI), MAC: [6]byte{2, 0, 0, 0, 5, 7}})
	h.tables.IPCache.Set(key("10.7.0.0/16"), datapath.IPEntry{Identity: identity.World, Tunnel: a, Flags: datapath.IPCIDR})
	h.tables.IPCache.Set(key("10.7.1.0/24"), datapath.IPEntry{Identity: cidr, Tunnel: a, Flags: datapath.IPCIDR})
	h.sync()
	return cidr
}

// What goes to an external endpoint has its VNI and its hardware address.
func TestToExternal(t *testing.T) {
	h, cidr := newExternal(t)
	syn := segment(podA.ip, lanHost, 1000, 80, "S")
	const vxlan, inner = 14 + 20 + 8, 14 + 20 + 8 + 8
	look := func(r result) {
		t.Helper()
		_, outer, _ := decode(t, r.out)
		if outer.DstIP.String() != lan || !bytes.Equal(r.out[vxlan+4:][:3], []byte{0, 0x10, 0}) || !bytes.Equal(r.out[inner:][:6], []byte{2, 0, 0, 0, 5, 7}) {
			t.Errorf("sent %x", r.out)
		}
	}
	look(h.passed(h.fromPod(podA, h.sent(podA, syn))))
	look(h.passed(h.fromHost(h.plain(segment(self, lanHost, 1000, 80, "S")))))
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Identity: cidr, Direction: datapath.Egress}: {},
	}})
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, lanHost, 1000, 80, "A"))), maps.DropPolicyDenied)
	look(h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, "10.7.1.9", 1000, 80, "S")))))
}

// What comes from one is of the outside, whatever it says, and only from what is
// behind it.
func TestFromExternal(t *testing.T) { makes(t, fromExternal) }

func fromExternal(t *testing.T, h *harness) {
	t.Helper()
	cidr := h.addExternal()
	from := func(id identity.Number, src, dst, flags string) result {
		return h.fromOverlay(h.tunnelled(lan, id, segment(src, dst, 1000, 80, flags)))
	}
	h.passed(from(lanVNI, lanHost, podA.ip, "S"))
	h.dropped(from(identity.World, lanHost, podA.ip, "S"), maps.DropSpoofedIdentity)
	h.dropped(from(idR, podR.ip, podA.ip, "S"), maps.DropSpoofedIdentity)
	h.dropped(from(identity.RemoteNode, lan, podA.ip, "S"), maps.DropSpoofedIdentity)
	h.dropped(from(lanVNI, podR.ip, podA.ip, "S"), maps.DropSpoofedSource)
	h.dropped(from(lanVNI, lan, podA.ip, "S"), maps.DropSpoofedSource)
	h.dropped(from(lanVNI, "203.0.113.9", podA.ip, "S"), maps.DropSpoofedSource)
	h.dropped(h.fromOverlay(h.tunnelled(node2, lanVNI, segment(lanHost, podA.ip, 1000, 80, "S"))), maps.DropSpoofedIdentity)
	h.dropped(h.fromOverlay(h.tunnelled(node2, idR, segment(lanHost, podA.ip, 1000, 80, "S"))), maps.DropSpoofedSource)
	h.dropped(h.fromOverlay(h.tunnelled(lan, identity.Health, probeQuestion(lan, self))), maps.DropSpoofedIdentity)
	// Untunnelled it is not what its prefix says.
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Identity: cidr}: {},
	}})
	e := h.dropped(h.fromOverlay(h.plain(segment("10.7.1.9", podA.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
	if e.SourceID != identity.World {
		t.Errorf("event %+v", e)
	}
	// Policy: as world, or as its prefix; and again from the cache.
	h.passed(from(lanVNI, "10.7.1.9", podA.ip, "S"))
	h.passed(from(lanVNI, "10.7.1.9", podA.ip, "S"))
	h.dropped(from(identity.World, "10.7.1.9", podA.ip, "S"), maps.DropSpoofedIdentity)
	if e := h.dropped(from(lanVNI, lanHost, podA.ip, "S"), maps.DropPolicyDenied); e.SourceID != identity.World {
		t.Errorf("event %+v", e)
	}
	// The node itself is only answered.
	h.dropped(from(lanVNI, lanHost, self, "S"), maps.DropUnknownDestination)
	h.passed(h.fromHost(h.plain(segment(self, lanHost, 2000, 80, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(lan, lanVNI, segment(lanHost, self, 80, 2000, "SA"))))
	// Withdrawn, it is nobody, also for flows that were open.
	h.tables.Nodes.Delete(netip.MustParseAddr(lan))
	h.sync()
	h.dropped(from(lanVNI, "10.7.1.9", podA.ip, "A"), maps.DropUnknownSender)
}
