// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

const (
	cidr1 identity.Number = identity.LocalBase + 1 + iota
	cidr2
)

const (
	block1 identity.Number = identity.BlockBase + 1 + iota
	block2
)

func blockKey(prefix string) datapath.IPKey {
	return datapath.IPKey{ClusterID: datapath.BlockSpace, Prefix: netip.MustParsePrefix(prefix)}
}

// Prefixes outside the mesh have identities, in both directions; the longest
// counts.
func TestCIDRIdentities(t *testing.T) {
	h := newHarness(t)
	h.tables.IPCache.Set(key("198.51.100.0/24"), datapath.IPEntry{Identity: cidr1})
	h.tables.IPCache.Set(key("198.51.100.128/25"), datapath.IPEntry{Identity: cidr2})
	h.tables.IPCache.Set(key("198.51.100.7/32"), datapath.IPEntry{Identity: cidr2})
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{
		{Identity: cidr1}: {}, {Direction: datapath.Egress, Identity: cidr1}: {},
	}})
	for i, c := range []struct {
		addr string
		id   identity.Number
		pass bool
	}{
		{"198.51.100.9", cidr1, true}, {"198.51.100.200", cidr2, false}, {"198.51.100.7", cidr2, false}, {"203.0.113.1", identity.World, false},
	} {
		in := h.fromOverlay(h.plain(segment(c.addr, podA.ip, uint16(1000+i), 80, "S")))
		if c.pass {
			h.passed(in)
		} else if e := h.dropped(in, maps.DropPolicyDenied); e.SourceID != c.id {
			t.Errorf("from %s: identity %d, want %d", c.addr, e.SourceID, c.id)
		}
		out := h.fromPod(podA, h.sent(podA, segment(podA.ip, c.addr, uint16(2000+i), 80, "S")))
		if c.pass {
			if out.act != actOK {
				t.Errorf("to %s: verdict %d", c.addr, out.act)
			}
		} else if e := h.dropped(out, maps.DropPolicyDenied); e.DestID != c.id {
			t.Errorf("to %s: identity %d, want %d", c.addr, e.DestID, c.id)
		}
	}
}

// An ipBlock concerns pods here and elsewhere; a deny by either way wins; a
// change of what the block holds reaches established flows.
func TestBlocksConcernPods(t *testing.T) {
	h := newHarness(t)
	h.tables.IPCache.Set(blockKey("10.2.0.0/16"), datapath.IPEntry{Identity: block1})
	h.tables.IPCache.Set(blockKey(podB.ip+"/32"), datapath.IPEntry{Identity: block1})
	allow := entries{{Identity: block1}: {}, {Direction: datapath.Egress, Identity: block1}: {}}
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: allow})
	syn := h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S"))
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))))
	h.passed(h.fromPod(podA, syn))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1001, 80, "S"))))
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB.ip, podA.ip, 1001, 80, "S"))))
	h.dropped(h.fromOverlay(h.tunnelled(node3, idX, segment(podX.ip, podA.ip, 1001, 80, "S"))), maps.DropPolicyDenied)

	// The flow to podB is cached; the block now has another identity for it.
	h.tables.IPCache.Set(blockKey(podB.ip+"/32"), datapath.IPEntry{Identity: block2})
	h.sync()
	h.dropped(h.fromPod(podA, syn), maps.DropPolicyDenied)
	h.tables.IPCache.Delete(blockKey(podB.ip + "/32"))
	h.sync()
	h.dropped(h.fromPod(podA, syn), maps.DropPolicyDenied)

	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Identity: block1}: {}, {Identity: idR}: {Deny: true, Origin: 3}}})
	if e := h.dropped(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1002, 80, "S"))), maps.DropPolicyDenied); e.Origin != 3 {
		t.Errorf("origin %d", e.Origin)
	}
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Identity: block1}: {Deny: true, Origin: 4}, {Identity: idR}: {}}})
	if e := h.dropped(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1003, 80, "S"))), maps.DropPolicyDenied); e.Origin != 4 {
		t.Errorf("origin %d", e.Origin)
	}
}

func TestICMPTypes(t *testing.T) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Identity: idR, Protocol: api.ICMPv6, Port: api.ICMPPort(128)}: {}}})
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, echoRequest(podR6.ip, podA6.ip))))
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Identity: idR, Protocol: api.ICMPv6, Port: api.ICMPPort(8)}: {}, {Identity: idR, Protocol: api.ICMP}: {}}})
	h.dropped(h.fromOverlay(h.tunnelled(node2, idR, echoOf(podR6.ip, podA6.ip, 78))), maps.DropPolicyDenied)
	echo := datapath.PolicyKey{Identity: idR, Protocol: api.ICMP, Port: api.ICMPPort(8)}
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{echo: {}}})
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, echoRequest(podR.ip, podA.ip))))
	echo.Port = api.ICMPPort(13)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{echo: {}}})
	h.dropped(h.fromOverlay(h.tunnelled(node2, idR, echoRequest(podR.ip, podA.ip))), maps.DropPolicyDenied)
}

