// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
)

// onCPU runs f on a thread of its own, in the namespace and on one CPU.
func (h *harness) onCPU(cpu int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var set unix.CPUSet
		set.Set(cpu % runtime.NumCPU())
		err := unix.SchedSetaffinity(0, &set)
		if err == nil {
			err = netns.Set(h.ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Two CPUs send packets of one flow, others push it out of conntrack, and policy
// closes and opens: from when the kernel has been told that the flow is denied,
// none of its packets passes (rule 5 of the flow cache).
func TestRaceOfFlowCache(t *testing.T) {
	for _, f := range families() {
		raceOfFlowCache(t, f.a, f.b)
	}
}

func raceOfFlowCache(t *testing.T, podA, podB host) {
	t.Helper()
	sizes := loader.SmallMaps()
	sizes.HalfOpen, sizes.HalfOpen6 = 64, 64
	h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits})
	open := datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Direction: datapath.Ingress, Identity: idA, Protocol: tcp, Port: 80}: {}}}
	h.rules(podB, open)
	index := h.ifindex(podA.name)
	syn := h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S"))
	var others [][]byte
	for port := range uint16(256) {
		others = append(others, h.sent(podA, segment(podA.ip, podB.ip, 2000+port, 80, "S")))
	}
	var generation atomic.Uint64 // odd: the flow is denied in the kernel
	var stop atomic.Bool
	var passed, dropped, wrong atomic.Uint64
	send := func(packet []byte) (uint32, error) {
		return h.d.Programs().FromPod.Run(&ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+64), Context: skb{IfIndex: index}})
	}
	errs := make(chan error, 3)
	var wg sync.WaitGroup
	for cpu := range 2 {
		wg.Go(func() {
			errs <- h.onCPU(cpu, func() error {
				for i := cpu; !stop.Load(); i++ {
					packet := syn
					if i%3 == 2 {
						packet = others[i%len(others)]
					}
					before := generation.Load()
					act, err := send(packet)
					if err != nil {
						return err
					}
					switch {
					case act == actShot:
						dropped.Add(1)
					case before%2 == 1 && generation.Load() == before:
						wrong.Add(1)
					default:
						passed.Add(1)
					}
				}
				return nil
			})
		})
	}
	wg.Go(func() {
		for !stop.Load() { // what user space may do at any time
			_ = h.forgetOpen(podA, podB, 1000, 80)
			runtime.Gosched()
		}
		errs <- nil
	})
	flips := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); flips++ {
		shut := open
		shut.Entries = nil
		h.tables.RuleSets.Set(5, shut)
		h.sync()
		generation.Add(1)
		for seen := dropped.Load(); dropped.Load() < seen+50 && time.Now().Before(end); {
			runtime.Gosched()
		}
		generation.Add(1)
		h.tables.RuleSets.Set(5, open)
		h.sync()
		for seen := passed.Load(); passed.Load() < seen+50 && time.Now().Before(end); {
			runtime.Gosched()
		}
	}
	stop.Store(true)
	wg.Wait()
	for range 3 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d packets passed, %d were dropped, over %d flips", passed.Load(), dropped.Load(), flips)
	if wrong.Load() > 0 {
		t.Errorf("%d packets passed that policy denied", wrong.Load())
	}
	if passed.Load() < 100 || dropped.Load() < 100 || flips < 5 {
		t.Error("too little happened to prove anything")
	}
}

// forgetOpen deletes the half-open TCP flow of a to b, whose address is higher.
func (h *harness) forgetOpen(a, b host, sport, dport uint16) error {
	from, to := addr(a.ip), addr(b.ip)
	if from.Is6() {
		return h.d.Maps().Ct6Open.Delete(maps.Tuple6{
			Source: from.As16(), Destination: to.As16(), SourcePort: maps.PortFrom(sport), DestPort: maps.PortFrom(dport), Protocol: tcp,
		})
	}
	k := maps.Tuple4{Source: from.As4(), Destination: to.As4(), SourcePort: maps.PortFrom(sport), DestPort: maps.PortFrom(dport), Protocol: tcp}
	return h.d.Maps().Ct4Open.Delete(k.FlowKey())
}

// Every combination of constants that is used loads, with room below the
// verifier's limit, and passes a packet.
func TestConstantsLoad(t *testing.T) {
	none, ports := loader.PortRange{}, loader.MasqueradePorts()
	for _, c := range []struct {
		bits        uint32
		masquerade  loader.PortRange
		node6, out6 string
	}{
		{8, none, "", ""}, {9, none, self6, ""}, {10, none, "", ""},
		{8, ports, self6, selfOut6}, {9, ports, "", ""}, {10, ports, self6, ""},
		{8, none, self6, ""}, {8, ports, "", ""}, {10, ports, self6, selfOut6},
	} {
		t.Run(fmt.Sprintf("%d bits, %d ports, %q, %q", c.bits, c.masquerade.Count, c.node6, c.out6), func(t *testing.T) {
			cfg := loader.Config{ClusterBits: c.bits, Masquerade: c.masquerade, MapSizes: loader.SmallMaps()}
			cfg.NodeAddr6, _ = netip.ParseAddr(c.node6) // "" is none
			cfg.Masquerade6, _ = netip.ParseAddr(c.out6)
			h := newHarnessWith(t, cfg)
			h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))))
			h.passed(h.from6(segment(podA6.ip, podR6.ip, 1000, 80, "S")))
			for name, p := range h.programs() {
				roomInVerifier(t, name, p)
			}
		})
	}
}

func roomInVerifier(t *testing.T, name string, p *ebpf.Program) {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := info.VerifiedInstructions()
	if ok && n > verifierLimit/2 {
		t.Errorf("%s takes %d instructions", name, n)
	}
	t.Logf("%s: %d instructions", name, n)
}

// On kernels that know none of the flags that are probed for, all programs load, with
// masquerading and without.
func TestConstantsOfOldKernelsLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads eBPF programs")
	}
	for _, masquerade := range []bool{false, true} {
		t.Run(fmt.Sprintf("masquerade %v", masquerade), func(t *testing.T) {
			spec, err := objects.LoadHawser()
			if err != nil {
				t.Fatal(err)
			}
			sizes := loader.SmallMaps()
			for name, m := range spec.Maps {
				if m.Type == ebpf.Hash || m.Type == ebpf.LRUHash {
					m.MaxEntries = min(m.MaxEntries, 1024)
				}
				if name == "events" {
					m.MaxEntries = sizes.Events
				}
			}
			set := func(name string, value any) {
				t.Helper()
				if err := spec.Variables[name].Set(value); err != nil {
					t.Fatal(err)
				}
			}
			for _, flag := range []string{"encap_extra_flags", "decap6_flag", "csum6_flag"} {
				set(flag, uint64(0))
			}
			set("node_addr6", addr(self6).As16())
			if rng := loader.MasqueradePorts(); masquerade {
				set("snat_first", uint32(rng.First))
				set("snat_ports", uint32(rng.Count))
				set("snat_addr6", addr(selfOut6).As16())
			}
			all, err := ebpf.NewCollection(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer all.Close()
			for name, p := range all.Programs {
				roomInVerifier(t, name, p)
			}
		})
	}
}
