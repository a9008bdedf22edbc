// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/loadbalancer/maglev"
)

// farm is a service with n backends behind node 2.
func (h *harness) farm(affinity uint32, hosts ...int) {
	h.t.Helper()
	f := datapath.Frontend{Service: 1, Affinity: affinity}
	for _, i := range hosts {
		f.Backends = append(f.Backends, datapath.Backend{Addr: netip.AddrFrom4([4]byte{10, 2, 1, byte(i)}), Port: 8080, ClusterID: 1})
	}
	h.tables.Frontends.Set(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: tcp}, f)
	h.sync()
}

// chosen is the backend of a new flow.
func (h *harness) chosen(p host, port uint16) string {
	h.t.Helper()
	r := h.passed(h.fromPod(p, h.sent(p, segment(p.ip, vip, port, 80, "S"))))
	_, i, _ := decode(h.t, unwrapped(r.out))
	return i.DstIP.String()
}

// forgetFlows empties conntrack.
func (h *harness) forgetFlows() {
	h.t.Helper()
	all, _ := h.flows()
	for k := range all {
		_, _ = h.d.Maps().Ct4.Delete(k), h.d.Maps().Ct4Open.Delete(k)
	}
	all6, _ := h.flows6()
	for k := range all6 {
		_, _ = h.d.Maps().Ct6.Delete(k), h.d.Maps().Ct6Open.Delete(k)
	}
}

func TestMaglevMovesFewFlows(t *testing.T) {
	h := newHarness(t)
	const flows = 400
	choose := func() map[uint16]string {
		out, share := map[uint16]string{}, map[string]int{}
		for port := range uint16(flows) {
			out[port] = h.chosen(podA, 1000+port)
			share[out[port]]++
		}
		for b, n := range share {
			if n < flows/len(share)/2 || n > flows/len(share)*2 {
				t.Errorf("%s has %d of %d flows on %d backends", b, n, flows, len(share))
			}
		}
		h.forgetFlows()
		return out
	}
	h.farm(0, 1, 2, 3, 4, 5)
	before := choose()
	for port, b := range choose() {
		if b != before[port] {
			t.Fatalf("port %d went to %s and to %s", port, before[port], b)
		}
	}
	h.farm(0, 1, 2, 4, 5)
	moved := 0
	for port, b := range choose() {
		if b == "10.2.1.3" {
			t.Error("a flow went to the backend that is gone")
		}
		if before[port] != "10.2.1.3" && b != before[port] {
			moved++
		}
	}
	if moved > flows/20 {
		t.Errorf("%d of %d flows moved beside those of the backend that went", moved, flows)
	}
	// The table in the kernel is the one that all nodes make.
	var inner uint32
	number := h.frontend().Number
	if err := h.d.Maps().Maglev.Lookup(number, &inner); err != nil {
		t.Fatal(err)
	}
	h.farm(0, 1)
	if err := h.d.Maps().Maglev.Lookup(number, &inner); err == nil {
		t.Error("a service with one backend has a table")
	}
	for port := range uint16(20) {
		if b := h.chosen(podA, 3000+port); b != "10.2.1.1" {
			t.Errorf("one backend, chosen %s", b)
		}
	}
}

// frontend is the service's element.
func (h *harness) frontend() (v maps.Frontend) {
	h.t.Helper()
	k := maps.EncodeFrontendKey(datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: tcp})
	if err := h.d.Maps().Services.Lookup(k, &v); err != nil {
		h.t.Fatal(err)
	}
	return v
}

// A service whose table is not there yet, or names a backend that is gone, is
// served by its slots.
func TestMaglevTableMissing(t *testing.T) {
	h := newHarness(t)
	h.farm(0, 1, 2, 3)
	if err := h.d.Maps().Maglev.Delete(h.frontend().Number); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for port := range uint16(60) {
		seen[h.chosen(podA, 1000+port)] = true
	}
	if len(seen) != 3 {
		t.Errorf("chosen: %v", seen)
	}
}

