// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"strings"
)

// The rows of the datapath's table, in its order.

// Series that stand below others.
const (
	netOf     = "//net of the empty program"
	multiples = "//in multiples of two hash lookups"
)

func datapathRows() (out []datapathRow) {
	for _, rows := range [][]datapathRow{hotRows(), trafficRows(), churnRows(), pathRows(), serviceRows(), lifeRows()} {
		out = append(out, rows...)
	}
	return out
}

// hot is a series of repeated test runs, with few addresses and with many.
func hot(name string, v6 bool) (few, many string) {
	return fmt.Sprintf("hotpath|%s (%s)", name, mapFill{10_000, 100, v6}), fmt.Sprintf("hotpath|%s (%s)", name, mapFill{200_000, 10_000, v6})
}

// hotPair shows both; most is the limit of both, 0 if there is none.
func hotPair(what, cilium, goal, name string, v6 bool, most float64) datapathRow {
	few, many := hot(name, v6)
	r := datapathRow{what: what, cilium: cilium, goal: goal, test: "HotPath",
		measured: fmt.Sprintf("{%s}; {%s} ns ({%s%s}; {%s%s} ×)", few, many, few, multiples, many, multiples)}
	if most != 0 {
		r.limits = []limit{{few, most}, {many, most}}
	}
	return r
}

func fragmentRow(what string, v6 bool) datapathRow {
	first, _ := hot("pod → remote pod, first fragment", v6)
	later, _ := hot("pod → remote pod, later fragment", v6)
	return datapathRow{what: what, cilium: "–", goal: "–", test: "HotPath",
		measured: fmt.Sprintf("{%s}; {%s} ns ({%s%s}; {%s%s} ×)", first, later, first, multiples, later, multiples)}
}

func hotRows() []datapathRow {
	const (
		remote, service = "pod → remote pod, up to the tunnel key", "pod → service → remote pod, up to the tunnel key"
		arriving, slow  = "from the tunnel to the pod, with stripping", "pod → remote pod, judged anew each time"
		fresh           = "pod → remote pod, new flow"
	)
	_, random := hot("pod → remote pod, 200000 flows at random", false)
	return []datapathRow{
		hotPair("pod → remote pod, established, up to the tunnel key", "556; 626 ns", "≤ 150 ns", remote, false, 150),
		{what: "— 200,000 flows at random", cilium: "–", goal: "≤ 450 ns", test: "HotPath",
			measured: fmt.Sprintf("{%s} ns ({%s%s} ×)", random, random, multiples), limits: []limit{{random, 450}}},
		hotPair("— judged anew for each packet", "–", "≤ 300 ns", slow, false, 300),
		hotPair("pod → service → remote pod, up to the tunnel key", "839; 936 ns", "≤ 200 ns", service, false, 200),
		hotPair("from the tunnel to the pod, all of it", "588 ns", "≤ 180 ns", arriving, false, 180),
		hotPair("new flow (first packet, into a full map of half-open flows)", "–", "–", fresh, false, 0),
		fragmentRow("first fragment; each later one", false),
		hotPair("IPv6: pod → remote pod, established, up to the tunnel key", "–", "–", remote, true, 0),
		hotPair("IPv6: — judged anew for each packet", "–", "–", slow, true, 0),
		hotPair("IPv6: pod → service → remote pod, up to the tunnel key", "–", "–", service, true, 0),
		hotPair("IPv6: from the tunnel to the pod, all of it", "–", "–", arriving, true, 0),
		hotPair("IPv6: new flow (first packet)", "–", "–", fresh, true, 0),
		fragmentRow("IPv6: first fragment; each later one", true),
	}
}

// Names of programWays that the table shows.
const (
	outTCP     = "programs|from_pod: pod → remote pod, established, header written"
	outService = "programs|from_pod: pod → service → remote pod, header written"
	outUDP     = "programs|from_pod: UDP, pod → remote pod, header written"
	inTCP      = "programs|from_overlay: request in, header stripped"
	inUDP      = "programs|from_overlay: UDP, request in, header stripped"
	sockAgain  = "connect|connect() to a service, UDP, the same socket again"
	sockUDP    = "connect|connect() to a service, UDP, new socket"
	sockTCP    = "connect|connect() to a service, TCP, new socket"
	noneUDP    = "connect|connect() to no service, UDP, new socket"
	noneTCP    = "connect|connect() to no service, TCP, new socket"
)

