// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// options are the flags of a run.
type options struct {
	perf, record, more, table bool
	rounds                    int
}

func newOptions() *options {
	o := &options{}
	flag.BoolVar(&o.perf, "perf", false, "measure; without it the tests skip")
	flag.BoolVar(&o.record, "record", false, "also replace results/KIND.json, the result that the repository keeps")
	flag.BoolVar(&o.table, "write-table", false, "write the table of docs/guide/performance.md anew, from the recorded results")
	flag.BoolVar(&o.more, "more", false, "add operations to those of results/KIND.json, for measurements that are gathered in several runs")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each comparison")
	return o
}

// flags are read by TestMain before any test.
var flags = newOptions() //nolint:gochecknoglobals // test flags have no other way in

// series is what one cell of a table was made of: a number per round, or, where
// a round is one operation, per operation.
type series struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Goal   string  `json:"goal,omitempty"` // as the design states it
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// P99 is of operations: where Raw is per operation its own, where Raw is
	// per round the median of the rounds' (RawP99).
	P99    float64   `json:"p99,omitempty"`
	Raw    []float64 `json:"raw"`
	RawP99 []float64 `json:"raw_p99,omitempty"`
}

// machine is where and when a result was measured.
type machine struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	CPU     string    `json:"cpu"`
	CPUs    int       `json:"cpus"`
	Kernel  string    `json:"kernel"`
	Go      string    `json:"go"`
	// Load is the 1, 5 and 15 minute load before the run; the run's own part
	// is not in it.
	Load string `json:"load"`
	// LoadAfter has the run's own part in it.
	LoadAfter string `json:"load_after"`
}

// report is the result of one test.
type report struct {
	Kind    string   `json:"kind"`
	About   string   `json:"about"`
	Machine machine  `json:"machine"`
	Series  []series `json:"series"`
	Notes   []string `json:"notes,omitempty"`
}

// newReport begins a measurement, or skips the test.
func newReport(t *testing.T, kind, about string) *report {
	t.Helper()
	if !flags.perf {
		t.Skip("measures time on a quiet machine; run it with: make bench (or: go test ./test/perf/... -run '^TestPerf' -v -args -perf)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and loads eBPF programs")
	}
	r := &report{Kind: kind, About: about, Machine: thisMachine()}
	if flags.record && strings.HasSuffix(r.Machine.Version, dirty) {
		t.Fatalf("-record: the source is not what was committed as %s: commit it first, so that the result names what was measured", r.Machine.Version)
	}
	t.Logf("%s, %d CPUs, kernel %s, load %s", r.Machine.CPU, r.Machine.CPUs, r.Machine.Kernel, r.Machine.Load)
	return r
}

func thisMachine() machine {
	m := machine{Time: time.Now().UTC(), Version: revision(), CPUs: runtime.NumCPU(), Go: runtime.Version(), Load: load()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// dirty is the end of a version whose source is not what was committed.
const dirty = "-dirty"

// revision is the source that is measured; "unknown" outside of its repository.
// What a run before this one recorded, and the page that shows it, is no change.
func revision() string {
	out, err := exec.Command("git", "describe", "--tags", "--always").Output()
	if err != nil {
		return "unknown"
	}
	v := strings.TrimSpace(string(out))
	if exec.Command("git", "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)test/perf/results", ":(top,exclude)docs/guide/performance.md").Run() != nil {
		v += dirty
	}
	return v
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}

// add puts a row into the report: one value per round.
func (r *report) add(name, unit, goal string, raw []float64) {
	if len(raw) == 0 {
		return
	}
	r.Series = append(r.Series, series{
		Name: name, Unit: unit, Goal: goal, Raw: raw,
		Median: quantile(raw, 0.5), Min: slices.Min(raw), Max: slices.Max(raw),
	})
}

// append adds a value to a series, which it makes when it is not there.
func (r *report) append(name, unit, goal string, v float64) {
	for i, s := range r.Series {
		if s.Name == name {
			raw := append(s.Raw, v)
			r.Series = append(r.Series[:i:i], r.Series[i+1:]...)
			r.add(name, unit, goal, raw)
			return
		}
	}
	r.add(name, unit, goal, []float64{v})
}

// addRounds is add for rounds that each had a median and a 99th percentile.
func (r *report) addRounds(name, unit, goal string, p50, p99 []float64) {
	r.add(name, unit, goal, p50)
	last := &r.Series[len(r.Series)-1]
	last.P99, last.RawP99 = quantile(p99, 0.5), p99
}

// addOps is add for a value per operation; the 99th percentile is shown, too.
func (r *report) addOps(name, unit, goal string, raw []float64) {
	if flags.more {
		raw = append(r.kept(name), raw...)
	}
	r.add(name, unit, goal, raw)
	if len(raw) > 0 {
		r.Series[len(r.Series)-1].P99 = quantile(raw, 0.99)
	}
}

// kept are the values of a series in the result that the repository keeps.
func (r *report) kept(name string) []float64 {
	var old report
	raw, err := os.ReadFile(filepath.Join("results", r.Kind+".json"))
	if err != nil || json.Unmarshal(raw, &old) != nil {
		return nil
	}
	for _, s := range old.Series {
		if s.Name == name {
			return s.Raw
		}
	}
	return nil
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// quantile of values, which it leaves as they are.
func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[int(q*float64(len(s)-1)+0.5)]
}

// ratios divides round by round, so that both sides saw the same machine.
func ratios(a, b []float64) (out []float64) {
	for i := range min(len(a), len(b)) {
		out = append(out, a[i]/b[i])
	}
	return out
}

// differences subtracts round by round.
func differences(a, b []float64) (out []float64) {
	for i := range min(len(a), len(b)) {
		out = append(out, a[i]-b[i])
	}
	return out
}

// finish prints the table and writes the files.
func (r *report) finish(t *testing.T) {
	t.Helper()
	if t.Failed() {
		return // part of it is missing
	}
	r.Machine.LoadAfter = load()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tMEDIAN\tMIN\tMAX\tP99\tUNIT\tGOAL\n", strings.ToUpper(r.Kind))
	for _, s := range r.Series {
		p99 := "-"
		if s.P99 != 0 {
			p99 = digits(s.P99)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, digits(s.Median), digits(s.Min), digits(s.Max), p99, s.Unit, s.Goal)
	}
	_ = w.Flush()
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	t.Logf("%s\n%s", r.About, b.String())
	paths := []string{filepath.Join("results", "runs", r.Kind+"-"+r.Machine.Time.Format("20060102T150405")+".json")}
	if flags.record {
		paths = append(paths, filepath.Join("results", r.Kind+".json"))
	}
	data, err := json.MarshalIndent(r, "", " ")
	for _, path := range paths {
		if err == nil {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err == nil {
			err = os.WriteFile(path, append(data, '\n'), 0o644)
		}
		if err != nil {
			t.Fatalf("write result: %v", err)
		}
		t.Logf("raw numbers: test/perf/%s", path)
	}
}

// digits shows about four significant digits.
func digits(v float64) string {
	switch {
	case v >= 1000 || v <= -1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
