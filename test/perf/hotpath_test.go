// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// TestPerfHotPath times the programs for established flows by repeated test runs,
// up to the tunnel key: the packets and fills with which the peer was measured.
func TestPerfHotPath(t *testing.T) {
	r := newReport(t, "hotpath", fmt.Sprintf("the programs over one packet, a TCP ACK of 74 bytes (94 of IPv6), %d rounds by BPF_PROG_TEST_RUN on one CPU, every round's verdict checked; net of an empty program and of putting the packet back", rigRounds))
	for _, v6 := range []bool{false, true} {
		for _, f := range []mapFill{{10_000, 100, v6}, {200_000, 10_000, v6}} {
			newRig(t, f).established(r)
		}
	}
	r.finish(t)
}

// flow establishes a connection of the pod, to a peer or to the service.
func (g *rig) flow(remote, backend netip.Addr, remotePort, backendPort uint16) {
	g.t.Helper()
	progs := g.d.Programs()
	out := g.segment(g.pod(), remote, rigClientPort, remotePort, syn)
	in := g.tunnelled(g.segment(backend, g.pod(), backendPort, rigClientPort, synAck))
	ack := g.segment(g.pod(), remote, rigClientPort, remotePort, ack)
	g.in(func() error {
		if _, err := g.run(progs.FromPod, out, g.ep.IfIndex, 1); err != nil {
			return err
		}
		if _, err := g.run(progs.FromOverlay, in, g.eth, 1); err != nil {
			return err
		}
		_, err := g.run(progs.FromPod, ack, g.ep.IfIndex, 1)
		return err
	})
}

// flows establishes one with each of n peers.
func (g *rig) flows(n int) {
	g.t.Helper()
	progs := g.d.Programs()
	out := g.segment(g.pod(), g.peer(0), rigClientPort, rigServerPort, syn)
	in := g.tunnelled(g.segment(g.peer(0), g.pod(), rigServerPort, rigClientPort, synAck))
	heard := g.segment(g.pod(), g.peer(0), rigClientPort, rigServerPort, ack)
	const dst, src = 14 + 16, 50 + 14 + 12
	g.in(func() error {
		for i := range n {
			a := g.peer(i).As4() // there are none of IPv6
			copy(out[dst:], a[:])
			copy(in[src:], a[:])
			copy(heard[dst:], a[:])
			if _, err := g.run(progs.FromPod, out, g.ep.IfIndex, 1); err != nil {
				return fmt.Errorf("flow %d: %w", i, err)
			}
			if _, err := g.run(progs.FromOverlay, in, g.eth, 1); err != nil {
				return fmt.Errorf("flow %d back: %w", i, err)
			}
			if _, err := g.run(progs.FromPod, heard, g.ep.IfIndex, 1); err != nil {
				return fmt.Errorf("flow %d established: %w", i, err)
			}
		}
		return nil
	})
}

// timed is a program that is timed, net of another.
type timed struct {
	name, goal string
	prog, less string
	packet     []byte
	header     []byte // that the program puts back
	ifindex    uint32
}