// withMultiples shows series, and below each its multiples of two lookups.
func withMultiples(sub string, series ...string) string {
	var cells []string
	for _, s := range series {
		cells = append(cells, fmt.Sprintf("{%s%s} ns ({%s%s} ×)", s, sub, s, multiples))
	}
	return strings.Join(cells, "; ")
}

func trafficRows() []datapathRow {
	const connectGoal, connectMost = "≤ 150 ns", 150
	return []datapathRow{
		{what: "pod → remote pod, headers written in eBPF, real traffic", cilium: "–", goal: "≤ 250 ns", test: "Programs",
			measured: withMultiples(netOf, outTCP), limits: []limit{{outTCP + netOf, 250}}},
		{what: "— to a service", cilium: "–", goal: "–", test: "Programs", measured: withMultiples(netOf, outService)},
		{what: "— UDP", cilium: "–", goal: "–", test: "Programs", measured: withMultiples(netOf, outUDP)},
		{what: "from the tunnel to the pod, real traffic: TCP; UDP", cilium: "–", goal: "–", test: "Programs", measured: withMultiples(netOf, inTCP, inUDP)},
		{what: "connect() to a service at the socket, the same UDP socket again", cilium: "242 ns", goal: connectGoal, test: "Connect",
			measured: withMultiples("", sockAgain), limits: []limit{{sockAgain, connectMost}}},
		{what: "— new socket, UDP; TCP", cilium: "242 ns", goal: connectGoal, test: "Connect",
			measured: withMultiples("", sockUDP, sockTCP), limits: []limit{{sockUDP, connectMost}, {sockTCP, connectMost}}},
		{what: "— to no service, UDP; TCP", cilium: "125 ns", goal: "–", test: "Connect", measured: withMultiples("", noneUDP, noneTCP)},
	}
}

// ratioRow shows ratios that are all to be at most 1.10.
func ratioRow(what, test string, groups ...[]string) datapathRow {
	const most = 1.10
	r := datapathRow{what: what, cilium: "–", goal: "≤ 1.10 ×", test: test}
	var shown []string
	for _, g := range groups {
		var cells []string
		for _, s := range g {
			cells = append(cells, "{"+s+"}")
			r.limits = append(r.limits, limit{s, most})
		}
		shown = append(shown, strings.Join(cells, ", "))
	}
	r.measured = strings.Join(shown, "; ") + " ×"
	return r
}

// churnRows are established paths while addresses and policies of others change.
func churnRows() []datapathRow {
	var paths [][]string
	for _, name := range []string{"pod → remote pod, up to the tunnel key", "pod → service → remote pod, up to the tunnel key", "from the tunnel to the pod, with stripping"} {
		few, many := hot(fmt.Sprintf("%s, %s / quiet", name, under()), false)
		paths = append(paths, []string{few, many})
	}
	_, random := hot(fmt.Sprintf("pod → remote pod, 200000 flows at random, %s / quiet", under()), false)
	last := len(paths) - 1
	paths[last] = append(paths[last], random)
	busy := "//net, " + under() + " / quiet"
	sock := "//" + under() + " / quiet"
	var rr []string
	for _, p := range placements() {
		for _, s := range []string{hawserName, plainName} {
			rr = append(rr, fmt.Sprintf("paths|request/response p50, %s, %s, %s / quiet", p.name, s, under()))
		}
	}
	latency := ratioRow("— request/response p50, one CPU; two CPUs (plain routing beside it)", "Paths", []string{rr[0]}, []string{rr[2]})
	latency.measured = fmt.Sprintf("{%s} ({%s}); {%s} ({%s}) ×", rr[0], rr[1], rr[2], rr[3])
	return []datapathRow{
		ratioRow(under()+" elsewhere, by quiet: the four established paths of IPv4", "HotPath", paths...),
		ratioRow("— headers written in eBPF, real traffic: to a pod; to a service; UDP", "Programs", []string{outTCP + busy}, []string{outService + busy}, []string{outUDP + busy}),
		ratioRow("— from the tunnel to the pod, real traffic: TCP; UDP", "Programs", []string{inTCP + busy}, []string{inUDP + busy}),
		ratioRow("— connect() to a service: the same UDP socket again; new socket, UDP; TCP", "Connect", []string{sockAgain + sock}, []string{sockUDP + sock}, []string{sockTCP + sock}),
		latency,
	}
}

