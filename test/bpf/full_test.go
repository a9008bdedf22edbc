// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// A flood of SYNs, 120 % of conntrack, harms no flow that lives.
func TestFloodSparesLiveFlows(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"flood", func(t *testing.T) { floodSparesLiveFlows(t, f) })
	}
}

func floodSparesLiveFlows(t *testing.T, f family) {
	sizes := loader.SmallMaps()
	sizes.Conntrack, sizes.HalfOpen = 2048, 1024
	sizes.Conntrack6, sizes.HalfOpen6 = sizes.Conntrack, sizes.HalfOpen
	h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, NodeAddr6: addr(self6)})
	const live = 100
	for port := range uint16(live) {
		h.establishFrom(f.a, f.r, 1000+port)
	}
	flood := int(float64(sizes.Conntrack+sizes.HalfOpen) * 1.2)
	pod, overlay, tunnel := h.d.Programs().FromPod, h.d.Programs().FromOverlay, 14+20+8+8
	syn := func(src string) []gopacket.SerializableLayer { return segment(src, f.a.ip, 1, 80, "S") }
	answer := func(dst string) []byte { return h.sent(f.a, segment(f.a.ip, dst, 80, 1, "SA")) }
	for _, from := range []stream{
		{overlay, "eth0", h.plain(syn(f.outside)), 0, actRedirect, answer(f.outside), actOK},
		{overlay, "eth0", h.tunnelled(node2, idR, syn(f.r.ip)), tunnel, actRedirect, answer(f.r.ip), actRedirect},
		{pod, f.b.name, h.sent(f.b, syn(f.b.ip)), 0, actRedirect, answer(f.b.ip), actRedirect},
	} {
		h.flood(from, f, flood)
	}
	if n, open := h.entries(f); n-open != live || open == 0 || open > int(sizes.HalfOpen) {
		t.Errorf("%d established flows, want %d; %d half-open", n-open, live, open)
	}
	for port := range uint16(live) {
		h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, 1000+port, 80, "A"))))
		h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 80, 1000+port, "A"))))
	}
	for _, at := range []metric{{maps.DropConntrackFull, datapath.Ingress, "from_overlay"}, {maps.DropConntrackFull, datapath.Egress, "from_pod"}} {
		if n := h.moved(at); n != 0 {
			t.Errorf("%s dropped %d packets as conntrack full", at.program, n)
		}
	}
	h.establishFrom(f.a, f.r, 5000) // and a new one gets in at once
	if n, open := h.entries(f); n-open != live+1 {
		t.Errorf("%d established flows, want %d", n-open, live+1)
	}
	t.Logf("%d live flows, %d SYNs", live, 3*flood)
}

// stream is the SYNs of one sender to podA, and its answers.
type stream struct {
	prog    *ebpf.Program
	dev     string
	syn     []byte
	outer   int // bytes before the packet of the flow
	act     uint32
	answer  []byte // from podA
	leaving uint32 // its verdict
}

// flood has n connections opened and answered; who opens them says no more.
func (h *harness) flood(from stream, f family, n int) {
	h.t.Helper()
	ip := 20
	if isIPv6(f.a.ip) {
		ip = 40
	}
	in, out, answered := skb{IfIndex: h.ifindex(from.dev)}, skb{IfIndex: h.ifindex(f.a.name)}, 14+ip+2
	at := from.outer + 14 + ip
	run := func(prog *ebpf.Program, packet []byte, ctx skb, want uint32) error {
		act, err := prog.Run(&ebpf.RunOptions{Data: packet, DataOut: make([]byte, 256), Context: ctx})
		if err == nil && act != want {
			err = fmt.Errorf("verdict %d", act)
		}
		return err
	}
	err := h.onCPU(0, func() error {
		for i := range n {
			port := 20000 + i
			from.syn[at], from.syn[at+1] = byte(port>>8), byte(port)
			from.answer[answered], from.answer[answered+1] = byte(port>>8), byte(port)
			if err := run(from.prog, from.syn, in, from.act); err != nil {
				return fmt.Errorf("SYN %d of the flood: %w", i, err)
			}
			if err := run(h.d.Programs().FromPod, from.answer, out, from.leaving); err != nil {
				return fmt.Errorf("answer %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// entries is how many flows of a family there are, and how many are half-open.
func (h *harness) entries(f family) (all, open int) {
	h.t.Helper()
	if isIPv6(f.a.ip) {
		flows, open := h.flows6()
		return len(flows), open
	}
	flows, open := h.flows()
	return len(flows), open
}

// told waits until a table's status says that its map is full, and what to do.
func (h *harness) told(table, kernel string, size uint32) {
	h.t.Helper()
	want := []string{fmt.Sprintf("the map %s is full, with %d entries; what it has stays", kernel, size), "--map-sizes", "hawser map list"}
	var says string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, s := range h.r.Status() {
			if s.Table == table {
				says = s.LastError
			}
		}
		if strings.Contains(says, want[0]) && strings.Contains(says, want[1]) && strings.Contains(says, want[2]) {
			if strings.Contains(says, "too big") || strings.Contains(says, "no space left") { // of keys, of devices
				h.t.Errorf("the status of %s gives another reason, too: %q", table, says)
			}
			return
		}
	}
	h.t.Fatalf("the status of %s says %q, not %q", table, says, want)
}

// settled waits until a table is in the kernel again.
func (h *harness) settled(table string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, s := range h.r.Status() {
		if s.Table == table {
			if err := h.r.Wait(ctx, table, s.Revision); err != nil {
				h.t.Fatalf("%v: %s", err, s.LastError)
			}
		}
	}
}

// An ipcache that is full gives up nobody: addresses that it has are reached, also
// by new flows, and the operator is told of those that it has not.
func TestIPCacheFull(t *testing.T) {
	sizes := loader.SmallMaps()
	sizes.IPCache = 16
	h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, NodeAddr6: addr(self6)})
	h.establish(1000)
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true, Entries: entries{{Direction: datapath.Egress, Identity: idR}: {}}})
	late := func(i int) (a netip.Addr, k datapath.IPKey) {
		a = netip.AddrFrom4([4]byte{10, 2, 1, byte(i)})
		return a, datapath.IPKey{Prefix: netip.PrefixFrom(a, 32)}
	}
	const more = 8
	for i := range more {
		_, k := late(i)
		h.tables.IPCache.Set(k, datapath.IPEntry{Identity: idR, Tunnel: addr(node2)})
	}
	h.told("ipcache", "ipcache", sizes.IPCache)
	for _, f := range families() {
		h.establishFrom(f.a, f.r, 1001)
	}
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "A"))))
	// Of the others it is known only whose range they are in: fail closed.
	passed, dropped := 0, 0
	for i := range more {
		a, _ := late(i)
		r := h.fromPod(podA, h.sent(podA, segment(podA.ip, a.String(), 1002, 80, "S")))
		if r.act != actShot {
			passed++
			continue
		}
		dropped++
		h.reason(maps.DropIdentityUnknown)
	}
	if passed == 0 || dropped == 0 || passed+dropped != more {
		t.Errorf("%d of the addresses are known, %d are not", passed, dropped)
	}
	for _, p := range []host{podX, podX6} { // room again
		h.tables.IPCache.Delete(hostKey(p))
	}
	for i := range more - 2 {
		_, k := late(i)
		h.tables.IPCache.Delete(k)
	}
	h.settled("ipcache")
	a, _ := late(more - 1)
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, a.String(), 1003, 80, "S"))))
}

