// SPDX-License-Identifier: Apache-2.0

// Package metrics turns what a program's API says into Prometheus metrics, and
// serves them with the program's health.
//
// Start with Def, which documents a metric, and Handler. Each program has one
// table of Defs and one function that reads its state at a scrape and emits
// samples by name: agent/metrics.go and clustermesh/apiserver/metrics.go. What no
// API tells, how long things took and how often, is counted by the Timers and
// Tallies of timers.go. rules.go reads the metrics' names out of dashboards and
// alert rules.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
)

// Kind is what a metric's value does.
type Kind string

// Kinds.
const (
	Counter   Kind = "counter" // grows; begins anew with its source
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram" // of seconds; a Timer has it
)

// Def documents a metric.
type Def struct {
	Name   string
	Help   string
	Kind   Kind
	Labels []string
}

// Emit gives one sample of a metric that is in the table, with a value for each
// of its labels. Anything else is a programmer's mistake and panics.
type Emit func(name string, value float64, labels ...string)

// Source reads the state of the program at a scrape. What it could not read it
// leaves out and returns as an error; the rest is served nevertheless.
type Source func(ctx context.Context, emit Emit) error

const (
	scrapeTimeout = 10 * time.Second
	headerTimeout = 5 * time.Second
)

// collector is a prometheus.Collector over a table and its source.
type collector struct {
	descs  map[string]*prometheus.Desc
	kinds  map[string]prometheus.ValueType
	source Source
	kept   []Kept
	log    *slog.Logger
}

// NewCollector reads source at each scrape, and kept, whose metrics the source
// does not emit.
func NewCollector(defs []Def, source Source, log *slog.Logger, kept ...Kept) prometheus.Collector {
	c := &collector{descs: map[string]*prometheus.Desc{}, kinds: map[string]prometheus.ValueType{}, source: source, kept: kept, log: log}
	elsewhere := map[string]bool{}
	for _, k := range kept {
		elsewhere[k.name()] = true
	}
	for _, d := range defs {
		if elsewhere[d.Name] {
			continue
		}
		c.descs[d.Name] = prometheus.NewDesc(d.Name, d.Help, d.Labels, nil)
		c.kinds[d.Name] = prometheus.GaugeValue
		if d.Kind == Counter {
			c.kinds[d.Name] = prometheus.CounterValue
		}
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
	for _, k := range c.kept {
		k.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	err := c.source(ctx, func(name string, value float64, labels ...string) {
		d, ok := c.descs[name]
		if !ok {
			panic("metric " + name + " is not in the table")
		}
		ch <- prometheus.MustNewConstMetric(d, c.kinds[name], value, labels...)
	})
	if err != nil {
		c.log.Warn("some metrics are missing", "error", err)
	}
	for _, k := range c.kept {
		k.Collect(ch)
	}
}

// registry has a program's metrics beside those of the process and of Go.
func registry(c prometheus.Collector) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// Text is what Handler's /metrics says, in the text format of Prometheus.
func Text(c prometheus.Collector) (string, error) {
	families, err := registry(c).Gather()
	if err != nil && len(families) == 0 {
		return "", fmt.Errorf("gather metrics: %w", err)
	}
	var b strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return "", fmt.Errorf("write metric %s: %w", f.GetName(), err)
		}
	}
	return b.String(), nil
}

// Handler serves /metrics, with those of the process and of Go, and /healthz:
// 200, or 503 with what healthy says.
func Handler(c prometheus.Collector, healthy func(context.Context) error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry(c), promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := healthy(r.Context()); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// Serve serves the handler until the context ends.
func Serve(ctx context.Context, lis net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(lis); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", lis.Addr(), err)
	}
	return nil
}

// Listen is the listener of an address; none for an empty one.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil //nolint:nilnil // metrics are off
	}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w; choose another address, or an empty one for none", err)
	}
	return lis, nil
}

// Bool is 1 or 0.
func Bool(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Timestamp is a Unix time in seconds of one in nanoseconds.
func Timestamp(unixNano int64) float64 { return float64(unixNano) / float64(time.Second) }
