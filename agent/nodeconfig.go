// SPDX-License-Identifier: Apache-2.0

package agent

import (
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// configure takes what the cluster decided for this node out of a batch of
// local/<own>/: whether its backends are drained.
func (p *publisher) configure(b store.Batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	drained := p.drained
	for _, c := range b.Changes {
		if c.Key.Kind != kvstore.KindNodeConfig || c.Key.Names[0] != p.cfg.Node {
			continue
		}
		r, _ := c.Record.(*keyspacev1.NodeConfig) // nil when it was deleted
		drained = r.GetDrained()
	}
	first := b.Listed && !p.configured
	if drained != p.drained {
		p.log.Info("the node's backends", "drained", drained)
	}
	if drained != p.drained || first {
		p.wakeSlices()
	}
	p.drained, p.configured = drained, p.configured || b.Listed
}
