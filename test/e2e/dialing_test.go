// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"io"
	"net/netip"
	"os/exec"
	"strings"
)

// dialing is a connection that a process of a pod holds open.
type dialing struct {
	lines <-chan string // what it prints
}

// cmdDialing is `dialing start FROM ADDRESS tcp/PORT`: a process of the pod or
// node connects, and sees that address as its peer; `dialing end HOW`: the
// connection has ended, so (aborted, reset, closed), or is open when it was
// waited for.
func cmdDialing(s *script, args []string) (string, error) {
	switch {
	case len(args) == 4 && args[0] == "start":
		return s.startDialing(args[1:])
	case len(args) == 2 && args[0] == "end" && s.dialing != nil:
		for line := range s.dialing.lines {
			if how, ok := strings.CutPrefix(line, "end="); ok {
				if how != args[1] {
					return "", no("the connection ended: %s", how)
				}
				return line + "\n", nil
			}
		}
		return "", no("the process that held the connection is gone")
	}
	return "", usage("dialing start FROM ADDRESS tcp/PORT | dialing end HOW")
}

func (s *script) startDialing(args []string) (string, error) {
	p, err := s.newProbe(args)
	if err != nil {
		return "", err
	}
	to := netip.AddrPortFrom(p.to.addr, p.port).String()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, s.bin.Hawser, s.world.flags([]string{
		"lab", "exec", args[0], "--", s.bin.Hawser, "lab", "workload", "dial", p.protocol, to, "--hold", "15s",
	})...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return "", err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		cancel()
		return "", err
	}
	lines := make(chan string, 2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for sc := bufio.NewScanner(io.LimitReader(out, 1<<16)); sc.Scan(); {
			select {
			case lines <- sc.Text():
			case <-ctx.Done():
			}
		}
		_ = cmd.Wait()
	}()
	s.ts.Defer(func() { cancel(); <-done })
	s.dialing = &dialing{lines: lines}
	first, ok := <-lines
	if !ok {
		return "", no("no connection to %s: %s", to, strings.TrimSpace(stderr.String()))
	}
	if first != "peer="+to {
		return "", no("%s, asked for %s", first, to)
	}
	return first + "\n", nil
}
