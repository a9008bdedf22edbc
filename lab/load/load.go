// SPDX-License-Identifier: Apache-2.0

// Package load makes traffic that notices every loss: many short TCP
// connections, one long TCP stream whose bytes both ends check, and numbered
// datagrams that are echoed. Start reading at Run (the client) and Serve.
//
// The rates are bounded: the point is not how much gets through but that nothing
// is missing while something is being broken.
package load

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// First byte of a TCP connection: what it is for.
const (
	requestMode byte = 'R' // one message, echoed
	streamMode  byte = 'S' // numbered blocks in both directions until the client ends
)

const (
	requestSize = 64
	blockSize   = 16 << 10
	blockPause  = 10 * time.Millisecond
	datagram    = 32 // id 8, number 8, count at the server 8, padding 8
)

// Report is what a client saw. Times are milliseconds.
type Report struct {
	Seconds float64 `json:"seconds"`

	Connections int     `json:"connections"` // that were answered
	Refused     int     `json:"refused"`
	Reset       int     `json:"reset"`
	Timeouts    int     `json:"timeouts"` // no answer, or one later than MaxLatency
	Other       int     `json:"other_errors"`
	NotMade     int     `json:"not_made"` // as many as are allowed had no answer yet
	LatencyP50  float64 `json:"latency_p50_ms"`
	LatencyP99  float64 `json:"latency_p99_ms"`
	LatencyMax  float64 `json:"latency_max_ms"`

	UDPSent       uint64  `json:"udp_sent"`
	UDPReceived   uint64  `json:"udp_received"`
	UDPLost       uint64  `json:"udp_lost"`
	UDPLostThere  uint64  `json:"udp_lost_there"` // never reached the server
	UDPLostBack   uint64  `json:"udp_lost_back"`
	UDPDuplicates uint64  `json:"udp_duplicates"`
	UDPReordered  uint64  `json:"udp_reordered"`
	UDPMaxGap     float64 `json:"udp_max_gap_ms"` // longest time without an echo

	StreamBytesSent     uint64  `json:"stream_bytes_sent"`
	StreamBytesReceived uint64  `json:"stream_bytes_received"`
	StreamMaxStall      float64 `json:"stream_max_stall_ms"` // longest time without a byte
	StreamError         string  `json:"stream_error,omitempty"`

	// LastFailed is when the last request that failed began, Unix milliseconds;
	// 0: none failed.
	LastFailed int64 `json:"last_failed,omitempty"`

	Errors []string `json:"errors,omitempty"` // the first few, in words
}

// Verdict is nil when nothing was lost, refused, reset or late, and something
// was sent at all.
func (r Report) Verdict(cfg Config) error {
	var errs []error
	bad := func(n int, what string) {
		if n > 0 {
			errs = append(errs, fmt.Errorf("%d %s", n, what))
		}
	}
	bad(r.Refused, "connections refused")
	bad(r.NotMade, fmt.Sprintf("connections not made, because %d had no answer yet", maxInFlight))
	bad(r.Reset, "connections reset")
	bad(r.Timeouts, "connections timed out or late")
	bad(r.Other, "connections failed otherwise")
	bad(int(r.UDPLost), "datagrams lost")
	bad(int(r.UDPDuplicates), "datagrams twice")
	if r.StreamError != "" {
		errs = append(errs, fmt.Errorf("stream: %s", r.StreamError))
	}
	for what, stall := range map[string]float64{"stream": r.StreamMaxStall, "datagrams": r.UDPMaxGap} {
		if stall > milliseconds(cfg.MaxStall) {
			errs = append(errs, fmt.Errorf("%s stood still for %.0f ms", what, stall))
		}
	}
	if cfg.Connections > 0 && r.Connections == 0 || cfg.Datagrams > 0 && r.UDPReceived == 0 || cfg.Stream && r.StreamBytesReceived == 0 {
		errs = append(errs, errors.New("some of the load never got through"))
	}
	return errors.Join(errs...)
}

// counters collects a Report from several goroutines.
type counters struct {
	mu        sync.Mutex
	report    Report
	latencies []time.Duration
}

const maxErrors = 10

func (c *counters) fail(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.report.Errors) < maxErrors {
		c.report.Errors = append(c.report.Errors, fmt.Sprintf("%s: %v", what, err))
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		c.report.Refused++
	case isReset(err):
		c.report.Reset++
	case isTimeout(err):
		c.report.Timeouts++
	default:
		c.report.Other++
	}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout() || errors.Is(err, errLate)
}

var errLate = errors.New("answered late")

func (c *counters) finish(elapsed time.Duration) Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.report
	r.Seconds = elapsed.Seconds()
	slices.Sort(c.latencies)
	if n := len(c.latencies); n > 0 {
		r.LatencyP50 = milliseconds(c.latencies[n/2])
		r.LatencyP99 = milliseconds(c.latencies[n*99/100])
		r.LatencyMax = milliseconds(c.latencies[n-1])
	}
	return r
}

// milliseconds, to the microsecond.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

// stallClock measures the longest time between two marks, from the first on.
type stallClock struct {
	last  time.Time
	worst time.Duration
}

func (s *stallClock) mark() {
	now := time.Now()
	if !s.last.IsZero() {
		s.worst = max(s.worst, now.Sub(s.last))
	}
	s.last = now
}
