// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// The datapath's table of docs/guide/performance.md, one row per line.

// datapathBegin is where it stands.
const datapathBegin = "<!-- table: datapath -->\n"

// datapathShown are the kinds that it is made of.
func datapathShown() []string {
	return []string{"hotpath", "programs", "connect", "paths", "services", "cni", "start", "policy-engine", "policy-kernel"}
}

// datapathRow is a line. In measured, {KIND|SERIES} stands for the median of a
// series, {KIND|SERIES|p99} for its 99th percentile; a series below another one (it
// is indented) is OTHER//SERIES.
type datapathRow struct {
	what, cilium, goal, measured, test string
	// limits are medians, or what stands in braces, and what they are at most; the row
	// that has more is marked.
	limits []limit
	// optional rows are left out until they are recorded.
	optional bool
}

type limit struct {
	cell string
	most float64
}

// value is the number that stands for KIND|SERIES or KIND|SERIES|p99.
func (rs results) value(cell string) (float64, bool) {
	f := strings.Split(cell, "|")
	above := ""
	for _, s := range rs[f[0]].Series {
		name := s.Name
		if below := strings.TrimLeft(name, " "); below != name {
			name = above + "//" + below
		} else {
			above = name
		}
		switch {
		case name != f[1]:
		case len(f) > 2:
			return s.P99, true
		default:
			return s.Median, true
		}
	}
	return 0, false
}

// line is a row as the table has it; "" for an optional one that is not recorded.
func (rs results) line(r datapathRow) string {
	missing := false
	measured := regexp.MustCompile(`\{([^{}]*)\}`).ReplaceAllStringFunc(r.measured, func(m string) string {
		v, ok := rs.value(strings.Trim(m, "{}"))
		missing = missing || !ok
		return figure(v)
	})
	if missing && r.optional {
		return ""
	}
	if missing {
		measured = "not recorded"
	}
	for _, l := range r.limits {
		if v, ok := rs.value(l.cell); ok && v > l.most {
			measured += " **missed**"
			break
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | `TestPerf%s` |\n", r.what, r.cilium, r.goal, measured, r.test)
}

func (rs results) datapathTable() string {
	var b strings.Builder
	b.WriteString("| what | Cilium | goal | measured | test |\n|---|---|---|---|---|\n")
	for _, r := range datapathRows() {
		b.WriteString(rs.line(r))
	}
	return b.String()
}

// figure has three significant digits.
func figure(v float64) string {
	switch {
	case v < 0:
		return "−" + figure(-v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// TestTableLine: a row shows what is recorded, and says what is missed or missing.
func TestTableLine(t *testing.T) {
	rs := results{"k": {Series: []series{
		{Name: "a", Median: 123.4}, {Name: "  of it", Median: 1}, {Name: "b", Median: 9.994, P99: 20.5}, {Name: "  of it", Median: -0.37},
	}}}
	for _, c := range []struct {
		name string
		row  datapathRow
		want string
	}{
		{"median, of a series below another", datapathRow{measured: "{k|a}, {k|b//of it}"}, "123, −0.37"},
		{"at the limit", datapathRow{measured: "{k|a} ns", limits: []limit{{"k|a//of it", 1}, {"k|a", 123.4}}}, "123 ns"},
		{"over a limit", datapathRow{measured: "{k|a} ns", limits: []limit{{"k|a//of it", 1}, {"k|b", 9.99}}}, "123 ns **missed**"},
		{"over the limit of a percentile", datapathRow{measured: "{k|b|p99}", limits: []limit{{"k|b|p99", 20}}}, "20.5 **missed**"},
		{"not recorded", datapathRow{measured: "{k|a}, {k|c}"}, "not recorded"},
		{"below nothing", datapathRow{measured: "{k|of it}"}, "not recorded"},
	} {
		c.row.what, c.row.cilium, c.row.goal, c.row.test = "what", "–", "≤ 1", "X"
		if got, want := rs.line(c.row), "| what | – | ≤ 1 | "+c.want+" | `TestPerfX` |\n"; got != want {
			t.Errorf("%s: %q, want %q", c.name, got, want)
		}
		if c.row.optional = true; strings.Contains(c.want, "recorded") && rs.line(c.row) != "" {
			t.Errorf("%s: an optional row is shown", c.name)
		}
	}
}

// TestTableRows: a row that has a goal has limits, and they are of what it shows.
func TestTableRows(t *testing.T) {
	for _, r := range datapathRows() {
		if (r.goal == "–") != (len(r.limits) == 0) {
			t.Errorf("%s: goal %q with %d limits", r.what, r.goal, len(r.limits))
		}
		for _, l := range r.limits {
			if !strings.Contains(r.measured, l.cell) {
				t.Errorf("%s: the limit of %s is of what the row does not show", r.what, l.cell)
			}
		}
	}
}
