// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/allocator"
	"github.com/hawser-mesh/hawser/identity/labels"
)

// hold takes an identity and a rule set for an endpoint, once.
func (m *endpoints) hold(ctx context.Context, r *record, ls labels.Set) error {
	if m.isHeld(r) {
		return nil
	}
	number, err := m.number(ctx, r, ls)
	if err != nil {
		return fmt.Errorf("identity of %s: %w", r.workload(), err)
	}
	var set uint32
	err = m.engine.UpsertIdentity(number, m.cfg.Cluster, ls)
	if err == nil {
		set, err = m.engine.Acquire(r.subject(ls))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("rules of %s: %w", r.workload(), err), m.ids.Release(ctx, ls))
	}
	m.setHeld(r, true)
	r.Identity, r.RuleSet, r.IdentityLabels = number, set, ls.Strings()
	return m.keep(r)
}

// number is the identity of an endpoint: a restored one keeps its own, which
// is confirmed with the store when all are restored, unless other labels count
// now.
func (m *endpoints) number(ctx context.Context, r *record, ls labels.Set) (identity.Number, error) {
	was, err := r.remembered()
	if err == nil && r.State == stateRestoring && r.Identity != identity.Unknown && was.Equal(ls) {
		return r.Identity, m.ids.Adopt(ctx, ls, r.Identity)
	}
	return m.ids.Allocate(ctx, ls)
}

// renumber moves the endpoints with a number to the one that their labels have
// now.
func (m *endpoints) renumber(ctx context.Context, move allocator.Move) {
	for _, e := range m.snapshot() {
		if e.Identity != move.Old || !m.isHeld(e) {
			continue
		}
		if err := m.renumberOne(ctx, e.key(), move); err != nil {
			m.log.Error("move endpoint to another identity", "endpoint", e.ID, "old", move.Old, "new", move.New, "error", err)
		}
	}
}

func (m *endpoints) renumberOne(ctx context.Context, key string, move allocator.Move) error {
	unlock, err := m.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r := m.get(key)
	if r == nil || r.Identity != move.Old {
		return nil
	}
	if err := m.engine.UpsertIdentity(move.New, m.cfg.Cluster, move.Set); err != nil {
		return err
	}
	r.Identity = move.New
	if err := m.keep(r); err != nil {
		return err
	}
	return m.enlist(ctx, r)
}

// release undoes hold.
func (m *endpoints) release(ctx context.Context, r *record) error {
	if !m.isHeld(r) {
		return nil
	}
	ls, err := r.identityLabels(m.filter)
	if err != nil {
		return err
	}
	m.setHeld(r, false)
	m.engine.Release(r.subject(ls))
	m.flush()
	return m.ids.Release(ctx, ls)
}

func (m *endpoints) isHeld(r *record) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holds[r.key()]
}

func (m *endpoints) setHeld(r *record, held bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if held {
		m.holds[r.key()] = true
	} else {
		delete(m.holds, r.key())
	}
}
