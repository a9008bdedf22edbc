// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/agent"
	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/observe/metrics"
)

// scraped are the labels that a scrape adds.
var scraped = []string{"instance", "job"}

// series is what can be selected by a name.
type series struct {
	labels []string
	counts bool   // grows: to be looked at over a time
	help   string // of all programs that have it
}

// catalogue is every series that the programs of Hawser serve, by name, and the
// names of the datapath's maps.
type catalogue struct {
	series map[string]series
	maps   []string
}

func newCatalogue() (*catalogue, error) {
	spec, err := objects.LoadHawser()
	if err != nil {
		return nil, err
	}
	c := &catalogue{series: map[string]series{}, maps: slices.Collect(maps.Keys(spec.Maps))}
	for _, d := range slices.Concat(agent.Metrics(), apiserver.Metrics()) {
		labels := slices.Concat(d.Labels, scraped)
		if d.Kind != metrics.Histogram {
			c.add(d.Name, series{labels, d.Kind == metrics.Counter, d.Help})
			continue
		}
		c.add(d.Name+"_bucket", series{append(labels, "le"), true, d.Help})
		c.add(d.Name+"_sum", series{labels, true, d.Help})
		c.add(d.Name+"_count", series{labels, true, d.Help})
	}
	return c, nil
}

func (c *catalogue) add(name string, s series) {
	if old, ok := c.series[name]; ok {
		s.help += " " + old.help
	}
	c.series[name] = s
}

var labelUsed = regexp.MustCompile(`{{ *(?:\$labels\.)?([a-z_]+) *}}`)

// check says what of an expression, and of the text that shows its labels, does
// not exist.
func (c *catalogue) check(text, legend string) error {
	e, err := parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(text+": "+format, args...)) }
	var known []string
	for _, s := range e.selections {
		d, ok := c.series[s.name]
		if !ok {
			bad("there is no metric %s", s.name)
			continue
		}
		known = append(known, d.labels...)
		if d.counts && !s.ranged {
			bad("%s counts: it needs rate or increase", s.name)
		}
		if !d.counts && counting[s.function] {
			bad("%s is a gauge: it has no %s", s.name, s.function)
		}
		for _, m := range s.matchers {
			if !slices.Contains(d.labels, m.label) {
				bad("%s has no label %s", s.name, m.label)
			}
			for value := range strings.SplitSeq(m.value, "|") {
				if !c.has(d, m.label, value) {
					bad("label %s of %s has no value %q that is documented", m.label, s.name, value)
				}
			}
		}
	}
	for _, l := range e.by {
		if !slices.Contains(known, l) {
			bad("by %s: no metric of it has that label", l)
		}
	}
	for _, l := range labelUsed.FindAllStringSubmatch(legend, -1) {
		if !slices.Contains(known, l[1]) || e.grouped && !slices.Contains(e.by, l[1]) {
			bad("its text shows label %s, which it has not", l[1])
		}
	}
	if len(e.selections) == 0 {
		bad("it selects nothing")
	}
	return errors.Join(errs...)
}

// has reports whether a value can be: maps are those of the programs, others are
// told in the metric's help, and variables of a dashboard can be anything.
func (c *catalogue) has(d series, label, value string) bool {
	switch {
	case strings.HasPrefix(value, "$"):
		return true
	case label == "map":
		return slices.Contains(c.maps, value)
	}
	return regexp.MustCompile(`\b` + regexp.QuoteMeta(value) + `\b`).MatchString(d.help)
}
