// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/election"
)

// officeWithin is how long WithdrawLeft waits for one import: who has it, and has
// not seen yet that the peer is gone, gives it back soon.
const officeWithin = 10 * time.Second

// WithdrawLeft removes what is here of peers whose record is gone without a leave;
// see peering.Store.Left. Call it now and then, not where an etcd is shared.
func (m *Manager) WithdrawLeft(ctx context.Context) error {
	names, err := m.store.Left(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		n, err := m.withdrawLeft(ctx, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("what is left of peer %s: %w", name, err))
			continue
		}
		m.log.Info("withdrew what was left of a peer that has no record", "peer", name, "keys_removed", n)
	}
	return errors.Join(errs...)
}

func (m *Manager) withdrawLeft(ctx context.Context, name string) (uint64, error) {
	wait, cancel := context.WithTimeout(ctx, officeWithin)
	defer cancel()
	lock, err := election.Acquire(wait, election.Config{Client: m.kv, Cluster: m.own(), Office: []string{"import", name}, Replica: m.cfg.Replica})
	if err != nil {
		return 0, err
	}
	defer lock.Release(ctx)
	return m.store.WithdrawLeft(ctx, name, lock.Fence())
}
