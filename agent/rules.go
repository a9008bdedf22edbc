// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/observe"
	"github.com/hawser-mesh/hawser/policy"
)

func (c *Config) scope() policy.Scope { return cmp.Or(c.PolicyScope, policy.ScopeLocal) }
func (c *Config) mode() policy.Mode   { return cmp.Or(c.PolicyMode, policy.ModeDefault) }

// ListRules implements hawserv1.NodeServer.
func (s *service) ListRules(_ context.Context, q *hawserv1.ListRulesRequest) (*hawserv1.ListRulesResponse, error) {
	sets := map[uint32]bool{}
	for _, e := range s.a.endpoints.snapshot() {
		if q.GetEndpointId() == 0 || q.GetEndpointId() == uint32(e.ID) {
			sets[e.RuleSet] = true
		}
	}
	if q.GetEndpointId() != 0 && len(sets) == 0 {
		return nil, status.Errorf(codes.NotFound, "no endpoint %d on node %s; see: hawser endpoint list", q.GetEndpointId(), s.a.cfg.Node)
	}
	r := &hawserv1.ListRulesResponse{}
	for id := range sets {
		rs, _ := s.a.tables.RuleSets.Get(id)
		for k, e := range rs.Entries {
			row := s.rule(id, k, e)
			row.Audited = rs.Audit && e.Deny
			row.Hits = s.hits(maps.EncodePolicyKey(id, k))
			r.Entries = append(r.Entries, row)
		}
		r.Entries = append(r.Entries, s.defaults(id, rs)...)
	}
	slices.SortFunc(r.GetEntries(), func(a, b *hawserv1.RuleEntry) int { return int(a.GetRuleSet()) - int(b.GetRuleSet()) })
	return r, nil
}

// hits is how often an entry decided; 0 when the kernel does not have it yet.
func (s *service) hits(k maps.PolicyKey) uint64 {
	var e maps.PolicyEntry
	if s.a.dp.Maps().Policy.Lookup(k, &e) != nil {
		return 0
	}
	return e.Hits
}

// defaults are what a rule set does with what no entry matches.
func (s *service) defaults(set uint32, rs datapath.RuleSet) (out []*hawserv1.RuleEntry) {
	for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
		if d == datapath.Ingress && !rs.Ingress || d == datapath.Egress && !rs.Egress {
			continue
		}
		out = append(out, &hawserv1.RuleEntry{
			RuleSet: set, Direction: d.String(), Protocol: "any", Verdict: "deny", DefaultDeny: true, Audited: rs.Audit,
			Origin: s.a.view.Origin(set, d, 0), Hits: s.hits(maps.DefaultKey(set, d)),
		})
	}
	return out
}

func (s *service) rule(set uint32, k datapath.PolicyKey, e datapath.PolicyEntry) *hawserv1.RuleEntry {
	row := &hawserv1.RuleEntry{
		RuleSet: set, Direction: k.Direction.String(), Identity: uint32(k.Identity), Protocol: "any",
		Port: uint32(k.Port), Verdict: "allow", Origin: s.a.view.Origin(set, k.Direction, e.Origin),
	}
	if k.PortWild != 0 {
		row.EndPort = uint32(k.Port) | (1<<k.PortWild - 1)
	}
	if k.Protocol != 0 {
		row.Protocol = observe.ProtocolName(k.Protocol)
	}
	if e.Deny {
		row.Verdict = "deny"
	} else if e.Origin == 0 {
		row.Origin = "always"
	}
	if k.Identity != identity.Unknown {
		row.Labels = s.a.view.Labels(k.Identity)
	}
	return row
}

// SetEndpoint implements hawserv1.NodeServer.
func (s *service) SetEndpoint(ctx context.Context, q *hawserv1.SetEndpointRequest) (*hawserv1.SetEndpointResponse, error) {
	for _, e := range s.a.endpoints.snapshot() {
		if uint32(e.ID) == q.GetId() {
			r, err := s.a.endpoints.setAudit(ctx, e.key(), q.GetPolicyAudit())
			if err != nil {
				return nil, err
			}
			return &hawserv1.SetEndpointResponse{Endpoint: s.a.endpoints.describe(r)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no endpoint %d on node %s; see: hawser endpoint list", q.GetId(), s.a.cfg.Node)
}

// setAudit moves an endpoint to the rule set that is audited, or back, and returns
// when the kernel has it: its open connections are judged again by it.
func (m *endpoints) setAudit(ctx context.Context, key string, audit bool) (*record, error) {
	unlock, err := m.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r := m.get(key)
	if r == nil || r.State != stateReady || !m.isHeld(r) {
		return nil, status.Error(codes.Unavailable, "the endpoint is being made, restored or deleted: try again")
	}
	if r.Audit == audit {
		return r, nil
	}
	ls, err := r.identityLabels(m.filter)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	old := r.subject(ls)
	r.Audit = audit
	if r.RuleSet, err = m.engine.Acquire(r.subject(ls)); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	if err := m.keep(r); err != nil {
		m.log.Error("keep endpoint", "endpoint", r.ID, "error", err) // until a restart
	}
	m.flush()
	err = m.install(ctx, r)
	m.engine.Release(old)
	m.flush()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	m.log.Info("audit of endpoint", "endpoint", r.ID, "workload", r.workload(), "on", audit)
	return r, nil
}

// install brings an endpoint's row and rule set into the kernel.
func (m *endpoints) install(ctx context.Context, r *record) error {
	m.setRow(r)
	for name, rev := range map[string]uint64{
		m.tables.RuleSets.Name(): m.tables.RuleSets.Revision(), m.tables.Endpoints.Name(): m.tables.Endpoints.Revision(),
	} {
		if err := m.kernel.Wait(ctx, name, rev); err != nil {
			return fmt.Errorf("bring %s into the kernel: %w", r.workload(), err)
		}
	}
	return nil
}
