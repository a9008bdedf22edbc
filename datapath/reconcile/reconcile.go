// SPDX-License-Identifier: Apache-2.0

// Package reconcile keeps the kernel's maps equal to the tables of package
// datapath: each change at once, everything compared at start and on a timer.
//
// Start with Reconciler.Run; each table has a file with its syncer. Whether
// programs are attached and routes are there is not its business.
//
// A starting agent's tables are empty while the adopted maps are not. So
// elements that no row asks for are deleted only from tables that were declared
// complete (MarkComplete).
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// Reconciler writes the maps. Make one per datapath; it must be the only writer.
type Reconciler struct {
	log    *slog.Logger
	tables []syncer // in the order of writing
	known  *identities
	local  *endpoints
	wake   chan struct{}

	mu      sync.Mutex
	changed chan struct{} // closed and renewed when a status moves
	status  map[string]*Status
	stopped error
}

// Status is how far the kernel follows a table.
type Status struct {
	Table      string
	Entries    int    // rows
	Revision   uint64 // of the table
	Reconciled uint64 // the revision that the kernel has
	Complete   bool   // MarkComplete was called
	Pruned     bool   // leftovers were deleted since
	LastError  string // of the last attempt; empty is none
}

// syncer is one table's way into the kernel.
type syncer interface {
	name() string
	rows() (n int, revision uint64)
	subscribe()
	close()
	woken() <-chan struct{}
	// take fixes which changed rows the next sync writes, and as what.
	take()
	// sync writes them and returns the revision that the kernel then has. Rows that
	// could not be written stay changed.
	sync() (revision uint64, err error)
	// repair compares all wanted elements with the kernel, and deletes others if
	// prune is set.
	repair(prune bool) error
}

const (
	fullInterval = 60 * time.Second
	retryMin     = 50 * time.Millisecond
	retryMax     = 10 * time.Second
)

// New reads what the adopted maps have. It changes nothing.
func New(d *loader.Datapath, tables *datapath.Tables, log *slog.Logger) (*Reconciler, error) {
	kernel := d.Maps()
	ids, err := newNodeIDs(kernel)
	if err != nil {
		return nil, err
	}
	r := &Reconciler{
		log: log, wake: make(chan struct{}, 1),
		changed: make(chan struct{}), status: map[string]*Status{},
	}
	nodes, err1 := newNodes(kernel, tables.Nodes, ids)
	rules, err3 := newRuleSets(kernel, tables.RuleSets)
	if err3 != nil {
		return nil, fmt.Errorf("read adopted maps: %w", err3)
	}
	known, err2 := newIdentities(kernel, tables.Identities, rules.lagging)
	endpoints, err4 := newEndpoints(kernel, tables.Endpoints)
	ipcache, err5 := newIPCache(kernel, tables.IPCache, ids, d.Config().NodeAddr, rules.renewBlocks, known.vouch)
	frontends, err6 := newFrontends(kernel, d.Config().MapSizes.Maglev, tables.Frontends)
	if err := errors.Join(err1, err2, err4, err5, err6); err != nil {
		return nil, fmt.Errorf("read adopted maps: %w", err)
	}
	r.tables, r.known = []syncer{nodes, rules, known, endpoints, ipcache, frontends}, known
	r.local = endpoints
	for _, t := range r.tables {
		r.status[t.name()] = &Status{Table: t.name()}
	}
	return r, nil
}

// DropEndpoints takes those endpoints out of the adopted maps that gone says are no
// more, and returns their addresses. What is here is known without the keyspace,
// and an index that a device had may be another's by now. Call it before Run, and
// before programs are attached.
func (r *Reconciler) DropEndpoints(gone func(maps.Endpoint) bool) ([]netip.Addr, error) {
	return r.local.discard(gone)
}

