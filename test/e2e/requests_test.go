// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/lab"
	"github.com/hawser-mesh/hawser/lab/load"
)

// requestRate is how many requests a second `requests` makes, each on a new
// connection.
const requestRate = 500

// requests are made in the background, to a service while something breaks.
type requests struct {
	cmd         *exec.Cmd
	from        string
	before      uint64    // SYNs that were sent again in its namespace
	stop        string    // file that ends it
	fault       time.Time // when something was broken; zero: nothing was
	out, stderr bytes.Buffer
}

// cmdRequests is `requests start FROM ADDRESS tcp/PORT [LATE]`: 500 requests a
// second, of which those that take longer than LATE have failed, too;
// `requests fault`: now something is broken; `requests stop`: none has failed;
// `requests stop TIME`: some have failed, and none of those that began TIME after
// the fault or later; `requests stop slow`: none has failed, of as many as the
// machine had time for.
func cmdRequests(s *script, args []string) (string, error) {
	switch {
	case (len(args) == 4 || len(args) == 5) && args[0] == "start" && s.requests == nil:
		return "", s.startRequests(args[1:])
	case len(args) == 1 && args[0] == "fault" && s.requests != nil:
		s.requests.fault = time.Now()
		return "", nil
	case len(args) > 0 && len(args) < 3 && args[0] == "stop" && s.requests != nil:
		var within time.Duration
		var err error
		if len(args) == 2 && args[1] == "slow" {
			return s.stopRequests(0, 0)
		}
		if len(args) == 2 {
			if within, err = time.ParseDuration(args[1]); err != nil {
				return "", err
			}
		}
		// A rate that was never reached proves nothing.
		const least = 0.9
		return s.stopRequests(within, least)
	}
	return "", usage("requests start FROM ADDRESS tcp/PORT [LATE] | requests fault | requests stop [TIME|slow]")
}

func (s *script) startRequests(args []string) error {
	late := patience.String()
	if len(args) > 3 {
		late = args[3]
	}
	p, err := s.newProbe(args[:3])
	if err != nil {
		return err
	}
	dir := s.ts.MkAbs(".")
	run := &requests{from: args[0], before: s.resent(args[0]), stop: filepath.Join(dir, "requests.stop")}
	ready := filepath.Join(dir, "requests.ready")
	_ = os.Remove(run.stop) // of an earlier run
	_ = os.Remove(ready)
	run.cmd = exec.CommandContext(context.Background(), s.bin.Hawser, "lab", "workload", "load-client",
		"--connections", strconv.Itoa(requestRate), "--datagrams", "0", "--stream=false", "--max-latency", late,
		"--stop-file", run.stop, "--ready-file", ready, netip.AddrPortFrom(p.to.addr, p.port).String())
	run.cmd.Stdout, run.cmd.Stderr = &run.out, &run.stderr
	l, err := lab.Open(s.world.lab.Name())
	if err != nil {
		return err
	}
	if err := l.Start(args[0], run.cmd); err != nil {
		return err
	}
	s.requests = run
	s.ts.Defer(func() {
		if s.requests == run {
			_ = run.cmd.Process.Kill() // gone already is as good
			_ = run.cmd.Wait()
			s.requests = nil
		}
	})
	return within(callTimeout, func() error {
		_, err := os.Stat(ready)
		return err
	})
}

// stopRequests ends the requests; least is which part of the rate must have been
// reached.
func (s *script) stopRequests(limit time.Duration, least float64) (string, error) {
	run := s.requests
	s.requests = nil
	if err := os.WriteFile(run.stop, nil, 0o600); err != nil {
		return "", err
	}
	watchdog := time.AfterFunc(2*callTimeout, func() { _ = run.cmd.Process.Kill() })
	_ = run.cmd.Wait() // 1 says that something failed
	watchdog.Stop()
	var r load.Report
	if err := json.Unmarshal(run.out.Bytes(), &r); err != nil {
		return "", fmt.Errorf("requests: %w: %s", err, run.stderr.String())
	}
	failed := r.Refused + r.Reset + r.Timeouts + r.Other
	if least > 0 { // else the machine may have been too slow
		failed += r.NotMade
	}
	s.count("requests", uint64(r.Connections+failed))
	s.count("failed", uint64(failed))
	s.count("reset", uint64(r.Reset))
	out := fmt.Sprintf("%.1f s, %d requests answered (p99 %.1f ms), %d not made, %d failed, of them %d reset", r.Seconds, r.Connections, r.LatencyP99, r.NotMade, failed, r.Reset)
	var last time.Duration
	if failed > 0 && !run.fault.IsZero() {
		last = time.UnixMilli(r.LastFailed).Sub(run.fault)
		out += fmt.Sprintf("; the last that failed began %d ms after the fault", last.Milliseconds())
		s.counts["last failed after ms"] = max(s.counts["last failed after ms"], uint64(max(0, last.Milliseconds())))
	}
	out += "\n"
	s.counts["requests/s"] = uint64(float64(r.Connections+failed) / r.Seconds)
	var err error
	few := float64(r.Connections+failed) < least*requestRate*(r.Seconds-1.5)
	switch {
	case few:
		err = fmt.Errorf("%stoo few requests\n%s", out, run.out.String())
	case limit == 0 && failed > 0:
		err = fmt.Errorf("%s%s", out, run.out.String())
	case limit > 0 && failed == 0:
		return out, errors.New(out + "nothing failed: did the fault do anything?")
	case last > limit && limit > 0:
		err = fmt.Errorf("%swant none that began %s after the fault\n%s", out, limit, run.out.String())
	}
	if err != nil && (few || onlyLate(r) && s.resent(run.from) == run.before) {
		s.undecided = "requests were late or too few"
	}
	return out, err
}

// onlyLate reports whether every request that was made had its answer in the end.
func onlyLate(r load.Report) bool {
	for _, e := range r.Errors { // the first few
		if !strings.Contains(e, "answered late") {
			return false
		}
	}
	return r.Refused+r.Reset+r.Other == 0
}

// resent counts the SYNs that were sent again in a place's namespace.
func (s *script) resent(from string) uint64 {
	out := map[string]uint64{}
	s.kernelLosses(out, from)
	return out[from+" TcpExt:TCPSynRetrans"]
}