// TestProgramsAgreeWithDecide sends packets through random rule sets and
// compares each verdict with what policy.Decide makes of the same rows.
func TestProgramsAgreeWithDecide(t *testing.T) {
	const sets, packets = 25, 80
	h := newHarness(t)
	h.tables.IPCache.Set(blockKey("10.0.0.0/8"), datapath.IPEntry{Identity: block1})
	h.tables.IPCache.Set(blockKey("10.2.0.0/16"), datapath.IPEntry{Identity: block2})
	h.tables.IPCache.Set(key("198.51.100.0/24"), datapath.IPEntry{Identity: cidr1})
	h.tables.IPCache.Set(blockKey("fd00:10::/32"), datapath.IPEntry{Identity: block1})
	h.tables.IPCache.Set(blockKey("fd00:10:2::/64"), datapath.IPEntry{Identity: block2})
	h.tables.IPCache.Set(key("2001:db8:5::/48"), datapath.IPEntry{Identity: cidr1})
	r := rand.New(rand.NewPCG(7, 7))
	peers := []struct {
		host
		policy.Peer
	}{
		{podR, policy.Peer{Identity: idR, Block: block2}},
		{podX, policy.Peer{Identity: idX, Block: block1}},
		{host{ip: "198.51.100.9"}, policy.Peer{Identity: cidr1}},
		{host{ip: "203.0.113.9"}, policy.Peer{Identity: identity.World}},
		{podR6, policy.Peer{Identity: idR, Block: block2}},
		{podX6, policy.Peer{Identity: idX, Block: block1}},
		{host{ip: "2001:db8:5::9"}, policy.Peer{Identity: cidr1}},
		{host{ip: outside6}, policy.Peer{Identity: identity.World}},
	}
	sport := uint16(1024)
	for n := range sets {
		set := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: randomEntries(r)}
		h.rules(podA, set)
		for range packets {
			sport++
			peer := peers[r.IntN(len(peers))]
			port := uint16(1 + r.IntN(200))
			dir := datapath.Direction(r.IntN(2))
			src, dst := peer.ip, podA.ip
			if isIPv6(src) {
				dst = podA6.ip
			}
			if dir == datapath.Egress {
				src, dst = dst, src
			}
			proto, packet := uint8(6), segment(src, dst, sport, port, "S")
			if r.IntN(3) == 0 {
				proto, packet = 17, datagram(src, dst, sport, port, 4)
			}
			var got result
			switch {
			case dir == datapath.Egress:
				got = h.fromPod(podA, h.sent(podA, packet))
			case peer.node != "":
				got = h.fromOverlay(h.tunnelled(peer.node, peer.id, packet))
			default:
				got = h.fromOverlay(h.plain(packet))
			}
			want := policy.Decide(set, dir, peer.Peer, proto, port)
			if (got.act != actShot) != want.Allow {
				t.Fatalf("rule set %d, %s, peer %+v, %d/%d: verdict %d, want allow=%v by %+v", n, dir, peer.Peer, proto, port, got.act, want.Allow, want.Key)
			}
			if events := h.events(); !want.Allow && len(events) == 1 && events[0].Origin != want.Origin {
				t.Errorf("rule set %d: dropped by rule %d, want %d", n, events[0].Origin, want.Origin)
			}
		}
	}
}

func randomEntries(r *rand.Rand) entries {
	out := entries{}
	ids := []identity.Number{0, idR, idX, cidr1, identity.World, block1, block2}
	for i := range 1 + r.IntN(14) {
		k := datapath.PolicyKey{Direction: datapath.Direction(r.IntN(2)), Identity: ids[r.IntN(len(ids))]}
		if r.IntN(5) > 0 {
			k.Protocol = []uint8{6, 17}[r.IntN(2)]
			if r.IntN(4) > 0 {
				k.Port = uint16(1 + r.IntN(200))
				if r.IntN(2) == 0 {
					k.PortWild = uint8(2 * (1 + r.IntN(7)))
					k.Port = k.Port >> k.PortWild << k.PortWild
				}
			}
		}
		out[k] = datapath.PolicyEntry{Deny: r.IntN(3) == 0, Origin: uint32(i + 1)}
	}
	return out
}