func TestSessionAffinity(t *testing.T) {
	h := newHarness(t)
	const timeout = 60
	h.farm(timeout, 1, 2, 3, 4, 5)
	k := maps.AffinityKey{Client: maps.AddrFrom(netip.MustParseAddr(podA.ip)), Frontend: h.frontend().Number}
	first := h.chosen(podA, 1000)
	for port := range uint16(30) {
		if b := h.chosen(podA, 1001+port); b != first {
			t.Fatalf("the client went to %s and to %s", first, b)
		}
	}
	var known maps.Affinity
	if err := h.d.Maps().Affinities.Lookup(k, &known); err != nil {
		t.Fatal(err)
	}
	// What is remembered counts, not what the hash says; but not for ever.
	hashed := known.Backend
	known.Backend = hashed%5 + 1
	put := func(last uint32) {
		t.Helper()
		if err := h.d.Maps().Affinities.Put(k, maps.Affinity{Backend: known.Backend, Last: last}); err != nil {
			t.Fatal(err)
		}
	}
	put(known.Last)
	other := h.chosen(podA, 2000)
	if other == first {
		t.Fatalf("remembered backend %d is not used", known.Backend)
	}
	put(known.Last - timeout - 5)
	if b := h.chosen(podA, 2001); b != first {
		t.Errorf("after the timeout the client went to %s, not to %s", b, first)
	}
	// A backend that takes no new flows loses its clients, and they stay with the
	// next one when it comes back.
	var left []int
	for i := 1; i <= 5; i++ {
		if fmt.Sprintf("10.2.1.%d", i) != first {
			left = append(left, i)
		}
	}
	h.farm(timeout, left...)
	if err := h.d.Maps().Affinities.Lookup(k, &known); err == nil {
		t.Errorf("the client still stays with backend %d", known.Backend)
	}
	next := h.chosen(podA, 3000)
	h.farm(timeout, 1, 2, 3, 4, 5)
	if b := h.chosen(podA, 3001); next == first || b != next {
		t.Errorf("the client went from %s to %s, then to %s", first, next, b)
	}
	// Flows of other clients are their own affair.
	seen := map[string]bool{}
	for i := range 20 {
		src := fmt.Sprintf("10.1.0.%d", 100+i)
		seen[h.clientChoice(src)] = true
	}
	if len(seen) < 3 {
		t.Errorf("20 clients share %v", seen)
	}
}

// clientChoice is the backend of a client with any address, as one that podA may
// send from.
func (h *harness) clientChoice(src string) string {
	h.t.Helper()
	ep := h.eps[podA.name]
	ep.Addrs = []netip.Addr{netip.MustParseAddr(podA.ip), netip.MustParseAddr(src)}
	h.tables.Endpoints.Set(ep.ID, ep)
	h.sync()
	r := h.passed(h.fromPod(podA, h.sent(podA, segment(src, vip, 1000, 80, "S"))))
	_, i, _ := decode(h.t, unwrapped(r.out))
	return i.DstIP.String()
}

// A backend that only keeps its flows gets no new ones.
func TestTerminatingBackendKeepsFlows(t *testing.T) {
	h := newHarness(t)
	h.service(podB)
	syn := h.sent(podA, segment(podA.ip, vip, 1000, 80, "S"))
	expect(t, h.passed(h.fromPod(podA, syn)).out, podA.ip, 1000, podB.ip, 8080)
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB.ip, podA.ip, 8080, 1000, "SA"))))
	key := datapath.FrontendKey{Addr: netip.MustParseAddr(vip), Port: 80, Protocol: tcp}
	b := datapath.Backend{Addr: netip.MustParseAddr(podB.ip), Port: 8080}
	r := datapath.Backend{Addr: netip.MustParseAddr(podR.ip), Port: 8080}
	h.tables.Frontends.Set(key, datapath.Frontend{Service: 1, Backends: []datapath.Backend{r}, Keeping: []datapath.Backend{b}})
	h.sync()
	expect(t, h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "A")))).out, podA.ip, 1000, podB.ip, 8080)
	for port := range uint16(20) {
		if got := h.chosen(podA, 2000+port); got != podR.ip {
			t.Errorf("a new flow went to %s", got)
		}
	}
	h.tables.Frontends.Set(key, datapath.Frontend{Service: 1, Backends: []datapath.Backend{r}})
	h.sync()
	out := h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, vip, 1000, 80, "A")))).out
	expect(t, unwrapped(out), podA.ip, 1000, podR.ip, 8080)
}

// The table holds what maglev.Table says, by the backends' numbers.
func TestMaglevTableIsThePlan(t *testing.T) {
	h := newHarness(t)
	h.farm(0, 1, 2, 3)
	inner := h.table(h.frontend().Number)
	var ids []maglev.ID
	for i := 1; i <= 3; i++ {
		ids = append(ids, maglev.ID{Cluster: 1, Addr: netip.AddrFrom4([4]byte{10, 2, 1, byte(i)}), Port: 8080})
	}
	for place, want := range maglev.Table(maglev.SmallSize, ids) {
		var b maps.Backend
		if err := h.d.Maps().Backends.Lookup(inner[uint32(place)], &b); err != nil {
			t.Fatal(err)
		}
		if b.Addr.Netip() != ids[want].Addr {
			t.Fatalf("place %d has %s, want %s", place, b.Addr.Netip(), ids[want].Addr)
		}
	}
}

func (h *harness) table(frontend uint32) map[uint32]uint32 {
	h.t.Helper()
	var id ebpf.MapID
	if err := h.d.Maps().Maglev.Lookup(frontend, &id); err != nil {
		h.t.Fatal(err)
	}
	inner, err := ebpf.NewMapFromID(id)
	if err != nil {
		h.t.Fatal(err)
	}
	defer inner.Close()
	out, err := maps.Dump[uint32, uint32](inner)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}
