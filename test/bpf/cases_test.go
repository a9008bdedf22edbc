// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// way is how a packet goes: who sends it, who judges it and as what.
type way struct {
	name     string
	src, dst string
	dport    uint16 // as sent
	port     uint16 // as judged
	judges   host   // empty: nobody
	dir      datapath.Direction
	peer     identity.Number
	enter    func(h *harness, ls []gopacket.SerializableLayer) result
	service  bool // has TCP and UDP only
	idle     bool // a service without backends
	stack    bool // passes to the stack instead of being redirected
}

func pod(p host) func(*harness, []gopacket.SerializableLayer) result {
	return func(h *harness, ls []gopacket.SerializableLayer) result { return h.fromPod(p, h.sent(p, ls)) }
}

func tunnel(node string, id identity.Number) func(*harness, []gopacket.SerializableLayer) result {
	return func(h *harness, ls []gopacket.SerializableLayer) result {
		return h.fromOverlay(h.tunnelled(node, id, ls))
	}
}

func wire(h *harness, ls []gopacket.SerializableLayer) result      { return h.fromOverlay(h.plain(ls)) }
func hostStack(h *harness, ls []gopacket.SerializableLayer) result { return h.fromHost(h.plain(ls)) }

const idle = "10.96.0.11"

// family is who has which address.
type family struct {
	a, b, r, x                                     host
	self, node2, node3, outside, vip, idle, prefix string
	icmp                                           uint8
	echo                                           uint16 // policy's port of an echo
}

func families() []family {
	return []family{
		{podA, podB, podR, podX, self, node2, node3, outside, vip, idle, "", 1, 256 + 8},
		{podA6, podB6, podR6, podX6, self6, node26, node36, outside6, vip6, idle6, "IPv6 ", 58, 256 + 128},
	}
}

func ways(f family) []way {
	const in, out = datapath.Ingress, datapath.Egress
	podA, podB, podR, podX := f.a, f.b, f.r, f.x
	self, outside, vip, idle, remote := f.self, f.outside, f.vip, f.idle, f.node2
	return []way{
		{name: "local pod, by the sender", src: podA.ip, dst: podB.ip, dport: 80, port: 80, judges: podA, dir: out, peer: idB, enter: pod(podA)},
		{name: "local pod, by the receiver", src: podA.ip, dst: podB.ip, dport: 80, port: 80, judges: podB, dir: in, peer: idA, enter: pod(podA)},
		{name: "to another node", src: podA.ip, dst: podR.ip, dport: 80, port: 80, judges: podA, dir: out, peer: idR, enter: pod(podA)},
		{name: "to another cluster", src: podA.ip, dst: podX.ip, dport: 80, port: 80, judges: podA, dir: out, peer: idX, enter: pod(podA)},
		{name: "to the own host", src: podA.ip, dst: self, dport: 80, port: 80, judges: podA, dir: out, peer: identity.Host, enter: pod(podA)},
		{name: "to another host", src: podA.ip, dst: remote, dport: 80, port: 80, judges: podA, dir: out, peer: identity.RemoteNode, enter: pod(podA)},
		{name: "to the outside", src: podA.ip, dst: outside, dport: 80, port: 80, judges: podA, dir: out, peer: identity.World, enter: pod(podA), stack: true},
		{name: "from another node", src: podR.ip, dst: podA.ip, dport: 80, port: 80, judges: podA, dir: in, peer: idR, enter: tunnel(node2, idR)},
		{name: "from another cluster", src: podX.ip, dst: podA.ip, dport: 80, port: 80, judges: podA, dir: in, peer: idX, enter: tunnel(node3, idX)},
		{name: "from another host", src: remote, dst: podA.ip, dport: 80, port: 80, judges: podA, dir: in, peer: identity.RemoteNode, enter: tunnel(node2, identity.RemoteNode)},
		{name: "from the outside", src: outside, dst: podA.ip, dport: 80, port: 80, judges: podA, dir: in, peer: identity.World, enter: wire},
		{name: "from the own host", src: self, dst: podA.ip, dport: 80, port: 80, judges: podA, dir: in, peer: identity.Host, enter: hostStack},
		{name: "host to another node's pod", src: self, dst: podR.ip, dport: 80, enter: hostStack},
		{name: "pod to the own host from a tunnel", src: podR.ip, dst: self, dport: 80, enter: tunnel(node2, idR)},
		{name: "service on this node", src: podA.ip, dst: vip, dport: 80, port: 8080, judges: podA, dir: out, peer: idB, enter: pod(podA), service: true},
		{name: "service on this node, by the receiver", src: podA.ip, dst: vip, dport: 80, port: 8080, judges: podB, dir: in, peer: idA, enter: pod(podA), service: true},
		{name: "service on another node", src: podA.ip, dst: vip, dport: 81, port: 8080, judges: podA, dir: out, peer: idR, enter: pod(podA), service: true},
		{name: "service of the host", src: self, dst: vip, dport: 80, enter: hostStack, service: true},
		{name: "service without backends", src: podA.ip, dst: idle, dport: 80, enter: pod(podA), service: true, idle: true},
		{name: "service of the host without backends", src: self, dst: idle, dport: 80, enter: hostStack, service: true, idle: true},
	}
}

