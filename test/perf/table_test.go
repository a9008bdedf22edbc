// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tables of docs/guide/performance.md are made of the recorded results: this one of
// federation and identities, table_datapath_test.go's of the datapath.

const (
	page       = "../../docs/guide/performance.md"
	tableBegin = "<!-- table: begin -->\n"
	tableEnd   = "<!-- table: end -->"
)

// row is a line of the table. In measured, {KIND|SERIES|UNIT} stands for the
// median of a series, with the lowest and highest round when there are several;
// STORE in a series for where the store is.
type row struct{ what, cilium, goal, measured, test string }

func rows() []row {
	var out []row
	both := func(tmpfs, disk row) {
		for store, r := range map[storage]*row{onTmpfs: &tmpfs, onDisk: &disk} {
			r.measured = strings.ReplaceAll(r.measured, "STORE", string(store))
		}
		out = append(out, tmpfs, disk)
	}
	alike := func(r row) {
		disk := row{what: "— etcd on disk", cilium: "–", goal: "–", measured: r.measured, test: r.test}
		both(r, disk)
	}
	const sync = "{federation-sync|first sync, 1 remote, STORE: rate|keys/s}, {federation-sync|first sync, 1 remote, STORE: CPU of the API server, a key|µs} CPU a key, peak {federation-sync|first sync, 1 remote, STORE: peak memory of the API server|MiB} (filler {federation-sync|plain filler, 128 puts a transaction, one after the other, STORE|} to {federation-sync|plain filler, 128 puts a transaction, four at a time, STORE|keys/s})"
	both(row{"first sync of one remote", "3,380 keys/s, 0.19 ms CPU a key", "≥ 40,000 keys/s, ≤ 0.03 ms (30 µs)", sync, "Sync"},
		row{"— etcd on disk", "660 keys/s", "–", sync, "Sync"})
	alike(row{"first sync of four remotes", "6,850 keys/s, 432 MiB", "≥ 60,000 keys/s, < 300 MiB", "{federation-sync|first sync, 4 remotes, STORE: rate|keys/s}, {federation-sync|first sync, 4 remotes, STORE: CPU of the API server, a key|µs} CPU a key, peak {federation-sync|first sync, 4 remotes, STORE: peak memory of the API server|MiB}", "Sync"})
	alike(row{"1,000 writes/s, commit of a real source until the event in the local etcd, p50 / p99", "12.5 s p50 as shipped; 1.0 / 9 ms with raised limits, the write itself included", "≤ 1.5 / ≤ 8 ms",
		"{federation-steady|1000 writes/s, real source: commit → local etcd, STORE: p50 of a round|} / {federation-steady|1000 writes/s, real source: commit → local etcd, STORE: p99 of a round|ms}; with the write itself {federation-steady|the same, from the beginning of the write, STORE: p50 of a round|} / {federation-steady|the same, from the beginning of the write, STORE: p99 of a round|ms}", "Steady"})
	alike(row{"1,000 writes/s until the event in the local etcd, p50 / p99, generator", "–", "≤ 1.5 / ≤ 8 ms",
		"{federation-steady|1000 writes/s, generator → local etcd, STORE: p50 of a round|} / {federation-steady|1000 writes/s, generator → local etcd, STORE: p99 of a round|ms}", "Steady"})
	out = append(out, row{"writes/s before lag grows, in steps of 10,000", "100 as shipped, 1,800 raised", "≥ 20,000",
		"{federation-steady|highest rate at which nothing piles up, in steps of 10000, external etcd on tmpfs|} (single writes of one etcd, 64 at a time: {federation-steady|plain writes of single keys, 64 at a time, external etcd on tmpfs|/s})", "Steady"})
	for _, from := range []string{"generator", "real source"} {
		alike(row{"remote write until the agent's BPF map at 1,000 writes/s, p50 / p99, " + from, "–", "p99 < 30 ms",
			"{federation-agent|1000 writes/s, " + from + " → agent's map, STORE: p50 of a round|} / {federation-agent|1000 writes/s, " + from + " → agent's map, STORE: p99 of a round|ms}", "Agent"})
	}
	for _, s := range []storage{onTmpfs, onDisk, embedded} {
		out = append(out, row{"API server killed by SIGKILL and started, 63,000 keys, " + string(s) + ", generator / real source", map[bool]string{true: "68 s for 5,700 keys", false: "–"}[s == onTmpfs], "< 2 s, nothing rewritten",
			strings.ReplaceAll("{federation-restart|restart after SIGKILL until resumed, generator, STORE|} / {federation-restart|restart after SIGKILL until resumed, real source, STORE|s}; keys rewritten {federation-restart|restart after SIGKILL, keys of the mirror that were written again, generator, STORE|} / {federation-restart|restart after SIGKILL, keys of the mirror that were written again, real source, STORE|}", "STORE", string(s)), "Restart"})
	}
	alike(row{"level again after 330 s without network, two real clusters", "103 s", "< 6 s, only the changes cross",
		"{federation-outage|reconnect after an outage of 330 s, until level, STORE|s}; {federation-outage|changes that crossed then, STORE|} changes for 3,300 writes of 3,000 keys, {federation-outage|keys of the mirror that were written then, STORE|} keys written, {federation-outage|snapshots then, STORE|} snapshots", "Outage"})
	out = append(out, identityRows()...)
	alike(row{"250 clusters × 1,000 endpoints, 300 changes/s until the agent's BPF map, p50 / p99", "15 GiB an agent at 200 × 15,000", "lag p99 < 1 s; agent < 400 MiB",
		"{federation-wide|300 changes/s, generator → agent's map, STORE: p50 of a round|} / {federation-wide|300 changes/s, generator → agent's map, STORE: p99 of a round|ms}; agent {federation-wide|memory of the agent at the end, STORE|MiB}, peak {federation-wide|memory of the agent, peak, STORE|MiB}", "Wide"})
	return out
}

