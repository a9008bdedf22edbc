// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
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

// shot is a packet of a race. Bit n of denied: it may not pass while flip n is shut.
type shot struct {
	prog   *ebpf.Program
	index  uint32 // of the device
	frame  []byte
	denied uint8
}

// flip closes and opens something in the kernel; each returns when it is so.
type flip struct{ shut, open func() }

// race is two CPUs that send, somebody who evicts, and somebody who flips.
type race struct {
	*harness
	sends [2]func(i int) shot
	evict func() // what user space may do at any time
	flips []flip

	generations            [2]atomic.Uint64 // of each flip; odd: shut
	stop                   atomic.Bool
	passed, dropped, wrong atomic.Uint64
}

// send is one CPU's part.
func (r *race) send(cpu int) error {
	return r.onCPU(cpu, func() error {
		var before [2]uint64
		for i := cpu; !r.stop.Load(); i++ {
			s := r.sends[cpu](i)
			for n := range before {
				before[n] = r.generations[n].Load()
			}
			act, err := s.prog.Run(&ebpf.RunOptions{Data: s.frame, DataOut: make([]byte, len(s.frame)+64), Context: skb{IfIndex: s.index}})
			if err != nil {
				return err
			}
			bad := false
			for n := range before {
				bad = bad || s.denied>>n&1 == 1 && before[n]%2 == 1 && r.generations[n].Load() == before[n]
			}
			switch {
			case act == actShot:
				r.dropped.Add(1)
			case bad:
				r.wrong.Add(1)
			default:
				r.passed.Add(1)
			}
		}
		return nil
	})
}

// Of a race, that much must have happened: with less it proves nothing.
const (
	raceTime  = 2 * time.Second  // at least
	raceLimit = 30 * time.Second // when much else runs on the machine
	raceTurns = 5
	racePacks = 100 // passed, and dropped
)

// over reports whether a race has lasted long enough.
func (r *race) over(start time.Time, turns int) bool {
	lasted := time.Since(start)
	enough := turns >= raceTurns && r.passed.Load() >= racePacks && r.dropped.Load() >= racePacks
	return lasted > raceLimit || lasted > raceTime && enough
}

// run races until enough has happened: from when the kernel has been told that a
// packet is denied, none of them passes.
func (r *race) run(t *testing.T) {
	t.Helper()
	errs := make(chan error, 3)
	var wg sync.WaitGroup
	for cpu := range 2 {
		wg.Go(func() { errs <- r.send(cpu) })
	}
	wg.Go(func() {
		for !r.stop.Load() {
			r.evict()
			runtime.Gosched()
		}
		errs <- nil
	})
	turns := 0
	for start := time.Now(); !r.over(start, turns); turns++ {
		n := turns % len(r.flips)
		r.flips[n].shut()
		r.generations[n].Add(1)
		for seen := r.dropped.Load(); r.dropped.Load() < seen+50 && time.Since(start) < raceLimit; {
			runtime.Gosched()
		}
		r.generations[n].Add(1)
		r.flips[n].open()
		for seen := r.passed.Load(); r.passed.Load() < seen+50 && time.Since(start) < raceLimit; {
			runtime.Gosched()
		}
	}
	r.stop.Store(true)
	wg.Wait()
	for range 3 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d packets passed, %d were dropped, over %d flips", r.passed.Load(), r.dropped.Load(), turns)
	if r.wrong.Load() > 0 {
		t.Errorf("%d packets passed that policy denied", r.wrong.Load())
	}
	if r.passed.Load() < racePacks || r.dropped.Load() < racePacks || turns < raceTurns {
		t.Error("too little happened to prove anything")
	}
}

// narrow is a node that has hardly room for half-open flows.
func narrow(t *testing.T) *harness {
	sizes := loader.SmallMaps()
	sizes.HalfOpen, sizes.HalfOpen6 = 64, 64
	return newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits})
}

// flipRules closes a rule set and opens it again.
func (h *harness) flipRules(open datapath.RuleSet) flip {
	shut := open
	shut.Entries = nil
	set := func(s datapath.RuleSet) func() {
		return func() {
			h.tables.RuleSets.Set(s.ID, s)
			h.sync()
		}
	}
	return flip{set(shut), set(open)}
}

// Two CPUs send packets of one flow, others push it out of conntrack, and policy
// closes and opens: from when the kernel has been told that the flow is denied,
// none of its packets passes (rule 5 of the flow cache).
func TestRaceOfFlowCache(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"half-open, local", func(t *testing.T) { raceOfFlowCache(t, f.a, f.b) })
		t.Run(f.prefix+"established, remote", func(t *testing.T) { raceOfEstablished(t, f) })
	}
}