// plan is a rule set for a way and a protocol.
type plan struct {
	name string
	make func(w way, proto uint8, port uint16) datapath.RuleSet
}

func plans() []plan {
	closed := func(e entries) datapath.RuleSet { return datapath.RuleSet{Ingress: true, Egress: true, Entries: e} }
	const other = identity.Number(1<<16 + 999)
	return []plan{
		{"open", func(way, uint8, uint16) datapath.RuleSet { return datapath.RuleSet{} }},
		{"closed", func(way, uint8, uint16) datapath.RuleSet { return closed(nil) }},
		{"peer", func(w way, _ uint8, _ uint16) datapath.RuleSet {
			return closed(entries{{Direction: w.dir, Identity: w.peer}: {}})
		}},
		{"peer, port", func(w way, p uint8, n uint16) datapath.RuleSet {
			return closed(entries{{Direction: w.dir, Identity: w.peer, Protocol: p, Port: n}: {}})
		}},
		{"peer, another port", func(w way, p uint8, n uint16) datapath.RuleSet {
			return closed(entries{{Direction: w.dir, Identity: w.peer, Protocol: p, Port: n + 1}: {}})
		}},
		{"peer, another protocol", func(w way, p uint8, n uint16) datapath.RuleSet {
			other := uint8(tcp)
			if p == tcp {
				other = sctp
			}
			return closed(entries{{Direction: w.dir, Identity: w.peer, Protocol: other, Port: n}: {}})
		}},
		{"another peer", func(w way, _ uint8, _ uint16) datapath.RuleSet {
			return closed(entries{{Direction: w.dir, Identity: other}: {}})
		}},
		{"the other direction", func(w way, _ uint8, _ uint16) datapath.RuleSet {
			return closed(entries{{Direction: w.dir ^ 1, Identity: w.peer}: {}})
		}},
		{"anybody", func(w way, p uint8, _ uint16) datapath.RuleSet {
			return closed(entries{{Direction: w.dir, Protocol: p}: {}})
		}},
		{"anybody but the peer", func(w way, _ uint8, _ uint16) datapath.RuleSet {
			return closed(entries{{Direction: w.dir}: {}, {Direction: w.dir, Identity: w.peer}: {Deny: true}})
		}},
		{"open but for the peer", func(w way, _ uint8, _ uint16) datapath.RuleSet {
			return datapath.RuleSet{Entries: entries{{Direction: w.dir, Identity: w.peer}: {Deny: true}}}
		}},
	}
}

// allows is the model: what a rule set says, by its documentation.
func allows(set datapath.RuleSet, dir datapath.Direction, peer identity.Number, proto uint8, port uint16) bool {
	for _, k := range []datapath.PolicyKey{
		{Direction: dir, Identity: peer, Protocol: proto, Port: port}, {Direction: dir, Identity: peer, Protocol: proto},
		{Direction: dir, Identity: peer},
		{Direction: dir, Protocol: proto, Port: port}, {Direction: dir, Protocol: proto}, {Direction: dir},
	} {
		if e, ok := set.Entries[k]; ok {
			return !e.Deny
		}
	}
	return dir == datapath.Ingress && !set.Ingress || dir == datapath.Egress && !set.Egress
}

