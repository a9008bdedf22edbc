// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/agent"
	"github.com/hawser-mesh/hawser/lab"
)

// placement is where client and server run. On one CPU the path's own cost
// shows; on two, waking a CPU out of idle is most of it.
type placement struct {
	name      string
	port      uint16
	clientCPU int
	serverCPU int
}

func placements() []placement {
	return []placement{
		{name: "one CPU", port: onePort, clientCPU: 0, serverCPU: 0},
		{name: "two CPUs", port: twoPort, clientCPU: 0, serverCPU: 1},
	}
}

// contest is the shapes with their servers running.
type contest struct {
	t       *testing.T
	shapes  []shape
	servers map[string]int // shape and placement -> pid
}

func newContest(t *testing.T, shapes ...shape) *contest {
	t.Helper()
	c := &contest{t: t, shapes: shapes, servers: map[string]int{}}
	for _, s := range shapes {
		widenPorts(t, s.client)
		for _, p := range placements() {
			c.servers[s.name+p.name] = startServer(t, "serve", s.server, p.serverCPU, netip.AddrPortFrom(s.addr, p.port))
		}
	}
	return c
}

func (c *contest) run(s shape, p placement, r role) outcome {
	c.t.Helper()
	r.Netns, r.CPU, r.Addr = s.client, p.clientCPU, netip.AddrPortFrom(s.addr, p.port)
	return runClient(c.t, r, c.servers[s.name+p.name])
}

// tunnelShape is hawserShape with the tunnel's headers made in one way.
func tunnelShape(t *testing.T, letter, name, way string) (shape, *lab.Lab) {
	t.Helper()
	spec := lab.NewSpec(labName(letter), 1, 2)
	spec.Agent = map[string]string{"tunnel-datapath": way}
	s, l := hawserShapeOf(t, spec)
	s.name = name
	return s, l
}

// TestPerfPaths compares latency, new connections and CPU time per byte, pod to
// pod on another node: Hawser with headers made in eBPF and by the kernel's device
// (hawser-netdev), plain routing, kernel VXLAN, the same with nftables.
func TestPerfPaths(t *testing.T) {
	r := newReport(t, "paths", "TCP from a pod to a pod on another node, same shape of devices; Hawser with conntrack and policy, VXLAN with an nftables policy of the same meaning, the others without")
	hawser, l := tunnelShape(t, "p", hawserName, agent.TunnelEBPF)
	elsewhere := newChanges(t, l)
	kernel, _ := tunnelShape(t, "n", netdevName, agent.TunnelNetdev)
	filtered := kernelShape(t, "vxlan-nft", true)
	filter(t, filtered)
	c := newContest(t, hawser, kernel, kernelShape(t, plainName, false), kernelShape(t, "vxlan", true), filtered)
	for _, p := range placements() {
		c.latency(r, p, "request/response p50", role{Mode: "rr", Millis: 700}, "µs", "eBPF headers ≤ plain + 1 µs")
	}
	for _, p := range placements() {
		c.latency(r, p, "new connection p50", role{Mode: "crr", Count: 1500}, "µs", "")
	}
	for _, p := range placements() {
		c.stream(r, p)
	}
	for _, p := range placements() {
		c.disturbed(r, elsewhere, p, role{Mode: "rr", Millis: 1500})
	}
	r.finish(t)
}

// disturbed compares Hawser's latency, quiet and while things change elsewhere;
// plain routing beside it has what the rest of the machine does to both.
func (c *contest) disturbed(r *report, elsewhere *changes, p placement, job role) {
	c.t.Helper()
	var shapes []shape
	for _, s := range c.shapes {
		if s.name == hawserName || s.name == plainName {
			shapes = append(shapes, s)
		}
	}
	quiet, busy := map[string][]float64{}, map[string][]float64{}
	for range flags.rounds {
		for _, s := range shapes {
			quiet[s.name] = append(quiet[s.name], c.run(s, p, job).P50)
		}
		elsewhere.during(r, func() {
			for _, s := range shapes {
				busy[s.name] = append(busy[s.name], c.run(s, p, job).P50)
			}
		})
	}
	for _, s := range shapes {
		goal := ""
		if s.name != plainName {
			goal = "≤ 1.10"
		}
		what := fmt.Sprintf("request/response p50, %s, %s", p.name, s.name)
		r.add(what+", quiet beside the next", "µs", "", quiet[s.name])
		r.add(what+", "+under(), "µs", "", busy[s.name])
		r.add(what+", "+under()+" / quiet", "×", goal, ratios(busy[s.name], quiet[s.name]))
	}
}

func (c *contest) latency(r *report, p placement, what string, job role, unit, goal string) {
	c.t.Helper()
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	for range flags.rounds {
		for _, s := range c.shapes {
			out := c.run(s, p, job)
			p50[s.name], p99[s.name] = append(p50[s.name], out.P50), append(p99[s.name], out.P99)
		}
	}
	for _, s := range c.shapes {
		r.addRounds(fmt.Sprintf("%s, %s, %s", what, p.name, s.name), unit, "", p50[s.name], p99[s.name])
	}
	for _, s := range c.shapes {
		if !strings.HasPrefix(s.name, hawserName) {
			continue
		}
		device := ""
		switch {
		case s.name == hawserName:
			r.add(fmt.Sprintf("%s, %s, %s - plain", what, p.name, s.name), unit, goal, differences(p50[s.name], p50[plainName]))
		case goal != "":
			device = "≤ 0.96"
		}
		r.add(fmt.Sprintf("%s, %s, %s / plain", what, p.name, s.name), "×", "", ratios(p50[s.name], p50[plainName]))
		r.add(fmt.Sprintf("%s, %s, %s / vxlan", what, p.name, s.name), "×", device, ratios(p50[s.name], p50["vxlan"]))
		r.add(fmt.Sprintf("%s, %s, %s / vxlan with nftables policy", what, p.name, s.name), "×", "", ratios(p50[s.name], p50["vxlan-nft"]))
	}
}

func (c *contest) stream(r *report, p placement) {
	c.t.Helper()
	const size = 1 << 30
	cpu := map[string][]float64{}
	for range flags.rounds {
		for _, s := range c.shapes {
			out := c.run(s, p, role{Mode: "stream", Bytes: size})
			cpu[s.name] = append(cpu[s.name], (out.CPU+out.Server)/size*1e9)
		}
	}
	for _, s := range c.shapes {
		r.add(fmt.Sprintf("CPU per GB, %s, %s", p.name, s.name), "s", "", cpu[s.name])
	}
	for _, s := range c.shapes {
		if strings.HasPrefix(s.name, hawserName) {
			r.add(fmt.Sprintf("CPU per GB, %s, %s / vxlan", p.name, s.name), "×", "≤ 1.05", ratios(cpu[s.name], cpu["vxlan"]))
			r.add(fmt.Sprintf("CPU per GB, %s, %s / vxlan with nftables policy", p.name, s.name), "×", "", ratios(cpu[s.name], cpu["vxlan-nft"]))
			r.add(fmt.Sprintf("CPU per GB, %s, %s / plain", p.name, s.name), "×", "", ratios(cpu[s.name], cpu[plainName]))
		}
	}
}