// MarkComplete says that a table has all its rows: what the kernel has beyond
// them is deleted from now on. Names are the tables' own; an unknown one is an
// error.
func (r *Reconciler) MarkComplete(table string) error {
	r.mu.Lock()
	s, ok := r.status[table]
	if ok {
		s.Complete = true
	}
	r.mu.Unlock()
	if !ok {
		return fmt.Errorf("table %q: unknown", table)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

// Status is a copy of every table's status, in the order of writing.
func (r *Reconciler) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Status
	for _, t := range r.tables {
		s := *r.status[t.name()]
		s.Entries, s.Revision = t.rows()
		out = append(out, s)
	}
	return out
}

// Wait blocks until the kernel has a table's revision. It returns the context's
// error, or that Run has ended.
func (r *Reconciler) Wait(ctx context.Context, table string, revision uint64) error {
	for {
		r.mu.Lock()
		s, ok := r.status[table]
		done := ok && s.Reconciled >= revision
		changed, stopped := r.changed, r.stopped
		r.mu.Unlock()
		switch {
		case !ok:
			return fmt.Errorf("table %q: unknown", table)
		case done:
			return nil
		case stopped != nil:
			return fmt.Errorf("wait for %s at %d: %w", table, revision, stopped)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s at %d: %w", table, revision, ctx.Err())
		}
	}
}

// ErrStopped is returned by Wait after Run has ended.
var ErrStopped = errors.New("reconciler has stopped")

// Run reconciles until the context ends, and returns nil then. Errors of single
// writes are kept in the status and tried again with growing pauses.
func (r *Reconciler) Run(ctx context.Context) error {
	for _, t := range r.tables {
		t.subscribe()
		defer t.close()
	}
	defer r.stop()
	full := time.NewTicker(fullInterval)
	defer full.Stop()
	wake, cancel := r.merge(ctx)
	defer cancel()
	pause := retryMin
	for {
		if r.pass() {
			pause = retryMin
		} else {
			pause = min(2*pause, retryMax)
		}
		var retry <-chan time.Time
		if pause > retryMin {
			retry = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-retry:
		case <-full.C:
			r.repair()
		}
	}
}

// merge turns the tables' wake-ups and MarkComplete's into one channel. The
// goroutines end with the returned cancel.
func (r *Reconciler) merge(ctx context.Context) (<-chan struct{}, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan struct{}, 1)
	forward := func(in <-chan struct{}) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-in:
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}
	for _, t := range r.tables {
		go forward(t.woken())
	}
	go forward(r.wake)
	return out, cancel
}

// pass writes all changes, in order, and prunes what became complete.
//
// Tables are taken in the reverse order: what one of them has is written after
// what was there before it in those that it needs. So an identity is known, and an
// address has it, only after the rule sets say what it may. Identities that go are
// forgotten before the rule sets are.
func (r *Reconciler) pass() (ok bool) {
	ok = true
	for _, t := range slices.Backward(r.tables) {
		t.take()
	}
	if err := r.known.forget(); err != nil {
		ok = false // sync tells it
	}
	for _, t := range r.tables {
		revision, err := t.sync()
		r.mu.Lock()
		s := r.status[t.name()]
		prune := s.Complete && !s.Pruned && err == nil
		r.mu.Unlock()
		if prune {
			err = t.repair(true)
		}
		r.report(t.name(), revision, prune && err == nil, few(err))
		ok = ok && err == nil
	}
	return ok
}

// repair compares everything with the kernel.
func (r *Reconciler) repair() {
	for _, t := range r.tables {
		r.mu.Lock()
		prune := r.status[t.name()].Complete
		r.mu.Unlock()
		if err := t.repair(prune); err != nil {
			r.log.Error("comparing a table with the kernel", "table", t.name(), "error", few(err))
		}
	}
}

func (r *Reconciler) report(table string, revision uint64, pruned bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status[table]
	s.Pruned = s.Pruned || pruned
	if err != nil {
		if s.LastError != err.Error() {
			r.log.Error("writing a table to the kernel", "table", table, "error", err)
		}
		s.LastError = err.Error()
		return
	}
	s.LastError = ""
	s.Reconciled = revision
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Reconciler) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = ErrStopped
	close(r.changed)
	r.changed = make(chan struct{})
}
