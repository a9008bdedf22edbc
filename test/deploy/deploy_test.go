// SPDX-License-Identifier: Apache-2.0

// Package deploy holds what deploy/ has for Prometheus and Grafana to the metrics
// that exist: each name, label and documented value. Start with catalogue.check.
// Out of scope: whether Prometheus would take an expression that only uses names
// that exist; promql_test.go reads just enough of the language.
package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const root = "../../deploy"

func load(t *testing.T) *catalogue {
	t.Helper()
	c, err := newCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// each reads the files of a directory; that there are none is a failure.
func each(t *testing.T, pattern string, fn func(name string, content []byte)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		fn(filepath.Base(f), b)
	}
}

type target struct {
	Expr   string `json:"expr"`
	Legend string `json:"legendFormat"`
}

type panel struct {
	ID      int                      `json:"id"`
	Type    string                   `json:"type"`
	Title   string                   `json:"title"`
	Targets []target                 `json:"targets"`
	GridPos struct{ X, Y, W, H int } `json:"gridPos"`
}

type dashboard struct {
	UID        string  `json:"uid"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name  string `json:"name"`
			Type  string `json:"type"`
			Query string `json:"query"`
		} `json:"list"`
	} `json:"templating"`
}

var (
	labelValues = regexp.MustCompile(`^label_values\(([a-z_]+), ([a-z_]+)\)$`)
	variable    = regexp.MustCompile(`\$([a-z][a-z_]*)`)
)

func TestDashboards(t *testing.T) {
	c := load(t)
	each(t, "dashboards/*.json", func(name string, content []byte) {
		var d dashboard
		if err := json.Unmarshal(content, &d); err != nil || d.UID == "" {
			t.Fatalf("%s: uid %q, %v", name, d.UID, err)
		}
		variables := map[string]bool{}
		for _, v := range d.Templating.List {
			variables[v.Name] = true
			if v.Type != "query" {
				continue
			}
			q := labelValues.FindStringSubmatch(v.Query)
			if q == nil || !slices.Contains(c.series[q[1]].labels, q[2]) {
				t.Errorf("%s: variable %s: there is no %s", name, v.Name, v.Query)
			}
		}
		ids := map[int]string{}
		for _, p := range d.Panels {
			if other, twice := ids[p.ID]; twice {
				t.Errorf("%s: panels %q and %q have one id", name, other, p.Title)
			}
			ids[p.ID] = p.Title
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %q shows nothing", name, p.Title)
			}
			for _, q := range p.Targets {
				if err := c.check(q.Expr, q.Legend); err != nil {
					t.Errorf("%s: panel %q: %v", name, p.Title, err)
				}
				for _, v := range variable.FindAllStringSubmatch(q.Expr, -1) {
					if !variables[v[1]] {
						t.Errorf("%s: panel %q: there is no variable %s", name, p.Title, v[1])
					}
				}
			}
		}
		overlap(t, name, d.Panels)
	})
}

func overlap(t *testing.T, name string, ps []panel) {
	t.Helper()
	for i, a := range ps {
		for _, b := range ps[:i] {
			x, y := a.GridPos, b.GridPos
			if x.X < y.X+y.W && y.X < x.X+x.W && x.Y < y.Y+y.H && y.Y < x.Y+x.H {
				t.Errorf("%s: panels %q and %q lie on one another", name, a.Title, b.Title)
			}
		}
	}
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

func TestAlerts(t *testing.T) {
	c := load(t)
	each(t, "alerts/*.yaml", func(name string, content []byte) {
		var r rules
		if err := yaml.UnmarshalStrict(content, &r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		seen := map[string]bool{}
		for _, g := range r.Groups {
			for _, a := range g.Rules {
				if seen[a.Alert] || !strings.HasPrefix(a.Alert, "Hawser") {
					t.Errorf("%s: alert %q: it is there twice, or has another's name", name, a.Alert)
				}
				seen[a.Alert] = true
				text := a.Annotations["summary"] + a.Annotations["description"]
				if err := c.check(a.Expr, text); err != nil {
					t.Errorf("%s: alert %s: %v", name, a.Alert, err)
				}
				if a.Labels["severity"] == "" || a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
					t.Errorf("%s: alert %s: severity, summary and description are all needed", name, a.Alert)
				}
			}
		}
	})
}

// What is not there is found; what is there is not complained of.
func TestCheckFindsWhatIsNotThere(t *testing.T) {
	c := load(t)
	for _, bad := range []struct{ expr, legend, want string }{
		{"hawser_peer_connected == 0", "", "there is no metric hawser_peer_connected"},
		{"hawser_federation_connected{peer=\"a\"} == 0", "", "has no label peer"},
		{"sum by (node) (hawser_federation_connected)", "", "by node"},
		{"hawser_node_health{health=\"ill\"} > 0", "", "no value \"ill\""},
		{"hawser_map_pressure_ratio{map=\"ct\"}", "", "no value \"ct\""},
		{"hawser_federation_lag_seconds", "{{node}}", "shows label node"},
		{"sum by (reason) (rate(hawser_federation_refused_total[5m]))", "{{target_cluster}}", "shows label target_cluster"},
		{"hawser_federation_refused_total > 0", "", "needs rate"},
		{"rate(hawser_federation_lag_seconds[5m])", "", "is a gauge"},
		{"rate(hawser_propagation_seconds[5m])", "", "there is no metric hawser_propagation_seconds"},
		{"sum(rate(hawser_propagation_seconds_bucket[5m])", "", "not closed"},
		{"frobnicate(hawser_problems)", "", "there is no metric frobnicate"},
		{"1 > 0", "", "selects nothing"},
	} {
		if err := c.check(bad.expr, bad.legend); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%s: %v; want %q", bad.expr, err, bad.want)
		}
	}
	for _, good := range [][2]string{
		{`histogram_quantile(0.99, sum by (le, stage) (rate(hawser_propagation_seconds_bucket{stage="total",target_cluster=~"$target_cluster"}[$__rate_interval])))`, "{{stage}}"},
		{`max without (instance) (hawser_node_health{health="agent down"}) > 0`, "{{ $value }} of {{ $labels.target_cluster }}"},
		{`hawser_etcd_database_bytes / (hawser_etcd_quota_bytes > 0) > 0.8`, ""},
	} {
		if err := c.check(good[0], good[1]); err != nil {
			t.Error(err)
		}
	}
}
