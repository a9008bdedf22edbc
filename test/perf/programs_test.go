// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/lab"
)

// perfService puts the server behind a cluster IP.
const perfService = `apiVersion: v1
kind: Service
metadata: {name: server, namespace: default}
spec:
  selector: {app: server}
  ports: [{name: rr, protocol: TCP, port: 9001, targetPort: 9001}]
`

// tcxNext lets the next program on the device see the packet, too.
const tcxNext = -1

// TestPerfPrograms times the programs under real traffic, one packet a run, by
// the kernel's own statistics; the header is made and removed each time, which a
// repeated test run cannot do.
func TestPerfPrograms(t *testing.T) {
	r := newReport(t, "programs", "time in each program for a packet of an established TCP connection (request/response of 1 byte, one CPU), kernel statistics; "+
		"a calibration program on the same packets beside it")
	hawser, l := hawserShape(t)
	plain := kernelShape(t, "plain", false)
	noop, lookups := calibrate(t, plain.node[0])
	m := programsMeasured{t: t, c: newContest(t, hawser, plain), plain: plain, calibration: []*ebpf.Program{noop, lookups}}
	m.ways = programWays(hawser, serviceVIP(t, l, hawser), pinnedPrograms(t, l.Clusters()[0].Members))
	startServer(t, "echo", hawser.server, placements()[0].serverCPU, netip.AddrPortFrom(hawser.addr, udpPort))
	elsewhere := newChanges(t, l)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	quiet, busy := timings{}, timings{}
	for range flags.rounds {
		m.round(quiet)
		elsewhere.during(r, func() { m.round(busy) })
	}
	m.rows(r, quiet, busy)
	testRuns(t, r)
	r.note("the kernel reads its clock twice a run; that is in every number, and not in the net ones")
	r.finish(t)
}

// programWay is traffic, and what is timed of it.
type programWay struct {
	shape shape
	p     placement
	job   role
	paths []programPath
}

type programPath struct {
	name, goal string
	prog       *ebpf.Program
}

func programWays(hawser shape, vip netip.Addr, progs map[string]*ebpf.Program) []programWay {
	p, service := placements()[0], hawser
	service.addr = vip
	rr := role{Mode: "rr", Millis: 700}
	datagrams := role{Mode: "datagrams", Millis: rr.Millis}
	return []programWay{
		{hawser, p, rr, []programPath{
			{"from_pod: pod → remote pod, established, header written", "net ≤ 250 with eBPF headers", progs["1/from_pod"]},
			{"from_overlay: request in, header stripped", "", progs["2/from_overlay"]},
			{"from_pod: reply → remote pod", "", progs["2/from_pod"]},
			{"from_overlay: reply in", "", progs["1/from_overlay"]},
		}},
		{service, p, rr, []programPath{
			{"from_pod: pod → service → remote pod, header written", "", progs["1/from_pod"]},
			{"from_overlay: reply of the service in", "", progs["1/from_overlay"]},
		}},
		{hawser, placement{name: p.name, port: udpPort, clientCPU: p.clientCPU}, datagrams, []programPath{
			{"from_pod: UDP, pod → remote pod, header written", "", progs["1/from_pod"]},
			{"from_overlay: UDP, request in, header stripped", "", progs["2/from_overlay"]},
		}},
	}
}

// timings are a number a round of each path, and of the calibration programs.
type timings map[string][]float64

func (m timings) net(name string) []float64 { return differences(m[name], m[calibrationEmpty]) }

const (
	calibrationEmpty   = "calibration: empty program"
	calibrationLookups = "calibration: two hash lookups"
)

// programsMeasured is what a round is made of.
type programsMeasured struct {
	t           *testing.T
	c           *contest
	plain       shape
	calibration []*ebpf.Program // the empty one, two lookups
	ways        []programWay
}

// round has the traffic of each way once, and before it the calibration's.
func (m programsMeasured) round(into timings) {
	m.t.Helper()
	watch := watchPrograms(m.t, m.calibration...)
	m.c.run(m.plain, placements()[0], m.ways[0].job)
	for i, ns := range watch() {
		name := []string{calibrationEmpty, calibrationLookups}[i]
		into[name] = append(into[name], ns)
	}
	for _, way := range m.ways {
		var which []*ebpf.Program
		for _, path := range way.paths {
			which = append(which, path.prog)
		}
		watch := watchPrograms(m.t, which...)
		m.c.run(way.shape, way.p, way.job)
		for i, ns := range watch() {
			into[way.paths[i].name] = append(into[way.paths[i].name], ns)
		}
	}
}

