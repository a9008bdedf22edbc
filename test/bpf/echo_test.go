// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// echoReplyOf is an echo reply with an identifier.
func echoReplyOf(src, dst string, id uint16) []gopacket.SerializableLayer {
	if isIPv6(src) {
		return message6(src, dst, layers.ICMPv6TypeEchoReply, 0, []byte{byte(id >> 8), byte(id), 0, 1})
	}
	return []gopacket.SerializableLayer{
		ip(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(0, 0), Id: id, Seq: 1},
	}
}

// enters is how packets of an address come to the datapath.
func enters(f family, src string) func(*harness, []gopacket.SerializableLayer) result {
	return map[string]func(*harness, []gopacket.SerializableLayer) result{
		f.a.ip: pod(f.a), f.b.ip: pod(f.b), f.r.ip: tunnel(node2, idR), f.x.ip: tunnel(node3, idX),
		f.node2: tunnel(node2, identity.RemoteNode), f.self: hostStack, f.outside: wire,
	}[src]
}

// Echo replies pass with the flow of their request, whoever speaks to whomever; alone
// they are dropped, whatever policy says, and open nothing.
func TestEchoReplies(t *testing.T) {
	h := newHarness(t)
	sets := map[string]func(f family) datapath.RuleSet{
		"open": func(family) datapath.RuleSet { return datapath.RuleSet{} },
		"echoes allowed": func(f family) datapath.RuleSet {
			return datapath.RuleSet{Ingress: true, Egress: true, Entries: entries{
				{Direction: datapath.Ingress, Protocol: f.icmp, Port: f.echo}: {}, {Direction: datapath.Egress, Protocol: f.icmp, Port: f.echo}: {}}}
		},
	}
	n := uint16(500)
	for _, f := range families() {
		for _, w := range ways(f) {
			if w.service {
				continue
			}
			for name, set := range sets {
				for _, id := range []uint16{n, 0} {
					t.Run(fmt.Sprintf("%s%s, %s, id %d", f.prefix, w.name, name, id), func(t *testing.T) {
						h.t = t
						h.forgetFlows()
						h.judge(w.judges, set(f))
						h.repliesPass(f, w, id)
					})
				}
				n++
			}
		}
	}
	h.t = t
	t.Run("denied requests have no replies", func(t *testing.T) {
		h.t = t
		f := families()[0]
		h.forgetFlows()
		h.judge(f.a, datapath.RuleSet{Ingress: true})
		h.dropped(tunnel(node2, idR)(h, echoOf(f.r.ip, f.a.ip, 9)), maps.DropPolicyDenied)
		h.dropped(pod(f.a)(h, echoReplyOf(f.a.ip, f.r.ip, 9)), maps.DropUnaskedReply)
		h.judge(f.a, datapath.RuleSet{Egress: true})
		h.dropped(pod(f.a)(h, echoReplyOf(f.a.ip, f.r.ip, 9)), maps.DropUnaskedReply)
	})
}

func (h *harness) repliesPass(f family, w way, id uint16) {
	h.t.Helper()
	back := enters(f, w.dst)
	ok := func(r result) {
		h.t.Helper()
		if r.act == actShot {
			h.t.Errorf("dropped: %+v", h.events())
		}
	}
	h.dropped(w.enter(h, echoReplyOf(w.src, w.dst, id)), maps.DropUnaskedReply)
	h.dropped(back(h, echoReplyOf(w.dst, w.src, id)), maps.DropUnaskedReply)
	if n, _ := h.flowCount(); n != 0 {
		h.t.Errorf("%d flows were opened by replies", n)
	}
	ok(w.enter(h, echoOf(w.src, w.dst, id)))
	for range 3 {
		ok(back(h, echoReplyOf(w.dst, w.src, id)))
		ok(w.enter(h, echoOf(w.src, w.dst, id)))
		h.dropped(w.enter(h, echoReplyOf(w.src, w.dst, id)), maps.DropUnaskedReply) // its own request's is the other's
	}
	h.dropped(back(h, echoReplyOf(w.dst, w.src, id+1)), maps.DropUnaskedReply)
	h.forgetFlows()
	h.dropped(back(h, echoReplyOf(w.dst, w.src, id)), maps.DropUnaskedReply)
	h.events()
}

// Fragments of a reply are what their first one is.
func TestEchoRepliesInFragments(t *testing.T) {
	h := newHarness(t)
	long := append(echoReplyOf(podA.ip, podB.ip, 61), payload(2000))
	first, last := fragment(t, long, 9, 0, 1480), fragment(t, long, 9, 1480, 3000)
	h.dropped(h.fromPod(podA, h.sent(podA, first)), maps.DropUnaskedReply)
	h.dropped(h.fromPod(podA, h.sent(podA, last)), maps.DropUnaskedReply)
	long6 := message6(podA6.ip, podB6.ip, layers.ICMPv6TypeEchoReply, 0, append([]byte{0, 61, 0, 1}, make([]byte, 2000)...))
	first6, last6 := fragment6(t, long6, 9, 0, 1480), fragment6(t, long6, 9, 1480, 3000)
	h.dropped(h.fromPod(podA, h.sent(podA, first6)), maps.DropUnaskedReply)
	h.dropped(h.fromPod(podA, h.sent(podA, last6)), maps.DropUnaskedReply)
	h.passed(h.fromPod(podB, h.sent(podB, echoOf(podB.ip, podA.ip, 61))))
	h.passed(h.fromPod(podB, h.sent(podB, echoOf(podB6.ip, podA6.ip, 61))))
	for _, ls := range [][]gopacket.SerializableLayer{first, last, first6, last6} {
		h.passed(h.fromPod(podA, h.sent(podA, ls)))
	}
}
