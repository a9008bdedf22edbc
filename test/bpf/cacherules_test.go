// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// move is a packet of a flow in some state.
type move struct {
	name string
	send func() result
}

// entriesNow are all flows' entries, of both families by what tells them apart.
func (h *harness) entriesNow() map[any]maps.CTEntry {
	h.t.Helper()
	out := map[any]maps.CTEntry{}
	f4, _ := h.flows()
	for k, e := range f4 {
		out[k] = e
	}
	f6, _ := h.flows6()
	for k, e := range f6 {
		out[k] = e
	}
	return out
}

// Rule 3: what a packet changes in an entry that is there already is its words of
// the flow cache, counters, flags and times, and nothing that says whose flow it is
// or where it goes; on the fast path, not even the words.
func TestFlowsAreRewrittenSparingly(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"flows", func(t *testing.T) { rewrittenSparingly(t, f) })
	}
}

func rewrittenSparingly(t *testing.T, f family) {
	h := newHarness(t)
	h.outbound()
	h.serve(f.vip, 80, tcp, f.r)
	h.serve(f.vip, 81, tcp, f.b)
	h.sync()
	out := func(dst string, sport, dport uint16, flags string) move {
		return move{"to " + dst + " " + flags, func() result { return h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, dst, sport, dport, flags))) }}
	}
	in := func(dport uint16, sport uint16, flags string) move {
		return move{"from a remote pod " + flags, func() result {
			return h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, sport, dport, flags)))
		}}
	}
	local := func(sport, dport uint16, flags string) move {
		return move{"from a local pod " + flags, func() result { return h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.a.ip, sport, dport, flags))) }}
	}
	outer := move{"from outside", func() result { return h.fromOverlay(h.plain(segment(f.outside, f.a.ip, 80, 1005, "A"))) }}
	hosts := move{"from the host", func() result { return h.fromHost(h.plain(segment(f.self, f.a.ip, 1006, 80, "A"))) }}
	open := []move{
		out(f.r.ip, 1001, 80, "S"), in(1001, 80, "SA"), out(f.r.ip, 1001, 80, "A"),
		out(f.vip, 1002, 80, "S"), in(1002, 8080, "SA"), out(f.vip, 1002, 80, "A"),
		out(f.b.ip, 1003, 80, "S"), local(80, 1003, "SA"), out(f.b.ip, 1003, 80, "A"),
		out(f.vip, 1004, 81, "S"), local(8080, 1004, "SA"), out(f.vip, 1004, 81, "A"),
		out(f.outside, 1005, 80, "S"), outer, out(f.outside, 1005, 80, "A"),
		hosts, out(f.self, 80, 1006, "SA"), hosts,
	}
	for _, s := range open {
		if r := s.send(); r.act == actShot {
			t.Fatalf("%s is dropped: %+v", s.name, h.events())
		}
	}
	again := []move{
		out(f.r.ip, 1001, 80, "A"), in(1001, 80, "A"), out(f.vip, 1002, 80, "A"), in(1002, 8080, "A"), out(f.b.ip, 1003, 80, "A"),
		local(80, 1003, "A"), out(f.vip, 1004, 81, "A"), local(8080, 1004, "A"), out(f.outside, 1005, 80, "A"), outer, hosts,
	}
	for _, s := range again { // every direction's outcome is in its entry now
		s.send()
	}
	h.unmoved(again, true)
	h.unmoved([]move{in(1001, 80, "FA"), out(f.vip, 1002, 80, "FA"), local(80, 1003, "RA")}, true)
	h.rules(podA, datapath.RuleSet{ID: 9, Ingress: true, Egress: true, Entries: entries{{}: {}, {Direction: datapath.Egress}: {}}})
	h.unmoved(again, false)
}

// unmoved sends packets and compares all entries with what they were before each.
func (h *harness) unmoved(steps []move, words bool) {
	h.t.Helper()
	for _, s := range steps {
		before := h.entriesNow()
		if r := s.send(); r.act == actShot {
			h.t.Fatalf("%s is dropped: %+v", s.name, h.events())
		}
		after := h.entriesNow()
		if len(before) != len(after) || len(before) == 0 {
			h.t.Errorf("%s: %d entries became %d", s.name, len(before), len(after))
		}
		counted := false
		for k, is := range after {
			was := before[k]
			counted = counted || is.Packets != was.Packets
			was.Bytes, was.Packets, was.LastSeen, was.Created = is.Bytes, is.Packets, is.LastSeen, is.Created
			was.Flags, was.TCP = is.Flags, is.TCP
			if !words {
				was.Verdict, was.Hop = is.Verdict, is.Hop
			}
			if was != is {
				h.t.Errorf("%s: entry %v was\n%+v, is\n%+v", s.name, k, was, is)
			}
		}
		if !counted {
			h.t.Errorf("%s: nothing counted it", s.name)
		}
	}
}

