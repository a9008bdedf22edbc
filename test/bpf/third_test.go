// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// failures are the ICMP errors that would harm a flow: they end it, or shrink its
// path.
func failures(t *testing.T, src, dst string, about []gopacket.SerializableLayer) map[string][]gopacket.SerializableLayer {
	t.Helper()
	if !isIPv6(src) {
		return map[string][]gopacket.SerializableLayer{
			"unreachable": unreachable(t, src, dst, 3, about),
			"too big":     unreachable(t, src, dst, 4, about),
		}
	}
	quoted := build(t, about...)[:48]
	return map[string][]gopacket.SerializableLayer{
		"unreachable": message6(src, dst, 1, 4, append(make([]byte, 4), quoted...)),
		"too big":     message6(src, dst, 2, 0, append([]byte{0, 0, 5, 0}, quoted...)),
	}
}

// Who has no part in a flow says nothing about it, wherever the two and the third
// are: it would pass every policy. Who has a part does, and who is on the way.
func TestErrorsOfAThird(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"flows", func(t *testing.T) { errorsOfAThird(t, f) })
	}
}

func errorsOfAThird(t *testing.T, f family) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{
		{Identity: idB}: {Deny: true}, {Identity: idX}: {Deny: true},
	}})
	const sport, dport = 5555, 7777
	neighbour, lanIP := "10.2.0.77", "10.7.0.9" // of podR, on its node; behind an external endpoint
	lanPrefix, router := "10.7.0.0/16", "10.7.0.1"
	if isIPv6(f.a.ip) {
		neighbour, lanIP, lanPrefix, router = "fd00:10:2::77", "fd00:7::9", "fd00:7::/64", "fd00:7::1"
	}
	h.tables.Nodes.Set(addr(lan), datapath.Node{Tunnel: addr(lan), ClusterID: datapath.ExternalCluster, VNI: uint32(lanVNI)})
	h.tables.IPCache.Set(key(lanPrefix), datapath.IPEntry{Identity: identity.World, Tunnel: addr(lan), Flags: datapath.IPCIDR})
	h.sync()
	for _, to := range []string{f.b.ip, f.r.ip, lanIP, f.node2} {
		h.passed(h.fromPod(f.a, h.sent(f.a, datagram(f.a.ip, to, sport, dport, 8))))
	}
	if r := h.fromPod(f.a, h.sent(f.a, datagram(f.a.ip, f.outside, sport, dport, 8))); r.act == actShot {
		t.Fatal("nothing passes to the outside")
	}
	local := func(ls []gopacket.SerializableLayer) result { return h.fromPod(f.b, h.sent(f.b, ls)) }
	tunnel := func(node string, id identity.Number) func([]gopacket.SerializableLayer) result {
		return func(ls []gopacket.SerializableLayer) result { return h.fromOverlay(h.tunnelled(node, id, ls)) }
	}
	forwarded := func(ls []gopacket.SerializableLayer) result { return h.fromHost(h.plain(ls)) }
	for _, c := range []struct {
		name, src, to string // the error's source; whom the quoted packet was for
		enter         func([]gopacket.SerializableLayer) result
		pass          bool
	}{
		{"local pod about a local flow", f.b.ip, f.b.ip, local, true},
		{"local pod about another's", f.b.ip, f.r.ip, local, false},
		{"local pod about the outside's", f.b.ip, f.outside, local, false},
		{"remote pod about its flow", f.r.ip, f.r.ip, tunnel(node2, idR), true},
		{"remote pod about a local flow", f.r.ip, f.b.ip, tunnel(node2, idR), false},
		{"another cluster's pod about a local flow", f.x.ip, f.b.ip, tunnel(node3, idX), false},
		{"another cluster's pod about a remote pod's", f.x.ip, f.r.ip, tunnel(node3, idX), false},
		{"neighbour about a remote pod's", neighbour, f.r.ip, tunnel(node2, idR), false},
		{"node about its own flow", f.node2, f.node2, tunnel(node2, identity.RemoteNode), true},
		{"node about its pod's", f.node2, f.r.ip, tunnel(node2, identity.RemoteNode), true},
		{"node about another node's pod", f.node3, f.r.ip, tunnel(node3, identity.RemoteNode), false},
		{"node about a local flow", f.node3, f.b.ip, tunnel(node3, identity.RemoteNode), false},
		{"external host about its flow", lanIP, lanIP, tunnel(lan, lanVNI), true},
		{"external router about what is behind it", router, lanIP, tunnel(lan, lanVNI), true},
		{"external router about a remote pod's", router, f.r.ip, tunnel(lan, lanVNI), false},
		{"host about a remote pod's", f.self, f.r.ip, forwarded, true},
		{"forwarded, about the outside's", "203.0.113.77", f.outside, forwarded, true},
		{"forwarded, about a local flow", "203.0.113.77", f.b.ip, forwarded, false},
		{"forwarded, about a remote pod's", "203.0.113.77", f.r.ip, forwarded, false},
	} {
		if isIPv6(f.a.ip) && !isIPv6(c.src) {
			c.src = "2001:db8:77::1"
		}
		for kind, ls := range failures(t, c.src, f.a.ip, datagram(f.a.ip, c.to, sport, dport, 8)) {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				h.t = t
				if c.pass {
					h.passed(c.enter(ls))
				} else {
					h.dropped(c.enter(ls), maps.DropUnrelatedICMP)
				}
			})
		}
	}
}