func identityRows() (out []row) {
	for _, k := range []struct{ name, cilium, goal string }{
		{string(onTmpfs), "414/s / 1,170/s / 1,170/s (4.2/s as shipped)", "≥ 3,000/s / ≥ 7,000/s"},
		{string(onTmpfs) + " with HTTP on its port", "–", "–"}, {string(onDisk), "–", "–"}, {string(embedded), "–", "–"},
	} {
		out = append(out, row{"new identities, one caller / 32 callers of one agent / 8 of each of 4 agents, " + k.name, k.cilium, k.goal,
			strings.ReplaceAll("{identities|new identities, 1 caller(s) on each of 1 agent(s), STORE|} / {identities|new identities, 32 caller(s) on each of 1 agent(s), STORE|} / {identities|new identities, 8 caller(s) on each of 4 agent(s), STORE|} a second (the transaction alone, 1 / 32 at a time: {identities|the allocation's transaction alone, 1 at a time, STORE|} / {identities|the allocation's transaction alone, 32 at a time, STORE|})", "STORE", k.name), ""})
	}
	return append(out, row{"labels in use on the node", "–", "no round trip", "{identities|labels in use on the node, one caller|/s}, {identities|labels in use on the node, revisions that it took|} revisions of etcd", ""})
}

// results are the recorded results by kind.
type results map[string]*report

// shown are the kinds that the table is made of.
func shown() []string {
	return []string{"federation-sync", "federation-steady", "federation-agent", "federation-restart", "federation-outage", "federation-wide", "identities"}
}

func readResults(t *testing.T) results {
	t.Helper()
	rs := results{}
	for _, kind := range append(shown(), datapathShown()...) {
		b, err := os.ReadFile(filepath.Join("results", kind+".json"))
		if err == nil {
			rs[kind] = &report{}
			err = json.Unmarshal(b, rs[kind])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return rs
}

// cell is what stands for {KIND|SERIES|UNIT}, unless it is not recorded.
func (rs results) cell(kind, name, unit string) (string, bool) {
	for _, s := range rs[kind].Series {
		if s.Name != name {
			continue
		}
		out := people(s.Median)
		if s.Min != s.Max {
			out += fmt.Sprintf(" (%s–%s)", people(s.Min), people(s.Max))
		}
		switch {
		case strings.HasPrefix(unit, "/"):
			out += unit
		case unit != "":
			out += " " + unit
		}
		return out, true
	}
	return "", false
}

// people is a number as people write it: 63,223 or 0.81.
func people(v float64) string {
	switch {
	case v == float64(int64(v)) && v < 100, v >= 100:
		s := fmt.Sprintf("%.0f", v)
		if n := len(s); n > 3 {
			s = s[:n-3] + "," + s[n-3:]
		}
		return s
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (rs results) table() string {
	var b strings.Builder
	cells := regexp.MustCompile(`\{([^|{}]*)\|([^|{}]*)\|([^|{}]*)\}`)
	b.WriteString("| what | Cilium | goal | measured | test |\n|---|---|---|---|---|\n")
	for _, r := range rows() {
		missing := false
		measured := cells.ReplaceAllStringFunc(r.measured, func(m string) string {
			f := cells.FindStringSubmatch(m)
			out, ok := rs.cell(f[1], f[2], f[3])
			missing = missing || !ok
			return out
		})
		if missing {
			measured = "not recorded"
		}
		test := "`TestPerfIdentities`"
		if r.test != "" {
			test = "`…" + r.test + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.what, r.cilium, r.goal, measured, test)
	}
	return b.String()
}

// where says when and on what the kinds were measured.
func (rs results) where(kinds []string, how string) string {
	var b strings.Builder
	m := rs[kinds[len(kinds)-1]].Machine
	fmt.Fprintf(&b, "Measured on %d CPUs (%s), Linux %s, %s. %s\n\n| results | when | version | load before / after |\n|---|---|---|---|\n", m.CPUs, m.CPU, m.Kernel, m.Go, how)
	for _, kind := range kinds {
		m := rs[kind].Machine
		fmt.Fprintf(&b, "| `%s.json` | %s | %s | %s / %s |\n", kind, m.Time.Format("2006-01-02 15:04"), m.Version, m.Load, m.LoadAfter)
	}
	return b.String() + "\n"
}

// TestTable: the page shows what is recorded.
func TestTable(t *testing.T) {
	rs := readResults(t)
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := replaced(t, string(b), tableBegin, rs.where(shown(), "`…X` stands for `TestPerfFederationX`. A cell is the median of the rounds, with the lowest and highest\nbeside it where there were several.")+rs.table())
	want = replaced(t, want, datapathBegin, rs.where(datapathShown(), "A figure is the median of the rounds; the lowest and highest are in\nthe JSON.")+rs.datapathTable())
	if want == string(b) {
		return
	}
	if !flags.table {
		t.Fatalf("%s does not show what is recorded: go test ./test/perf -run '^TestTable$' -args -write-table", page)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replaced is the page with other text behind a marker, up to the next end.
func replaced(t *testing.T, text, begin, table string) string {
	t.Helper()
	before, rest, ok := strings.Cut(text, begin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table: %s", page, begin)
	}
	return before + begin + table + tableEnd + after
}