// Services that find no room are told; those that are there go on, with their
// flows and with new ones.
func TestServicesFull(t *testing.T) {
	for _, c := range []struct {
		name string
		size func(*loader.MapSizes) uint32
	}{
		{"services", func(s *loader.MapSizes) uint32 { s.Services = 5; return 5 }},
		{"service_slots", func(s *loader.MapSizes) uint32 { s.Slots = 4; return 4 }},
		{"backends", func(s *loader.MapSizes) uint32 { s.Backends = 4; return 4 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			sizes := loader.SmallMaps()
			size := c.size(&sizes)
			h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, NodeAddr6: addr(self6)})
			h.serve(vip, 80, tcp, podR)
			h.serve(vip6, 80, tcp, podR6)
			h.sync()
			open := h.sent(podA, segment(podA.ip, vip, 1000, 80, "S"))
			h.passed(h.fromPod(podA, open))
			h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 8080, 1000, "SA"))))
			late := func(i int) datapath.FrontendKey {
				return datapath.FrontendKey{Addr: netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), Port: 80, Protocol: tcp}
			}
			const more = 8
			for i := range more {
				h.tables.Frontends.Set(late(i), datapath.Frontend{Service: uint32(2 + i), Backends: []datapath.Backend{{Addr: addr(podR.ip), Port: uint16(9000 + i)}}})
			}
			h.told("frontends", c.name, size)
			h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "A"))))
			h.passed(h.from6(segment(podA6.ip, vip6, 1001, 80, "S")))
			expect(t, unwrapped(h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1001, 80, "S")))).out), podA.ip, 1001, podR.ip, 8080)
			for i := range more - 2 {
				h.tables.Frontends.Delete(late(i))
			}
			h.settled("frontends")
			for i := more - 2; i < more; i++ {
				r := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, late(i).Addr.String(), 1002, 80, "S"))))
				expect(t, unwrapped(r.out), podA.ip, 1002, podR.ip, uint16(9000+i))
			}
			if c.name != "services" { // one that grows beyond what there is stays as it is
				var many []host
				for i := range more {
					many = append(many, host{ip: fmt.Sprintf("10.2.2.%d", i)})
				}
				h.serve(vip, 80, tcp, many...)
				h.told("frontends", c.name, size)
				for port := uint16(2000); port < 2010; port++ {
					expect(t, unwrapped(h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, port, 80, "S")))).out), podA.ip, port, podR.ip, 8080)
				}
				h.serve(vip, 80, tcp, podR)
				h.settled("frontends")
			}
			// And nothing is left of those that never were whole.
			for _, m := range []*ebpf.Map{h.d.Maps().Services, h.d.Maps().ServiceSlots, h.d.Maps().Backends} {
				var key, value []byte
				n := 0
				for it := m.Iterate(); it.Next(&key, &value); n++ {
				}
				if n != 4 {
					t.Errorf("%v has %d entries, want 4", m, n)
				}
			}
		})
	}
}