// Every way × protocol × plan: the verdict is the model's, a drop has its reason
// and event, and a way that nobody judges is open.
func TestCases(t *testing.T) {
	h := newHarness(t)
	h.services()
	cases, sport := 0, uint16(2000)
	for _, f := range families() {
		for _, w := range ways(f) {
			for _, proto := range []uint8{tcp, udp, sctp, f.icmp} {
				if w.service && proto != tcp && proto != udp {
					continue
				}
				for i, pl := range plans() {
					if w.judges.name == "" && i > 0 {
						break
					}
					cases++
					sport++
					t.Run(fmt.Sprintf("%s%s/%d/%s", f.prefix, w.name, proto, pl.name), func(t *testing.T) {
						h.t = t
						h.oneCase(f, w, proto, sport, pl)
					})
				}
			}
		}
	}
	h.t = t
	t.Logf("%d cases: %d families × %d ways × protocols × %d rule sets", cases, len(families()), len(ways(families()[0])), len(plans()))
	if cases < 400 {
		t.Errorf("only %d cases", cases)
	}
}

func (h *harness) oneCase(f family, w way, proto uint8, sport uint16, pl plan) {
	h.t.Helper()
	port := w.port
	if proto == f.icmp {
		port = f.echo
	}
	set := pl.make(w, proto, port)
	h.judge(w.judges, set)
	r := w.enter(h, question(w, proto, sport))
	want := w.judges.name == "" || allows(set, w.dir, w.peer, proto, port) ||
		w.peer == identity.Host && w.dir == datapath.Ingress
	h.verdict(w, r, want)
}

func (h *harness) verdict(w way, r result, want bool) {
	h.t.Helper()
	switch {
	case w.idle:
		h.answered(r, maps.DropNoBackend)
	case !want:
		if e := h.dropped(r, maps.DropPolicyDenied); e.Direction != w.dir || e.Endpoint != h.eps[w.judges.name].ID {
			h.t.Errorf("event %+v", e)
		}
	case w.stack && r.act != actOK:
		h.t.Errorf("verdict %d, want the stack", r.act)
	case !w.stack:
		h.passed(r)
	}
	h.events()
}

// question is the first packet of a flow.
func question(w way, proto uint8, sport uint16) []gopacket.SerializableLayer {
	switch proto {
	case tcp:
		return segment(w.src, w.dst, sport, w.dport, "S")
	case udp:
		return datagram(w.src, w.dst, sport, w.dport, 10)
	case sctp:
		return chunk(w.src, w.dst, sport, w.dport, 12)
	}
	return echoOf(w.src, w.dst, sport)
}

// judge gives a pod a rule set, and opens the others.
func (h *harness) judge(p host, set datapath.RuleSet) {
	h.t.Helper()
	for _, other := range []host{podA, podB} {
		ep := h.eps[other.name]
		ep.RuleSet = datapath.OpenRuleSet
		if other.name == p.name {
			ep.RuleSet, set.ID = 5, 5
			h.tables.RuleSets.Set(5, set)
		}
		h.tables.Endpoints.Set(ep.ID, ep)
	}
	h.sync()
}

// services are those of the ways.
func (h *harness) services() {
	h.t.Helper()
	for _, f := range families() {
		for _, proto := range []uint8{tcp, udp} {
			h.serve(f.vip, 80, proto, f.b)
			h.serve(f.vip, 81, proto, f.r)
			h.serve(f.idle, 80, proto)
		}
	}
	h.sync()
}

// serve makes a service's port with backends at 8080.
func (h *harness) serve(ip string, port uint16, proto uint8, backends ...host) {
	f := datapath.Frontend{Service: 1}
	for _, b := range backends {
		f.Backends = append(f.Backends, datapath.Backend{Addr: addr(b.ip), Port: 8080})
	}
	h.tables.Frontends.Set(datapath.FrontendKey{Addr: addr(ip), Port: port, Protocol: proto}, f)
}
