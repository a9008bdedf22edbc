// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"math"
	"sync"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// propagation samples how changes come from their origin into this node's
// kernel: the last record of a batch, and one sample under way at a time. What
// comes meanwhile is told of only up to the tables.
type propagation struct {
	tables  *datapath.Tables
	now     func() time.Time
	observe func(cluster string, s stages.Stage, took time.Duration)
	next    chan sample // capacity 1

	// offsets are the clocks of peers minus ours, as the API server says. The
	// view's lock guards it.
	offsets map[string]time.Duration
	// copied says up to which revision of the own etcd what is told of a
	// cluster's kind is part of a full copy, as the markers of its API server
	// say: all of it while one runs.
	mu     sync.Mutex
	copied map[copiedKind]int64
	// settle is how much later it is asked whether a sample was of a copy: its
	// marker was written before, but another watch tells of it.
	settle time.Duration
}

// settleFor is many times what one watch is ahead of another.
const settleFor = 100 * time.Millisecond

// copiedKind is a kind of a peer's records.
type copiedKind struct {
	cluster string
	kind    kvstore.Kind
}

// sample is a change that has come to the tables.
type sample struct {
	cluster   string
	kind      kvstore.Kind
	revision  int64         // of the own etcd
	age       time.Duration // at arrival, by the record's own time; below 0: not news
	arrived   time.Time     // monotonic, as all other times here
	published time.Time
	revisions revisions
}

// revisions are those of the tables that the kernel follows, by tables.
type revisions [5]uint64

func newPropagation(t *datapath.Tables) *propagation {
	return &propagation{
		tables: t, now: time.Now, next: make(chan sample, 1), offsets: map[string]time.Duration{}, copied: map[copiedKind]int64{}, settle: settleFor,
		observe: func(string, stages.Stage, time.Duration) {},
	}
}

func (p *propagation) names() [5]string {
	t := p.tables
	return [...]string{t.Nodes.Name(), t.Identities.Name(), t.RuleSets.Name(), t.IPCache.Name(), t.Frontends.Name()}
}

func (p *propagation) revisions() revisions {
	t := p.tables
	return revisions{t.Nodes.Revision(), t.Identities.Revision(), t.RuleSets.Revision(), t.IPCache.Revision(), t.Frontends.Revision()}
}

// mark takes what a batch says of full copies. One is made of a new peer and
// whenever a grant changes: what it brings was written at any time before.
func (p *propagation) mark(b store.Batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range b.Changes {
		if c.Key.Kind != kvstore.KindSynced {
			continue
		}
		k := copiedKind{c.Key.Names[0], kvstore.Kind(c.Key.Names[1])}
		r, told := c.Record.(*keyspacev1.Synced)
		switch {
		case !told || c.Deleted:
			delete(p.copied, k)
		case r.GetState() == keyspacev1.Synced_STATE_COPYING:
			p.copied[k] = math.MaxInt64
		case p.copied[k] == math.MaxInt64: // the other watch may still have to tell of it
			p.copied[k] = c.KV.ModRevision
		}
	}
}

// isCopy reports whether a sample is of a full copy, as far as it is known now.
func (p *propagation) isCopy(s sample) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, copied := p.copied[copiedKind{s.cluster, s.kind}]
	return copied && s.revision <= until
}

// begin looks at a batch before it is taken. Of listings and of what is deleted
// nothing is known but that it is so: there is no sample.
func (p *propagation) begin(b store.Batch) (s sample, ok bool) {
	p.mark(b)
	if b.Listed || b.Revision == 0 {
		return s, false
	}
	for i := len(b.Changes) - 1; i >= 0; i-- {
		c := b.Changes[i]
		r, timed := c.Record.(interface{ GetUpdatedAt() int64 })
		if !timed || r.GetUpdatedAt() <= 0 {
			continue
		}
		s = sample{cluster: c.Key.Cluster, kind: c.Key.Kind, revision: c.KV.ModRevision, arrived: p.now(), revisions: p.revisions()}
		s.age = max(0, s.arrived.Add(p.offsets[s.cluster]).Sub(time.Unix(0, r.GetUpdatedAt())))
		if s.age >= stages.TooOld || p.isCopy(s) {
			s.age = -1
		}
		return s, true
	}
	return s, false
}

// published observes the stages up to the tables, unless nothing there has
// changed, and has the kernel waited for.
func (p *propagation) published(s sample) {
	now := p.revisions()
	if now == s.revisions {
		return
	}
	s.revisions, s.published = now, p.now()
	p.observe(s.cluster, stages.Table, s.published.Sub(s.arrived))
	select {
	case p.next <- s:
	default: // another is under way
	}
}

// run waits for the kernel until the context ends. wait is the reconciler's.
func (p *propagation) run(ctx context.Context, wait func(ctx context.Context, table string, revision uint64) error) error {
	names := p.names()
	for {
		var s sample
		select {
		case s = <-p.next:
		case <-ctx.Done():
			return nil
		}
		for i, name := range names {
			if wait(ctx, name, s.revisions[i]) != nil {
				return nil // the reconciler ends, and says why
			}
		}
		now := p.now()
		p.observe(s.cluster, stages.Map, now.Sub(s.published))
		if s.age < 0 {
			continue
		}
		if p.settle > 0 {
			select {
			case <-time.After(p.settle):
			case <-ctx.Done():
				return nil
			}
		}
		if !p.isCopy(s) {
			p.observe(s.cluster, stages.Arrive, s.age)
			p.observe(s.cluster, stages.Total, s.age+now.Sub(s.arrived))
		}
	}
}
