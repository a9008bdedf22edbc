// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// losses are all places known to lose packets, with their counts: to tell, when
// load was lost, where.
func (s *script) losses() map[string]uint64 {
	out := map[string]uint64{}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	for name, n := range s.world.nodes {
		r, err := n.ListDrops(ctx, &hawserv1.ListDropsRequest{})
		if err != nil {
			continue // it may be down on purpose
		}
		for _, d := range r.GetDrops() {
			if d.GetReason() != "forwarded" {
				out[fmt.Sprintf("%s %s %s: %s", name, d.GetProgram(), d.GetDirection(), d.GetReason())] = d.GetPackets()
			}
		}
	}
	raw, _ := os.ReadFile("/proc/net/softnet_stat") // without it one place less is known
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 {
			n, _ := strconv.ParseUint(f[1], 16, 64)
			out["kernel: a CPU's queue was full (all of this machine)"] += n
		}
	}
	for _, p := range s.world.lab.Clusters() {
		for _, n := range p.Members {
			s.kernelLosses(out, n.Name)
		}
	}
	for name := range s.loads {
		s.kernelLosses(out, s.loads[name].from)
		s.kernelLosses(out, s.loads[name].to)
	}
	s.kernelLosses(out, "fabric")
	return out
}

// kernelLosses adds what the kernel counts in a namespace: errors of protocols
// and drops of devices.
func (s *script) kernelLosses(out map[string]uint64, name string) {
	p, err := s.place(name)
	if err != nil {
		return
	}
	_ = nsthread.InNetns(p.netns, func() error {
		for _, file := range []string{"snmp", "netstat"} {
			counters(out, name, "/proc/thread-self/net/"+file)
		}
		raw, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			const receiveDrops, sendDrops = 4, 12
			if len(f) > sendDrops && strings.HasSuffix(f[0], ":") {
				a, _ := strconv.ParseUint(f[receiveDrops], 10, 64)
				b, _ := strconv.ParseUint(f[sendDrops], 10, 64)
				out[name+" device "+f[0]+" drops"] = a + b
			}
		}
		return err
	})
}

// counters reads /proc/net/snmp and netstat: a line of names, one of values.
func counters(out map[string]uint64, name, path string) {
	raw, _ := os.ReadFile(path)
	lines := strings.Split(string(raw), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := 1; j < min(len(names), len(values)); j++ {
			what := strings.ToLower(names[j])
			if !strings.Contains(what, "err") && !strings.Contains(what, "discard") && !strings.Contains(what, "drop") &&
				!strings.Contains(what, "noport") && !strings.Contains(what, "noroute") && !strings.Contains(what, "retrans") {
				continue
			}
			n, _ := strconv.ParseUint(values[j], 10, 64)
			out[name+" "+names[0]+names[j]] = n
		}
	}
}

// since is what more was lost than before.
func lossesSince(before, after map[string]uint64) string {
	out := ""
	for what, n := range after {
		if n > before[what] {
			out += fmt.Sprintf("  %s: %d\n", what, n-before[what])
		}
	}
	return out
}
