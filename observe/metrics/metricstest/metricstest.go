// SPDX-License-Identifier: Apache-2.0

// Package metricstest checks a program's metrics in tests: by their names, and
// against the table that documents them.
package metricstest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/hawser-mesh/hawser/observe/metrics"
)

// Gather scrapes a collector once. It fails the test for each documented metric
// that is missing and for each name against the conventions, and returns the
// samples by name and labels: name{a="x",b="y"}.
func Gather(t testing.TB, defs []metrics.Def, c prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples, names := map[string]float64{}, map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
		for _, m := range f.GetMetric() {
			if h := m.GetHistogram(); h != nil {
				samples[sample(f.GetName()+"_count", m)] = float64(h.GetSampleCount())
				samples[sample(f.GetName()+"_sum", m)] = h.GetSampleSum()
				continue
			}
			samples[sample(f.GetName(), m)] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for _, d := range defs {
		if !names[d.Name] {
			t.Errorf("metric %s is documented and does not exist", d.Name)
		}
		check(t, d)
	}
	return samples
}

func sample(name string, m *dto.Metric) string {
	var ls []string
	for _, l := range m.GetLabel() {
		ls = append(ls, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	if len(ls) == 0 {
		return name
	}
	slices.Sort(ls)
	return name + "{" + strings.Join(ls, ",") + "}"
}

// check holds a name to Prometheus' conventions.
func check(t testing.TB, d metrics.Def) {
	t.Helper()
	if !regexp.MustCompile(`^hawser_[a-z0-9_]+$`).MatchString(d.Name) {
		t.Errorf("metric %s: must be hawser_… in lower case", d.Name)
	}
	if strings.HasSuffix(d.Name, "_total") != (d.Kind == metrics.Counter) {
		t.Errorf("metric %s is a %s: counters, and only they, end in _total", d.Name, d.Kind)
	}
	if d.Kind == metrics.Histogram && !strings.HasSuffix(d.Name, "_seconds") {
		t.Errorf("metric %s is a histogram and does not end in _seconds", d.Name)
	}
	if d.Help == "" || !strings.HasSuffix(d.Help, ".") {
		t.Errorf("metric %s: its help is no sentence: %q", d.Name, d.Help)
	}
	for _, l := range d.Labels {
		if l == "cluster" || l == "peer" {
			t.Errorf("metric %s: label %s; another cluster is target_cluster", d.Name, l)
		}
	}
}