func raceOfFlowCache(t *testing.T, podA, podB host) {
	t.Helper()
	h := narrow(t)
	open := datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Direction: datapath.Ingress, Identity: idA, Protocol: tcp, Port: 80}: {}}}
	h.rules(podB, open)
	from := shot{prog: h.d.Programs().FromPod, index: h.ifindex(podA.name), denied: 1}
	var flows []shot
	for port := range uint16(257) {
		s := from
		s.frame = h.sent(podA, segment(podA.ip, podB.ip, 1000+port, 80, "S"))
		flows = append(flows, s)
	}
	send := func(i int) shot {
		if i%3 == 2 {
			return flows[1+i%256]
		}
		return flows[0]
	}
	r := race{
		harness: h, sends: [2]func(int) shot{send, send}, flips: []flip{h.flipRules(open)},
		evict: func() { _ = h.forgetFlow(podA, podB, 1000, 80) },
	}
	r.run(t)
}

// raceOfEstablished has an established flow between podA and a pod of node 2: one CPU
// sends what podA sends, the other the answers. Policy flips, and who the remote pod
// is: what podA may not ask for, it may neither send to him nor hear from him.
func raceOfEstablished(t *testing.T, f family) {
	h := narrow(t)
	open := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{{Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 80}: {}}}
	h.rules(f.a, open)
	const rules, identity = 1 << 0, 1 << 1
	out := shot{prog: h.d.Programs().FromPod, index: h.ifindex(podA.name), denied: rules | identity}
	in := shot{prog: h.d.Programs().FromOverlay, index: h.ifindex("eth0"), denied: rules}
	var outs, ins []shot
	for port := range uint16(129) {
		o, i := out, in
		o.frame = h.sent(f.a, segment(f.a.ip, f.r.ip, 1000+port, 80, "A"))
		i.frame = h.tunnelled(node2, idR, segment(f.r.ip, f.a.ip, 80, 1000+port, "A"))
		outs, ins = append(outs, o), append(ins, i)
	}
	pick := func(of []shot) func(int) shot {
		return func(i int) shot {
			if i%3 == 2 {
				return of[1+i%128]
			}
			return of[0]
		}
	}
	is := func(e datapath.IPEntry) func() {
		e.Tunnel = addr(node2)
		return func() {
			h.tables.IPCache.Set(hostKey(f.r), e)
			h.sync()
		}
	}
	r := race{
		harness: h, sends: [2]func(int) shot{pick(outs), pick(ins)},
		flips: []flip{h.flipRules(open), {is(datapath.IPEntry{Identity: idX}), is(datapath.IPEntry{Identity: idR})}},
		evict: func() { // a while is needed to establish it
			time.Sleep(time.Millisecond)
			_ = h.forgetFlow(f.a, f.r, 1000, 80)
		},
	}
	r.run(t)
}

// forgetFlow deletes the TCP flow of a to b, whose address is higher.
func (h *harness) forgetFlow(a, b host, sport, dport uint16) error {
	from, to, m := addr(a.ip), addr(b.ip), h.d.Maps()
	if from.Is6() {
		k := maps.Tuple6{
			Source: from.As16(), Destination: to.As16(), SourcePort: maps.PortFrom(sport), DestPort: maps.PortFrom(dport), Protocol: tcp,
		}
		return errors.Join(m.Ct6Open.Delete(k), m.Ct6.Delete(k))
	}
	k := maps.Tuple4{Source: from.As4(), Destination: to.As4(), SourcePort: maps.PortFrom(sport), DestPort: maps.PortFrom(dport), Protocol: tcp}.FlowKey()
	return errors.Join(m.Ct4Open.Delete(k), m.Ct4.Delete(k))
}

// Programs pass a packet, and have room below the verifier's limit, with nine of the
// loader's combinations: of cluster bits, masquerading, and the node's two addresses for
// IPv6 each two values that can be together are. All loads are TestVariablesLoad's.
func TestConstantsLoad(t *testing.T) {
	none, ports := loader.PortRange{}, loader.MasqueradePorts()
	for _, c := range []struct {
		bits        uint32
		masquerade  loader.PortRange
		node6, out6 string
	}{
		{8, none, "", ""}, {9, none, "", ""}, {10, none, "", ""},
		{8, ports, self6, selfOut6}, {9, ports, self6, selfOut6}, {10, ports, self6, ""},
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
