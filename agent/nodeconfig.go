// SPDX-License-Identifier: Apache-2.0

package agent

import (
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
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
		p.noteRange(r.GetPodCidrs())
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

// noteRange keeps an IPv6 range that the cluster gave this node after its start,
// for its next one: devices, programs and records are made with the range. A node
// that was told its ranges wants no other. The caller holds mu.
func (p *publisher) noteRange(given []string) {
	if p.cfg.given.CIDR != p.cfg.PodCIDR || p.cfg.PodCIDR6.IsValid() || p.later.IsValid() {
		return
	}
	_, six := ranges(given)
	if !six.IsValid() {
		return
	}
	keep := p.cfg.given
	keep.CIDR6 = six
	if err := p.cfg.rememberPodCIDR(keep); err != nil {
		p.log.Error("keep the IPv6 range that this node was given", "error", err)
		return
	}
	p.later = six
	p.log.Info("this node was given an IPv6 range; pods get addresses of it when the agent has been restarted", "cidr", six)
}

// problems are what the cluster decided and is not in effect.
func (p *publisher) problems() []*hawserv1.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.later.IsValid() {
		return nil
	}
	return []*hawserv1.Problem{{
		Object: "node " + p.cfg.Node, Problem: "it was given the IPv6 range " + p.later.String() + ", and started before: its pods have IPv4 addresses only",
		Fix: "restart its agent; pods that are there get an IPv6 address when they are made anew",
	}}
}
