// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"net/netip"
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
			c.servers[s.name+p.name] = startServer(t, s.server, p.serverCPU, netip.AddrPortFrom(s.addr, p.port))
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
func tunnelShape(t *testing.T, letter, name, way string) shape {
	t.Helper()
	spec := lab.NewSpec(labName(letter), 1, 2)
	spec.Agent = map[string]string{"tunnel-datapath": way}
	s, _ := hawserShapeOf(t, spec)
	s.name = name
	return s
}

// TestPerfPaths compares latency, new connections and CPU time per byte, pod to
// pod on another node: Hawser with headers made in eBPF and by the kernel's device
// (hawser-netdev), plain routing, kernel VXLAN, the same with nftables.
func TestPerfPaths(t *testing.T) {
	r := newReport(t, "paths", "TCP from a pod to a pod on another node, same shape of devices; Hawser with conntrack and policy, VXLAN with an nftables policy of the same meaning, the others without")
	hawser := tunnelShape(t, "p", "hawser", agent.TunnelEBPF)
	netdev := tunnelShape(t, "n", "hawser-netdev", agent.TunnelNetdev)
	filtered := kernelShape(t, "vxlan-nft", true)
	filter(t, filtered)
	c := newContest(t, hawser, netdev, kernelShape(t, "plain", false), kernelShape(t, "vxlan", true), filtered)
	for _, p := range placements() {
		c.latency(r, p, "request/response p50", role{Mode: "rr", Millis: 700}, "µs", "eBPF headers ≤ plain + 1 µs")
	}
	for _, p := range placements() {
		c.latency(r, p, "new connection p50", role{Mode: "crr", Count: 1500}, "µs", "")
	}
	for _, p := range placements() {
		c.stream(r, p)
	}
	r.finish(t)
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
	r.add(fmt.Sprintf("%s, %s, hawser - plain", what, p.name), unit, goal, differences(p50["hawser"], p50["plain"]))
	netdevGoal := ""
	if goal != "" {
		netdevGoal = "≤ 0.96"
	}
	r.add(fmt.Sprintf("%s, %s, hawser-netdev / vxlan", what, p.name), "×", netdevGoal, ratios(p50["hawser-netdev"], p50["vxlan"]))
	r.add(fmt.Sprintf("%s, %s, hawser / plain", what, p.name), "×", "", ratios(p50["hawser"], p50["plain"]))
	r.add(fmt.Sprintf("%s, %s, hawser / vxlan", what, p.name), "×", "", ratios(p50["hawser"], p50["vxlan"]))
	r.add(fmt.Sprintf("%s, %s, hawser / vxlan with nftables policy", what, p.name), "×", "", ratios(p50["hawser"], p50["vxlan-nft"]))
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
	r.add(fmt.Sprintf("CPU per GB, %s, hawser / vxlan", p.name), "×", "≤ 1.05", ratios(cpu["hawser"], cpu["vxlan"]))
	r.add(fmt.Sprintf("CPU per GB, %s, hawser-netdev / vxlan", p.name), "×", "≤ 1.05", ratios(cpu["hawser-netdev"], cpu["vxlan"]))
	r.add(fmt.Sprintf("CPU per GB, %s, hawser / vxlan with nftables policy", p.name), "×", "", ratios(cpu["hawser"], cpu["vxlan-nft"]))
	r.add(fmt.Sprintf("CPU per GB, %s, hawser / plain", p.name), "×", "", ratios(cpu["hawser"], cpu["plain"]))
}
