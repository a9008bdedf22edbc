// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/lab"
	"github.com/hawser-mesh/hawser/lab/load"
)

// loadPort is where `lab workload load-server` listens.
const loadPort = 7000

// loadRun is a load client that runs in a pod.
type loadRun struct {
	cmd         *exec.Cmd
	from, to    string
	stop        string            // file that ends it
	rate        int               // connections a second
	before      map[string]uint64 // losses
	out, stderr bytes.Buffer
}

func (l *loadRun) kill() {
	_ = l.cmd.Process.Kill() // gone already is as good
	_ = l.cmd.Wait()
}

// packets ends the name of a pod in whose network something runs that is not in its
// cgroup.
const packets = "@packets"

// leastConnections is how many new connections a second a load makes.
const leastConnections = 200

// cmdLoad is `load start NAME FROM TO [CONNECTIONS]`: 200 connections a second,
// or as many as said, one long stream and 1,000 numbered datagrams a second each
// way, from pod to pod or to a service; and `load stop`: all end, and nothing was
// lost, refused, reset or late. With a FROM that ends with @packets the sockets are
// none of the pod's cgroup: services are balanced packet by packet.
func cmdLoad(s *script, args []string) (string, error) {
	switch {
	case len(args) == 4 && args[0] == "start":
		return "", s.startLoad(args[1], args[2], args[3], leastConnections)
	case len(args) == 5 && args[0] == "start":
		rate, err := strconv.Atoi(args[4])
		if err != nil {
			return "", err
		}
		return "", s.startLoad(args[1], args[2], args[3], rate)
	case len(args) == 1 && args[0] == "stop":
		return s.stopLoads()
	}
	return "", usage("load start NAME FROM TO [CONNECTIONS] | load stop")
}

func (s *script) startLoad(name, from, to string, rate int) error {
	target, err := s.place(to)
	if err != nil {
		return err
	}
	dir := s.ts.MkAbs(".")
	run := &loadRun{from: from, to: to, rate: rate, stop: filepath.Join(dir, name+".stop")}
	ready := filepath.Join(dir, name+".ready")
	run.cmd = exec.CommandContext(context.Background(), s.bin.Hawser, "lab", "workload", "load-client",
		"--connections", strconv.Itoa(rate), "--max-latency", patience.String(), "--max-stall", patience.String(), "--stop-file", run.stop, "--ready-file", ready, netip.AddrPortFrom(target.addr, loadPort).String())
	run.cmd.Stdout, run.cmd.Stderr = &run.out, &run.stderr
	l, err := lab.Open(s.world.lab.Name())
	if err != nil {
		return err
	}
	if pod, past := strings.CutSuffix(from, packets); past {
		at, err := s.place(pod)
		if err != nil {
			return err
		}
		run.from = pod
		if err := nsthread.InNetns(at.netns, run.cmd.Start); err != nil {
			return err
		}
	} else if err := l.Start(from, run.cmd); err != nil {
		return err
	}
	s.loads[name] = run
	run.before = s.losses()
	return within(callTimeout, func() error {
		_, err := os.Stat(ready)
		return err
	})
}

func (s *script) stopLoads() (string, error) {
	if len(s.loads) == 0 {
		return "", fmt.Errorf("no load runs")
	}
	after := s.losses()
	before := s.loads[slices.Sorted(maps.Keys(s.loads))[0]].before
	for _, run := range s.loads {
		for what, n := range run.before {
			if _, ok := before[what]; !ok {
				before[what] = n
			}
		}
	}
	names := slices.Sorted(maps.Keys(s.loads))
	for _, name := range names {
		if err := os.WriteFile(s.loads[name].stop, nil, 0o600); err != nil {
			return "", err
		}
	}
	out, bad, lost := "", "", false
	for _, name := range names {
		run := s.loads[name]
		watchdog := time.AfterFunc(callTimeout+patience, func() { _ = run.cmd.Process.Kill() })
		waitErr := run.cmd.Wait()
		watchdog.Stop()
		delete(s.loads, name)
		var r load.Report
		if err := json.Unmarshal(run.out.Bytes(), &r); err != nil {
			return out, fmt.Errorf("load %s: %w: %s", name, err, run.stderr.String())
		}
		s.count("connections", uint64(r.Connections))
		s.count("udp", r.UDPSent)
		s.count("lost", r.UDPLost+uint64(r.Refused+r.Reset+r.Timeouts+r.Other+r.NotMade))
		s.count("stream KiB", (r.StreamBytesSent+r.StreamBytesReceived)>>10)
		out += loadLine(name, r)
		lost = lost || lostSome(r, run.rate)
		if waitErr != nil {
			bad += fmt.Sprintf("load %s: %s\n%s\n", name, run.stderr.String(), run.out.String())
		}
		// With this much patience only a counter tells a lost SYN from a machine
		// that is busy.
		if what := run.from + " TcpExt:TCPSynRetrans"; after[what] > run.before[what] {
			bad += fmt.Sprintf("load %s: %d SYNs were sent again\n", name, after[what]-run.before[what])
			lost = true
		}
		// A rate that was never reached proves nothing.
		const least = 0.95
		if float64(r.Connections) < least*float64(run.rate)*(r.Seconds-1.5) || float64(r.UDPSent) < least*1000*(r.Seconds-1.5) {
			bad += fmt.Sprintf("load %s was too little: %d connections and %d datagrams in %.1f s\n", name, r.Connections, r.UDPSent, r.Seconds)
		}
	}
	if bad != "" && !lost {
		s.undecided = "the load was late or too little, and nothing of it was lost"
	}
	if bad != "" {
		return out, fmt.Errorf("%s%sLosses counted meanwhile:\n%s", out, bad, lossesSince(before, after))
	}
	return out, nil
}

// loadLine is what a load was, in words.
func loadLine(name string, r load.Report) string {
	return fmt.Sprintf("%s: %.1f s, %d connections (p99 %.1f ms, max %.1f ms), %d datagrams (%d lost, longest gap %.0f ms), stream %d KiB (longest stall %.0f ms)\n",
		name, r.Seconds, r.Connections, r.LatencyP99, r.LatencyMax, r.UDPSent, r.UDPLost, r.UDPMaxGap,
		(r.StreamBytesSent+r.StreamBytesReceived)>>10, r.StreamMaxStall)
}

// lostSome reports whether something of a load did not arrive, as opposed to late.
func lostSome(r load.Report, rate int) bool {
	return r.UDPLost+r.UDPDuplicates > 0 || r.Refused+r.Reset+r.Other > 0 || r.StreamError != "" ||
		r.Connections == 0 && rate > 0 || r.UDPReceived == 0 || r.StreamBytesReceived == 0
}
