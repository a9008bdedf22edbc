// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// buckets go from a write inside a host to an outage of minutes.
var buckets = [...]float64{
	0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300,
}

// Kept is a metric that counts by itself: a Timer or a Tally.
type Kept interface {
	prometheus.Collector
	name() string
}

// Timer is a histogram of durations. It is safe for concurrent use.
type Timer struct {
	*prometheus.HistogramVec
	def Def
}

// NewTimer makes the histogram that the table calls name; that there is none is
// a programmer's mistake and panics.
func NewTimer(defs []Def, name string) *Timer {
	d := lookup(defs, name, Histogram)
	return &Timer{def: d, HistogramVec: prometheus.NewHistogramVec(
		prometheus.HistogramOpts{Name: d.Name, Help: d.Help, Buckets: buckets[:]}, d.Labels)}
}

// Observe adds one duration, with a value for each label. It does not block.
func (t *Timer) Observe(took time.Duration, labels ...string) {
	t.WithLabelValues(labels...).Observe(took.Seconds())
}

func (t *Timer) name() string { return t.def.Name }

// Tally is a counter. It is safe for concurrent use.
type Tally struct {
	*prometheus.CounterVec
	def Def
}

// NewTally makes the counter that the table calls name; that there is none is a
// programmer's mistake and panics.
func NewTally(defs []Def, name string) *Tally {
	d := lookup(defs, name, Counter)
	return &Tally{def: d, CounterVec: prometheus.NewCounterVec(prometheus.CounterOpts{Name: d.Name, Help: d.Help}, d.Labels)}
}

// Begin shows 0, with a value for each label, before anything was counted: what
// begins with its first count has no rate for that.
func (t *Tally) Begin(labels ...string) { t.WithLabelValues(labels...) }

// Add counts one, with a value for each label. It does not block.
func (t *Tally) Add(labels ...string) { t.WithLabelValues(labels...).Inc() }

func (t *Tally) name() string { return t.def.Name }

func lookup(defs []Def, name string, k Kind) Def {
	for _, d := range defs {
		if d.Name == name && d.Kind == k {
			return d
		}
	}
	panic("there is no " + string(k) + " " + name + " in the table")
}

// EtcdDefs document the operations on etcd that every program counts.
func EtcdDefs() []Def {
	return []Def{
		{Name: etcdOperations, Help: "Operations on etcd, by how they ended: ok, unmet (a transaction whose condition did not hold), denied, no_space, compacted, future, timeout, canceled, error. A watch counts when it ends.", Kind: Counter, Labels: []string{"operation", "result"}},
		{Name: etcdSeconds, Help: "How long operations on etcd took, whatever their result; not watches.", Kind: Histogram, Labels: []string{"operation"}},
	}
}

const (
	etcdOperations = "hawser_etcd_operations_total"
	etcdSeconds    = "hawser_etcd_operation_seconds"
	watchOperation = "watch"
)

// Etcd counts the operations of a client of etcd.
type Etcd struct {
	ended *Tally
	took  *Timer
}

// NewEtcd makes the metrics of EtcdDefs.
func NewEtcd() *Etcd {
	return &Etcd{NewTally(EtcdDefs(), etcdOperations), NewTimer(EtcdDefs(), etcdSeconds)}
}

// Observe is told of each operation that ended.
func (e *Etcd) Observe(operation, result string, took time.Duration) {
	e.ended.Add(operation, result)
	if operation != watchOperation {
		e.took.Observe(took, operation)
	}
}

// Kept are its metrics, for NewCollector.
func (e *Etcd) Kept() []Kept { return []Kept{e.ended, e.took} }