// pathRows are real connections between pods on two nodes.
func pathRows() (out []datapathRow) {
	cells := func(what string) string {
		return fmt.Sprintf("{paths|%[1]s, hawser}, {paths|%[1]s, plain}, {paths|%[1]s, vxlan}, {paths|%[1]s, vxlan-nft}", what)
	}
	const four = ": Hawser, plain routing, kernel VXLAN, VXLAN with nftables policy"
	for _, p := range placements() {
		rr := "request/response p50, " + p.name
		extra := fmt.Sprintf("paths|%s, hawser - plain", rr)
		out = append(out, datapathRow{what: rr + four, cilium: "–", goal: "≤ plain + 1 µs", test: "Paths",
			measured: cells(rr) + fmt.Sprintf(" µs (less plain: {%s} µs; {paths|%s, hawser / vxlan} × VXLAN)", extra, rr), limits: []limit{{extra, 1}}})
		netdev := fmt.Sprintf("paths|%s, hawser-netdev / vxlan", rr)
		out = append(out, datapathRow{what: "— Hawser through the kernel's VXLAN device", cilium: "–", goal: "≤ 0.96 × VXLAN", test: "Paths", optional: true,
			measured: fmt.Sprintf("{paths|%s, hawser-netdev} µs ({%s} ×)", rr, netdev), limits: []limit{{netdev, 0.96}}})
	}
	for _, p := range placements() {
		crr := "new connection p50, " + p.name
		out = append(out, datapathRow{what: crr + ", the same four", cilium: "–", goal: "–", test: "Paths",
			measured: cells(crr) + fmt.Sprintf(" µs ({paths|%[1]s, hawser / plain} × plain, {paths|%[1]s, hawser / vxlan} × VXLAN)", crr)})
	}
	for _, p := range placements() {
		cpu := "CPU per GB, " + p.name
		out = append(out, datapathRow{what: "CPU seconds per GB, " + p.name + ", the same four", cilium: "–", goal: "≤ 1.05 × VXLAN", test: "Paths",
			measured: cells(cpu) + fmt.Sprintf(" s ({paths|%s, hawser / vxlan} ×)", cpu), limits: []limit{{fmt.Sprintf("paths|%s, hawser / vxlan", cpu), 1.05}}})
	}
	return out
}

func serviceRows() (out []datapathRow) {
	for _, s := range []struct{ shape, name string }{
		{hawserName, "Hawser, per packet, with policy"}, {"nft", "nftables verdict map over kernel VXLAN"}, {"iptables", "iptables over kernel VXLAN"},
	} {
		r := datapathRow{what: "new connection to a service among 10, 1,000, 10,000: " + s.name, cilium: "–", goal: "–", test: "Services",
			measured: strings.ReplaceAll("{services|new connection p50, 10 services, S}, {services|new connection p50, 1000 services, S}, {services|new connection p50, 10000 services, S} µs (10,000 / 10: {services|10,000 services / 10 services, S} ×)", "S}", s.shape+"}")}
		if s.shape == hawserName {
			r.goal = "flat within 5 %, below nftables, ≤ iptables at 10"
			r.measured = strings.TrimSuffix(r.measured, ")") + "; {services|10 services, hawser / nftables}, {services|1000 services, hawser / nftables}, {services|10000 services, hawser / nftables} × nftables; {services|10 services, hawser / iptables} × iptables at 10)"
			r.limits = []limit{{"services|10,000 services / 10 services, hawser", 1.05}, {"services|10 services, hawser / nftables", 1},
				{"services|1000 services, hawser / nftables", 1}, {"services|10000 services, hawser / nftables", 1}, {"services|10 services, hawser / iptables", 1}}
		}
		out = append(out, r)
	}
	return out
}

