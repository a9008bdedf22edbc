// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// cmdServe is `serve PLACE tcp/PORT`: `lab workload echo` at a place that is no
// pod, until the script ends.
func cmdServe(s *script, args []string) (string, error) {
	if len(args) != 2 {
		return "", usage("serve PLACE tcp/PORT")
	}
	_, port, _ := strings.Cut(args[1], "/")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, s.bin.Hawser, s.world.flags([]string{
		"lab", "exec", args[0], "--", s.bin.Hawser, "lab", "workload", "echo", "--node-name", args[0], "--listen", ":" + port,
	})...)
	start := cmd.Start
	if p, ok := s.externals[args[0]]; ok {
		cmd = exec.CommandContext(ctx, s.bin.Hawser, "lab", "workload", "echo", "--node-name", args[0], "--listen", ":"+port)
		start = func() error { return nsthread.InNetns(p.netns, cmd.Start) }
	}
	if err := start(); err != nil {
		cancel()
		return "", err
	}
	s.ts.Defer(func() { cancel(); _ = cmd.Wait() })
	return "", nil
}

// cmdSeenAs is `seen-as FROM TO tcp/PORT PLACE`: who is asked sees the question
// come from PLACE.
func cmdSeenAs(s *script, args []string) (string, error) {
	if len(args) != 4 {
		return "", usage("seen-as FROM TO tcp/PORT PLACE")
	}
	p, err := s.newProbe(args[:3])
	if err != nil {
		return "", err
	}
	want, err := s.place(args[3])
	if err != nil {
		return "", err
	}
	var answer string
	err = nsthread.InNetns(p.from.netns, func() error {
		answer, err = p.fetch()
		return err
	})
	if err != nil {
		return "", no("%v", err)
	}
	client, _ := strings.CutSuffix(netip.AddrPortFrom(want.addr, 0).String(), "0")
	if !strings.Contains(answer, "client="+client) {
		return "", no("seen as %s, want %s", strings.TrimSpace(answer), want.addr)
	}
	return answer, nil
}
