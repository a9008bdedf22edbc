// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

// States of an identity in listings.
const (
	identityReserved = "reserved"
	identityUsed     = "used"    // by a node of this cluster
	identityUnused   = "unused"  // by none: the collector will retire it
	identityRetired  = "retired" // not to be given again yet
	identityRemote   = "remote"  // a peer's; who uses it only that knows
)

// fewLeft is the part of a range, in percent, that is a problem if no more of it
// is free.
const fewLeft = 5

// ListIdentities lists the reserved identities, those of all clusters, and the
// retired numbers of this one.
func (s *Server) ListIdentities(ctx context.Context, _ *hawserv1.ListIdentitiesRequest) (*hawserv1.ListIdentitiesResponse, error) {
	resp := &hawserv1.ListIdentitiesResponse{}
	for n := identity.Number(1); n <= identity.MaxReserved; n++ {
		if name, _ := n.Reserved(); name != "" {
			resp.Identities = append(resp.Identities, &hawserv1.IdentityInfo{
				Number: uint32(n), Labels: []string{labels.Reserved + ":" + name}, State: identityReserved,
			})
		}
	}
	own, err := s.ownIdentities(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	resp.Identities = append(resp.Identities, own...)
	rows, err := listAll[*keyspacev1.Identity](ctx, s, kvstore.KindIdentity)
	if err != nil {
		return nil, apiError(err)
	}
	for _, r := range rows {
		if r.key.Cluster != s.cfg.Cluster {
			resp.Identities = append(resp.Identities, &hawserv1.IdentityInfo{
				Number: r.msg.GetNumber(), Cluster: r.key.Cluster, Labels: r.msg.GetLabels(), State: identityRemote,
			})
		}
	}
	slices.SortFunc(resp.GetIdentities(), func(a, b *hawserv1.IdentityInfo) int { return cmp.Compare(a.GetNumber(), b.GetNumber()) })
	return resp, nil
}

// ownIdentities are the numbers of this cluster, in use or not.
func (s *Server) ownIdentities(ctx context.Context) ([]*hawserv1.IdentityInfo, error) {
	survey, err := collector.Look(ctx, s.kv, s.cfg.Cluster)
	if err != nil {
		return nil, err
	}
	var out []*hawserv1.IdentityInfo
	for n, id := range survey.IDs {
		info := &hawserv1.IdentityInfo{
			Number: uint32(n), Cluster: s.cfg.Cluster, Labels: id.Labels.Strings(), Nodes: survey.Nodes[n], State: identityUsed,
		}
		if !survey.Used(n) {
			info.State = identityUnused
		}
		out = append(out, info)
	}
	if len(survey.Retired) == 0 {
		return out, nil
	}
	gate, err := s.retirement(ctx)
	if err != nil {
		return nil, err
	}
	for n, r := range survey.Retired {
		if _, back := survey.IDs[n]; back {
			continue
		}
		out = append(out, &hawserv1.IdentityInfo{
			Number: uint32(n), Cluster: s.cfg.Cluster, State: identityRetired, Since: r.Since.UnixNano(), WaitsFor: gate.WaitsFor(r),
		})
	}
	return out, nil
}

// identityProblem says how many numbers of the range are free, and that it is
// used up, or nearly; nil when it is not.
func (s *Server) identityProblem(ctx context.Context, first, last identity.Number) (*hawserv1.Problem, int, error) {
	survey, err := collector.Look(ctx, s.kv, s.cfg.Cluster)
	if err != nil {
		return nil, 0, err
	}
	all, free := int(last-first), survey.Free(first, last)
	if free*100 > all*fewLeft {
		return nil, free, nil
	}
	what := fmt.Sprintf("only %d of %d numbers are left", free, all)
	if free <= 0 {
		what = fmt.Sprintf("all %d numbers are used up: workloads with new labels cannot start", all)
	}
	return &hawserv1.Problem{
		Object:  fmt.Sprintf("identities %d-%d", first+1, last),
		Problem: fmt.Sprintf("%s (%d in the store, %d retired)", what, len(survey.IDs), len(survey.Retired)),
		Fix:     "see what they are and what retired ones wait for: hawser identity list; leave out labels that differ from pod to pod: hawser-agent --labels",
	}, free, nil
}