func (g *rig) established(r *report) {
	g.t.Helper()
	g.flow(g.peer(1), g.peer(1), rigServerPort, rigServerPort)
	g.flow(g.vip(), g.peer(1), rigServerPort, rigService)
	remote := g.segment(g.pod(), g.peer(1), rigClientPort, rigServerPort, ack)
	service := g.segment(g.pod(), g.vip(), rigClientPort, rigServerPort, ack)
	inner := g.segment(g.peer(1), g.pod(), rigServerPort, rigClientPort, ack)
	arriving := g.tunnelled(inner)
	cases := []timed{
		{"pod → remote pod, up to the tunnel key", "≤ 150", "pod", "empty", remote, nil, g.ep.IfIndex},
		{"pod → service → remote pod, up to the tunnel key", "≤ 200", g.of("pod_restored"), g.of("restore"), service, service, g.ep.IfIndex},
		{"from the tunnel to the pod, with stripping", "≤ 180", g.of("overlay"), g.of("rewrap"), inner, arriving, g.eth},
	}
	g.fail(g.coll.Variables["remotes"].Set(uint32(g.ips)))
	first := g.peer(0).AsSlice()
	g.fail(g.coll.Variables["first_remote"].Set(binary.NativeEndian.Uint32(first[len(first)-4:])))
	if g.ips > 100_000 && !g.v6 {
		g.flows(g.ips)
		cases = append(cases, timed{fmt.Sprintf("pod → remote pod, %d flows at random", g.ips), "≤ 450", "pod_random", "random_flow", remote, nil, g.ep.IfIndex})
	}
	opening := g.segment(g.pod(), g.peer(1), rigClientPort, rigServerPort, syn)
	more := []timed{
		{"pod → remote pod, judged anew each time", "≤ 300", "pod_slow", "empty", remote, nil, g.ep.IfIndex},
		{"pod → remote pod, new flow", "reported", g.of("pod_new"), g.of("new_flow"), opening, nil, g.ep.IfIndex},
		{"pod → remote pod, first fragment", "reported", "pod", "empty", g.fragment(remote, 0, true), nil, g.ep.IfIndex},
		{"pod → remote pod, later fragment", "reported", "pod", "empty", g.fragment(remote, 64, false), nil, g.ep.IfIndex},
	}
	if g.v6 {
		for _, c := range [][]timed{cases, more} {
			for i := range c {
				c[i].goal = "reported"
			}
		}
	}
	g.measure(r, cases)
	g.churned(r, cases)
	g.measure(r, more) // the first of them ends what is cached for all flows
}

// of is the name of a program that is another one for IPv6.
func (g *rig) of(program string) string {
	if g.v6 {
		return program + "6"
	}
	return program
}

// fragment makes a fragment of a packet: at an offset in bytes, the last or not.
func (g *rig) fragment(segment []byte, offset uint16, more bool) []byte {
	const ether, unit, id, tcp = 14, 8, 7, 6
	var bits uint16
	if g.v6 {
		const header, next = ether + 40, ether + 6
		const length = ether + 4
		if bits = offset; more {
			bits |= 1
		}
		ext := binary.BigEndian.AppendUint16([]byte{tcp, 0}, bits)
		out := slices.Insert(slices.Clone(segment), header, append(ext, 0, 0, 0, id)...)
		out = out[:len(out)-(len(out)-header)%unit]
		out[next] = 44 // a fragment header
		binary.BigEndian.PutUint16(out[length:], uint16(len(out)-header))
		return out
	}
	const header, at, off, mf = ether + 20, ether + 4, ether + 6, 1 << 13
	out := slices.Clone(segment)
	if bits = offset / unit; more {
		bits |= mf
	}
	out[at] = id
	binary.BigEndian.PutUint16(out[off:], bits)
	return out[:len(out)-(len(out)-header)%unit]
}

// churned compares the cases, quiet and while the agent's part writes other
// addresses and other endpoints' policies, as fast as the design promises for.
func (g *rig) churned(r *report, cases []timed) {
	g.t.Helper()
	quiet, busy := map[string][]float64{}, map[string][]float64{}
	for range flags.rounds {
		for _, c := range cases {
			quiet[c.name] = append(quiet[c.name], g.long(c))
		}
		stop := g.churn()
		for _, c := range cases {
			busy[c.name] = append(busy[c.name], g.long(c))
		}
		stop(r)
	}
	for _, c := range cases {
		r.add(fmt.Sprintf("%s, %s / quiet (%s)", c.name, under(), g.mapFill), "×", "≤ 1.10", ratios(busy[c.name], quiet[c.name]))
	}
}

const longRounds = 20 * rigRounds

// long is the net of a case over so many rounds that changes fall into them.
func (g *rig) long(c timed) (ns float64) {
	g.t.Helper()
	g.set(c)
	g.in(func() error {
		took, err := g.run(g.coll.Programs[c.prog], slices.Clone(c.packet), c.ifindex, longRounds)
		if err != nil {
			return err
		}
		less, err := g.run(g.coll.Programs[c.less], slices.Clone(c.packet), c.ifindex, longRounds)
		ns = took - less
		return err
	})
	return ns
}

