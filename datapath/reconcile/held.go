// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// An address must not have an identity before the rule sets have the entries that
// deny it. The order of a pass sees to that, unless a rule set could not be written.
// Then rows with an identity that is new to the kernel are written with the identity
// hidden, as unknown, and stay changed. Those of ipBlocks, which only ever allow,
// are written as they are.

// hold hides, in rows, the identities for which nobody vouches.
func (s *ipcache) hold(rows map[datapath.IPKey]datapath.IPEntry) {
	s.held = nil
	var used map[identity.Number]bool
	for k, row := range rows {
		if k.ClusterID == datapath.BlockSpace || s.vouch(row.Identity) {
			continue
		}
		if used == nil {
			used = s.used()
		}
		if used[row.Identity] {
			continue
		}
		row.Identity = 0
		row.Flags |= datapath.IPWithheld
		rows[k] = row
		s.held = append(s.held, k)
	}
}

// used are the identities that addresses have in the kernel.
func (s *ipcache) used() map[identity.Number]bool {
	out := map[identity.Number]bool{}
	for _, e := range s.hosts.have {
		out[identity.Number(e.Identity)] = true
	}
	for _, e := range s.prefix.have {
		out[identity.Number(e.Identity)] = true
	}
	return out
}

func (s *ipcache) requeueHeld() error {
	if len(s.held) == 0 {
		return nil
	}
	s.changes.Requeue(s.held...)
	return fmt.Errorf("%d addresses and prefixes: %w", len(s.held), errLagging)
}