// lifeRows are starts, and policy on its way into the kernel.
func lifeRows() []datapathRow {
	const engine = "policy-engine|1000 rules × 10000 identities (20 per rule), 20001 entries: first resolution"
	const known, fresh = "cni|CNI ADD to first allowed packet, labels known", "cni|CNI ADD to first allowed packet, labels new"
	const full, small, adopt = "start|load all programs, full maps", "start|load all programs, small maps", "start|adopt all programs, full maps"
	const ready, first, again = "start|agent start to ready, cold", "start|agent start to the first connection between pods, cold", "start|agent start to ready, adopting"
	const resident, kernel = "start|RSS of agent, ", "start|maps and programs of the agent in the kernel, "
	const heap, comes = engine + "//heap afterwards, identities included", engine + "//one identity comes and goes"
	const rule, flips = "policy-kernel|one rule more, until the kernel has it for 1000 endpoints", "policy-kernel|policy change → verdict flips, 1,000 changes/s|p99"
	return []datapathRow{
		{what: "CNI ADD → first allowed packet, p50: labels known; new", cilium: "–", goal: "< 15 ms", test: "CNI", measured: "{" + known + "}; {" + fresh + "} ms", limits: []limit{{known, 15}, {fresh, 15}}},
		{what: "load of all programs: full maps; small; adopting", cilium: "0.5–0.9 s and 9–25 s to compile", goal: "< 1 s", test: "Start", measured: "{" + full + "}; {" + small + "}; {" + adopt + "} s", limits: []limit{{full, 1}, {small, 1}, {adopt, 1}}},
		{what: "agent process, cold: start → ready → first connection between pods: full maps; small", cilium: "–", goal: "< 1 s", test: "Start",
			measured: "{" + ready + ", full maps} → {" + first + ", full maps}; {" + ready + "} → {" + first + "} s ({" + ready + ", full maps, CPU}; {" + ready + ", CPU} s of CPU)",
			limits:   []limit{{first + ", full maps", 1}, {first, 1}}},
		{what: "— adopting what runs: start → ready, full maps; small", cilium: "–", goal: "< 1 s", test: "Start", measured: "{" + again + ", full maps}; {" + again + "} s", limits: []limit{{again + ", full maps", 1}, {again, 1}}},
		{what: "memory of the agent, resident + in the kernel (maps, programs), idle: full maps; small", cilium: "–", goal: "–", test: "Start",
			measured: "{" + resident + "idle, full maps} + {" + kernel + "idle, full maps}; {" + resident + "idle} + {" + kernel + "idle} MiB"},
		{what: "— with 1,000 identities and 10,000 addresses more, started with them", cilium: "–", goal: "–", test: "Start",
			measured: "{" + resident + "restarted with them, full maps} + {" + kernel + "restarted with them, full maps}; {" + resident + "restarted with them} + {" + kernel + "restarted with them} MiB"},
		{what: "1,000 rules × 10,000 identities (20 of them to a rule), first resolution", cilium: "317 ms", goal: "< 60 ms, < 200 MiB", test: "PolicyEngine", measured: "{" + engine + "} ms, {" + heap + "} MiB", limits: []limit{{engine, 60}, {heap, 200}}},
		{what: "— one identity comes and goes", cilium: "1.5 ms", goal: "< 50 µs", test: "PolicyEngine", measured: "{" + comes + "} µs", limits: []limit{{comes, 50}}},
		{what: "one rule more, in the kernel for 1,000 endpoints", cilium: "71 ms (datapath faked)", goal: "< 50 ms", test: "PolicyKernel", measured: "{" + rule + "} ms", limits: []limit{{rule, 50}}},
		{what: "policy change → verdict flips, 1,000 changes/s", cilium: "–", goal: "p99 < 20 ms", test: "PolicyKernel", measured: "p99 {" + flips + "} ms", limits: []limit{{flips, 20}}},
	}
}
