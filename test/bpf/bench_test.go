// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

const rounds = 20_000

// perPacket is the mean time of one run in ns, from the kernel's statistics.
// Every run gets a fresh packet: with the test run's own repetition the second
// round would see the first one's rewritten addresses and headers, and time a
// drop.
func (h *harness) perPacket(prog *ebpf.Program, dev string, packet []byte, want uint32) (ns float64) {
	h.t.Helper()
	opts := &ebpf.RunOptions{Data: packet, Context: skb{IfIndex: h.ifindex(dev)}}
	h.in(func() error {
		before, err := prog.Stats()
		if err != nil {
			return err
		}
		for range rounds {
			ret, err := prog.Run(opts)
			if err != nil {
				return err
			}
			if ret != want {
				return fmt.Errorf("verdict %d, want %d: the timing would be of another path", ret, want)
			}
		}
		after, err := prog.Stats()
		if err != nil {
			return err
		}
		ns = float64(after.Runtime-before.Runtime) / float64(after.RunCount-before.RunCount)
		return nil
	})
	return ns
}

// BenchmarkEstablished reports what established flows cost above an empty
// program in the same run: to a pod here, to a pod on another node with the
// tunnel's headers, and the arrival of such a packet; and the same for IPv6.
func BenchmarkEstablished(b *testing.B) {
	h := newHarness(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL", Name: "empty",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	h.establish(1000)
	toLocal := h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S"))
	h.passed(h.fromPod(podA, toLocal))
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB.ip, podA.ip, 80, 1000, "SA"))))
	h.establishFrom(podA6, podR6, 1000)
	h.passed(h.from6(segment(podA6.ip, podB6.ip, 1000, 80, "S")))
	h.passed(h.fromPod(podB, h.sent(podB, segment(podB6.ip, podA6.ip, 80, 1000, "SA"))))
	progs := h.d.Programs()
	best := map[string]float64{}
	note := func(name string, ns float64) {
		if old, ok := best[name]; !ok || ns < old {
			best[name] = ns
		}
	}
	for b.Loop() {
		nop := h.perPacket(empty, podA.name, toLocal, actOK)
		note("ns/empty", nop)
		note("ns/local-net", h.perPacket(progs.FromPod, podA.name,
			h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "A")), actRedirect)-nop)
		note("ns/remote-net", h.perPacket(progs.FromPod, podA.name,
			h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "A")), actRedirect)-nop)
		note("ns/arrival-net", h.perPacket(progs.FromOverlay, "eth0",
			h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "A")), actRedirect)-nop)
		note("ns/local6-net", h.perPacket(progs.FromPod, podA.name,
			h.sent(podA, segment(podA6.ip, podB6.ip, 1000, 80, "A")), actRedirect)-nop)
		note("ns/remote6-net", h.perPacket(progs.FromPod, podA.name,
			h.sent(podA, segment(podA6.ip, podR6.ip, 1000, 80, "A")), actRedirect)-nop)
		note("ns/arrival6-net", h.perPacket(progs.FromOverlay, "eth0",
			h.tunnelled(node2, idR, segment(podR6.ip, podA6.ip, 80, 1000, "A")), actRedirect)-nop)
	}
	for name, ns := range best {
		b.ReportMetric(ns, name)
	}
}
