// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"slices"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// rollouts say for each node of this cluster which of the stored policies (name to
// revision of the key) it has not said to have in its kernel. What a node still
// enforces of a deleted one only that node knows.
func (s *Server) rollouts(ctx context.Context, stored map[string]int64) ([]*hawserv1.PolicyRollout, error) {
	nodes, err := list[*keyspacev1.Node](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindNode)
	if err != nil {
		return nil, err
	}
	rows, err := list[*keyspacev1.NodeStatus](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindStatus)
	if err != nil {
		return nil, err
	}
	said := map[string]*keyspacev1.NodeStatus{}
	for _, r := range rows {
		said[r.msg.GetNode()] = r.msg
	}
	var out []*hawserv1.PolicyRollout
	for _, n := range nodes {
		name := n.msg.GetName()
		st := said[name]
		r := &hawserv1.PolicyRollout{Node: name, Scope: st.GetPolicyScope(), Mode: st.GetPolicyMode(), Audit: st.GetPolicyAudit(), Problems: map[string]string{}}
		enforced := st.GetEnforced()[string(kvstore.KindPolicy)]
		if st.GetIncarnation() != s.incarnation {
			enforced = 0 // it speaks of another history's revisions
		}
		for id, revision := range stored {
			if revision > enforced {
				r.Missing = append(r.Missing, id)
			}
			if p := st.GetPolicyProblems()[id]; p != "" {
				r.Problems[id] = p
			}
		}
		slices.Sort(r.GetMissing())
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *hawserv1.PolicyRollout) int { return strings.Compare(a.GetNode(), b.GetNode()) })
	return out, nil
}