func (m programsMeasured) rows(r *report, quiet, busy timings) {
	r.add(calibrationEmpty, "ns", "", quiet[calibrationEmpty])
	r.add(calibrationLookups, "ns", "", quiet[calibrationLookups])
	r.add(calibrationEmpty+", "+under(), "ns", "", busy[calibrationEmpty])
	for _, way := range m.ways {
		for _, path := range way.paths {
			r.add(path.name, "ns", "", quiet[path.name])
			r.add("  net of the empty program", "ns", path.goal, quiet.net(path.name))
			r.add("  in multiples of two hash lookups", "×", "", ratios(quiet.net(path.name), quiet.net(calibrationLookups)))
			r.add("  net, "+under(), "ns", "", busy.net(path.name))
			r.add("  net, "+under()+" / quiet", "×", "≤ 1.10", ratios(busy.net(path.name), quiet.net(path.name)))
		}
	}
}

// testRuns adds what test/bpf's own benchmark says: the same programs over one
// packet again and again (BPF_PROG_TEST_RUN), so with warm caches, and net of an
// empty program.
func testRuns(t *testing.T, r *report) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "test", "-run", "^$", "-bench", "^BenchmarkEstablished$",
		"-benchtime", "1x", "-count", strconv.Itoa(flags.rounds), "../bpf").CombinedOutput()
	if err != nil {
		t.Fatalf("benchmark of test/bpf: %v\n%s", err, out)
	}
	goals := map[string]string{"ns/remote-net": "≤ 250 with eBPF headers"}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(f); i += 2 {
			unit := f[i+1]
			if ns, err := strconv.ParseFloat(f[i], 64); err == nil && unit != "ns/op" {
				r.append("test run, one flow: "+strings.TrimPrefix(unit, "ns/"), "ns", goals[unit], ns)
			}
		}
	}
}

// watchPrograms returns what reads the time a run took on average since.
func watchPrograms(t *testing.T, progs ...*ebpf.Program) func() []float64 {
	t.Helper()
	read := func() (out []*ebpf.ProgramStats) {
		for _, p := range progs {
			s, err := p.Stats()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, s)
		}
		return out
	}
	before := read()
	return func() (ns []float64) {
		for i, after := range read() {
			runs := after.RunCount - before[i].RunCount
			if runs == 0 {
				t.Fatalf("program %s did not run", progs[i])
			}
			ns = append(ns, float64(after.Runtime-before[i].Runtime)/float64(runs))
		}
		return ns
	}
}

// pinnedPrograms opens the programs of all nodes, as "1/from_pod".
func pinnedPrograms(t *testing.T, nodes []lab.Node) map[string]*ebpf.Program {
	t.Helper()
	out := map[string]*ebpf.Program{}
	for i, n := range nodes {
		for _, name := range []string{"from_pod", "from_overlay"} {
			p, err := ebpf.LoadPinnedProgram(filepath.Join(n.PinPath, "programs", name), nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = p.Close() })
			out[string(rune('1'+i))+"/"+name] = p
		}
	}
	return out
}

// twoLookups finds the same 16 bytes of zero twice in a map.
func twoLookups(m *ebpf.Map) asm.Instructions {
	ins := asm.Instructions{
		asm.Mov.Imm(asm.R0, 0), asm.StoreMem(asm.RFP, -16, asm.R0, asm.DWord), asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
	}
	for range 2 {
		ins = append(ins,
			asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -16), asm.FnMapLookupElem.Call())
	}
	return ins
}

// calibrate puts the two calibration programs on a node's end of its pod's pair,
// one after the other on each packet.
func calibrate(t *testing.T, node string) (noop, lookups *ebpf.Program) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 64, MaxEntries: 16384})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if err := m.Put(make([]byte, 16), make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	next := asm.Instructions{asm.Mov.Imm(asm.R0, tcxNext), asm.Return()}
	load := func(name string, ins asm.Instructions) *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: ins})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	noop, lookups = load("perf_noop", next), load("perf_lookups", append(twoLookups(m), next...))
	err = nsthread.InNetns(node, func() error {
		pod, err := netlink.LinkByName("pod")
		if err != nil {
			return err
		}
		for _, p := range []*ebpf.Program{noop, lookups} {
			l, err := link.AttachTCX(link.TCXOptions{
				Interface: pod.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Tail(),
			})
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return noop, lookups
}

// serviceVIP puts the server behind a cluster IP and waits until it answers.
func serviceVIP(t *testing.T, l *lab.Lab, s shape) netip.Addr {
	t.Helper()
	mesh := hawserv1.NewMeshClient(onSocket(t, l.Clusters()[0].Socket))
	if _, err := mesh.ApplyService(t.Context(), &hawserv1.ApplyServiceRequest{Source: perfService}); err != nil {
		t.Fatal(err)
	}
	var vip netip.Addr
	d := &net.Dialer{Timeout: 200 * time.Millisecond}
	etcdtest.Eventually(t, within, "the service answers", func() bool {
		got, err := mesh.ListServices(t.Context(), &hawserv1.ListServicesRequest{})
		if err != nil || len(got.GetServices()) == 0 || len(got.GetServices()[0].GetVips()) == 0 {
			return false
		}
		vip, err = netip.ParseAddr(got.GetServices()[0].GetVips()[0])
		return err == nil && answered(t.Context(), s.client, netip.AddrPortFrom(vip, onePort), d)
	})
	return vip
}