// churn writes until it is stopped, and then adds to the report how many changes a
// second the kernel had.
func (g *rig) churn() (stop func(*report)) {
	g.t.Helper()
	end, done := make(chan struct{}), make(chan struct{})
	count := epochsOf(g.t, g.d.Config().PinPath).rate(g.t)
	go func() {
		defer close(done)
		pace(func(int) bool {
			select {
			case <-end:
				return false
			default:
				g.change(g.made)
				g.made++
				return true
			}
		})
	}()
	return func(r *report) {
		g.t.Helper()
		count(r)
		close(end)
		<-done
	}
}

// change is the n-th one: addresses beyond those in use, and one of the rule sets that
// nobody has.
func (g *rig) change(n int) {
	const first, each = 1 << 19, churnAddresses / churnPolicies
	for i := range each {
		at := n*each + i
		a := g.peer(first + at%10_000)
		g.tables.IPCache.Set(datapath.IPKey{Prefix: netip.PrefixFrom(a, a.BitLen())},
			datapath.IPEntry{Identity: rigRemote + identity.Number(at/10_000%2), Tunnel: nodeAddr(1)})
	}
	set := rigRuleSet + 1 + uint32(n%churnSets)
	g.tables.RuleSets.Set(set, datapath.RuleSet{ID: set, Egress: true, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
		{Direction: datapath.Egress, Identity: rigRemote, Protocol: 6, Port: uint16(n%60000 + 1)}: {},
	}})
}

// set gives the programs the header that they put back.
func (g *rig) set(c timed) {
	g.t.Helper()
	if c.header != nil {
		g.fail(g.coll.Variables["header"].Set(append(append([]byte{}, c.header...), make([]byte, 128)...)[:128]))
	}
}

func (g *rig) measure(r *report, cases []timed) {
	g.t.Helper()
	ns := func(prog string, c timed, repeat int) (took float64) {
		g.t.Helper()
		g.set(c)
		g.in(func() (err error) {
			took, err = g.run(g.coll.Programs[prog], slices.Clone(c.packet), c.ifindex, repeat)
			return err
		})
		return took
	}
	raw := map[string][]float64{}
	note := func(name string, v float64) { raw[name] = append(raw[name], v) }
	for range flags.rounds {
		note("empty", ns("empty", cases[0], rigRounds))
		note("lookups", ns("lookups", cases[0], rigRounds))
		for _, c := range cases {
			took, less := ns(c.prog, c, rigRounds), ns(c.less, c, rigRounds)
			if c.prog == g.of("overlay") {
				ns(g.of("strip"), c, rigRounds)
				less -= g.stripped()
			}
			note(c.name, took-less)
			note(c.name+" less", less)
		}
	}
	if n := g.wrong(); n != 0 {
		g.t.Fatalf("%d rounds did not end in a redirect", n)
	}
	two := differences(raw["lookups"], raw["empty"])
	for _, v := range raw["empty"] {
		r.append(fmt.Sprintf("calibration: empty program (%s)", g.mapFill), "ns", "", v)
	}
	for _, v := range two {
		r.append(fmt.Sprintf("calibration: two hash lookups, net (%s)", g.mapFill), "ns", "", v)
	}
	for _, c := range cases {
		r.add(fmt.Sprintf("%s (%s)", c.name, g.mapFill), "ns", c.goal, raw[c.name])
		r.add("  in multiples of two hash lookups", "×", "", ratios(raw[c.name], two))
		r.add("  taken off: "+c.less, "ns", "", raw[c.name+" less"])
	}
}

// stripped is what stripping a packet takes, net of the clock.
func (g *rig) stripped() float64 {
	g.t.Helper()
	var n, strip, clock uint64
	g.fail(g.coll.Variables["strips"].Get(&n))
	g.fail(g.coll.Variables["strip_ns"].Get(&strip))
	g.fail(g.coll.Variables["clock_ns"].Get(&clock))
	for _, name := range []string{"strips", "strip_ns", "clock_ns"} {
		g.fail(g.coll.Variables[name].Set(uint64(0)))
	}
	return (float64(strip) - float64(clock)) / float64(max(n, 1))
}