// direct changes a value in the kernel's map and nothing else: no epoch tells.
func direct[K, V any](h *harness, m *ebpf.Map, which func(K, V) bool, change func(*V)) {
	h.t.Helper()
	var k K
	var v V
	changed := 0
	for it := m.Iterate(); it.Next(&k, &v); {
		if !which(k, v) {
			continue
		}
		change(&v)
		if err := m.Put(k, v); err != nil {
			h.t.Fatal(err)
		}
		changed++
	}
	if changed == 0 {
		h.t.Fatalf("nothing in %s is like that", m)
	}
}

// Rule 4: an established flow's entry says which node is next, and no more. When the
// node has another tunnel address, or path, the next packet goes there; and so do
// the MACs of a local pod and what an external endpoint wants to see.
func TestAddressesAreNotCached(t *testing.T) {
	h := newHarness(t)
	for _, f := range families() {
		t.Run(f.prefix+"node", func(t *testing.T) { h.t = t; h.nodeMoves(f) })
		t.Run(f.prefix+"local pod", func(t *testing.T) { h.t = t; h.podMoves(f) })
		t.Run(f.prefix+"external endpoint", func(t *testing.T) { h.t = t; h.externalMoves(f) })
		h.forgetFlows()
	}
}

// moved2 is where nodes move.
const moved2 = "192.0.2.222"

func (h *harness) nodeMoves(f family) {
	h.serve(f.vip, 80, tcp, f.r)
	h.sync()
	h.establishFrom(f.a, f.r, 1000)
	to := func(dst string, size int) result {
		ls := segment(f.a.ip, dst, 1000, 80, "A")
		ls[2] = payload(size)
		return h.fromPod(f.a, h.sent(f.a, ls))
	}
	h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, 1000, 80, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 8080, 1000, "SA"))))
	shift := func(from, to string, mtu uint32) {
		h.t.Helper()
		direct(h, h.d.Maps().Nodes, func(_ uint32, n maps.Node) bool { return n.Addr.Netip() == addr(from) }, func(n *maps.Node) {
			n.Addr, n.MTU = maps.AddrFrom(addr(to)), mtu
		})
	}
	goes := func(want string) {
		h.t.Helper()
		before := h.entriesNow()
		for _, dst := range []string{f.r.ip, f.vip} {
			out := h.passed(to(dst, 8)).out
			if got := netip.AddrFrom4([4]byte(out[30:34])).String(); got != want {
				h.t.Errorf("to %s by %s, want %s", dst, got, want)
			}
		}
		for k, e := range h.entriesNow() {
			if e.Hop != before[k].Hop || e.Verdict != before[k].Verdict {
				h.t.Errorf("entry %v was judged anew", k)
			}
		}
	}
	goes(node2)
	goes(node2)
	shift(node2, moved2, 0)
	goes(moved2)
	h.passed(to(f.r.ip, 1000))
	shift(moved2, moved2, 1000)
	h.answered(to(f.r.ip, 1000), maps.DropPacketTooBig)
	goes(moved2)
	shift(moved2, node2, 0)
	goes(node2)
}

func (h *harness) podMoves(f family) {
	send := func() []byte {
		return h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.b.ip, 1001, 80, "A")))).out
	}
	send()
	h.passed(h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.a.ip, 80, 1001, "A"))))
	send()
	other := [6]byte{2, 5, 5, 5, 5, 5}
	old := h.eps[podB.name]
	set := func(pod, host [6]byte) {
		direct(h, h.d.Maps().Endpoints, func(_ maps.IPKey, e maps.Endpoint) bool { return e.ID == old.ID }, func(e *maps.Endpoint) {
			e.PodMAC, e.HostMAC = pod, host
		})
	}
	set(other, [6]byte{2, 6, 6, 6, 6, 6})
	if out := send(); !bytes.Equal(out[:6], other[:]) || out[6] != 2 || out[7] != 6 {
		h.t.Errorf("frame %x, want one to %x", out[:12], other)
	}
	set(old.PodMAC, old.HostMAC)
	if out := send(); !bytes.Equal(out[:6], old.PodMAC[:]) {
		h.t.Errorf("frame %x, want one to %x", out[:12], old.PodMAC)
	}
}

func (h *harness) externalMoves(f family) {
	p := h.lanWorld(f)
	send := func() []byte {
		return h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, p.ip, 1002, 80, "A")))).out
	}
	send()
	h.passed(h.fromOverlay(h.tunnelled(lan, lanVNI, segment(p.ip, f.a.ip, 80, 1002, "A"))))
	send()
	mac, vni := [6]byte{2, 7, 7, 7, 7, 7}, uint32(identity.World)+70
	was := maps.VTEP{}
	direct(h, h.d.Maps().Vteps, func(uint32, maps.VTEP) bool { return true }, func(v *maps.VTEP) { was, v.MAC, v.VNI = *v, mac, vni })
	if out := send(); !bytes.Equal(out[50:56], mac[:]) || out[48] != byte(vni) {
		h.t.Errorf("VXLAN and inner Ethernet header %x, want VNI %x and MAC %x", out[42:64], vni, mac)
	}
	direct(h, h.d.Maps().Vteps, func(uint32, maps.VTEP) bool { return true }, func(v *maps.VTEP) { *v = was })
}
