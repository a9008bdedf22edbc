// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// What an apply or a delete did to an object.
const (
	actionCreated    = "created"
	actionConfigured = "configured"
	actionUnchanged  = "unchanged"
	actionDeleted    = "deleted"
	dryRunSuffix     = " (dry run)"
)

func (s *Server) policyKey(namespace, name string) kvstore.Key {
	return kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindPolicy, namespace, name)
}

// ApplyPolicy stores the objects of a manifest. Either all objects are valid and
// stored, in one transaction for up to 128 of them, or none is. An object that
// somebody else changes at the same time is looked at again; the later one wins.
func (s *Server) ApplyPolicy(ctx context.Context, r *hawserv1.ApplyPolicyRequest) (*hawserv1.ApplyPolicyResponse, error) {
	objects, err := api.Parse([]byte(r.GetSource()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := policy.Check(objects...); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	resp := &hawserv1.ApplyPolicyResponse{Warnings: s.policyWarnings(ctx, objects)}
	err = cas.Retry(ctx, func() error {
		var ws []cas.Write
		before := resp.GetObjects()
		resp.Objects = nil
		for i, o := range objects {
			applied, w, err := s.planPolicy(ctx, o)
			if err != nil {
				return err
			}
			if i < len(before) && applied.Action == actionUnchanged {
				applied.Action = before[i].GetAction() // by a transaction before
			}
			resp.Objects = append(resp.Objects, applied)
			if w != nil {
				ws = append(ws, *w)
			}
		}
		if r.GetDryRun() {
			return nil
		}
		return s.commitPolicies(ctx, ws)
	})
	if err != nil {
		return nil, apiError(err)
	}
	if r.GetDryRun() {
		markDryRun(resp.GetObjects())
	}
	return resp, nil
}

// planPolicy is what storing an object does, and the write, unless it is stored
// already.
func (s *Server) planPolicy(ctx context.Context, o api.Object) (*hawserv1.AppliedObject, *cas.Write, error) {
	key := s.policyKey(o.Namespace, o.Name)
	old, found, err := s.storedPolicy(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	applied := &hawserv1.AppliedObject{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Action: actionCreated}
	switch {
	case found && old.msg.GetSource() == o.Source && old.msg.GetKind() == o.Kind:
		applied.Action = actionUnchanged
		return applied, nil, nil
	case found && old.msg != nil && old.msg.GetKind() != o.Kind:
		return nil, nil, status.Errorf(codes.FailedPrecondition,
			"%s %s: a %s of that name exists; delete it first: hawser policy delete -n %s %s",
			o.Kind, o.ID(), old.msg.GetKind(), o.Namespace, o.Name)
	case found:
		applied.Action = actionConfigured
	}
	m := &keyspacev1.PolicyObject{
		Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Source: o.Source,
		Revision: old.msg.GetRevision() + 1, UpdatedAt: time.Now().UnixNano(),
	}
	if found && old.msg == nil {
		m.Revision = uint64(old.kv.ModRevision) // above any that nodes have seen
	}
	if _, err := kvstore.Encode(key, m); err != nil {
		return nil, nil, err
	}
	return applied, &cas.Write{Key: key.String(), Rev: old.kv.ModRevision, Msg: m}, nil
}

// storedPolicy reads a policy. One that cannot be read is found, with a nil msg:
// it can be written over and deleted.
func (s *Server) storedPolicy(ctx context.Context, key kvstore.Key) (old stored[*keyspacev1.PolicyObject], found bool, err error) {
	kv, _, err := s.kv.Get(ctx, key.String())
	if err != nil || kv == nil {
		return old, false, err
	}
	old, err = decode[*keyspacev1.PolicyObject](*kv)
	if bad := (*kvstore.BadRecord)(nil); errors.As(err, &bad) {
		return stored[*keyspacev1.PolicyObject]{key: key, kv: *kv}, true, nil
	}
	return old, err == nil, err
}

// commitPolicies writes if nobody else did meanwhile, in as few transactions as
// allowed.
func (s *Server) commitPolicies(ctx context.Context, ws []cas.Write) error {
	for chunk := range slices.Chunk(ws, kvstore.MaxTxnOps) {
		if err := cas.Commit(ctx, s.kv, chunk...); errors.Is(err, cas.ErrConflict) {
			return fmt.Errorf("policies: %w", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func markDryRun(objects []*hawserv1.AppliedObject) {
	for _, o := range objects {
		o.Action += dryRunSuffix
	}
}

// commit stores operations, as few transactions as allowed.
func (s *Server) commit(ctx context.Context, ops []kvstore.Op) error {
	for chunk := range slices.Chunk(ops, kvstore.MaxTxnOps) {
		if _, err := s.kv.Txn(ctx, nil, chunk, nil); err != nil {
			return err
		}
	}
	return nil
}

// DeletePolicy deletes one object by name, or those of a manifest.
func (s *Server) DeletePolicy(ctx context.Context, r *hawserv1.DeletePolicyRequest) (*hawserv1.DeletePolicyResponse, error) {
	objects := []api.Object{{Namespace: r.GetNamespace(), Name: r.GetName()}}
	if r.GetSource() != "" {
		var err error
		if objects, err = api.Parse([]byte(r.GetSource())); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	resp := &hawserv1.DeletePolicyResponse{}
	var ws []cas.Write
	for _, o := range objects {
		key := s.policyKey(o.Namespace, o.Name)
		old, found, err := s.storedPolicy(ctx, key)
		if err != nil {
			return nil, apiError(err)
		}
		if !found {
			return nil, status.Errorf(codes.NotFound, "no policy %s; nothing was deleted; see: hawser policy list", o.ID())
		}
		ws = append(ws, cas.Write{Key: key.String(), Rev: old.kv.ModRevision})
		resp.Objects = append(resp.Objects, &hawserv1.AppliedObject{
			Kind: old.msg.GetKind(), Namespace: o.Namespace, Name: o.Name, Action: actionDeleted,
		})
	}
	if err := s.commitPolicies(ctx, ws); err != nil {
		return nil, apiError(err)
	}
	return resp, nil
}

// ListPolicies lists the stored objects by namespace and name.
func (s *Server) ListPolicies(ctx context.Context, _ *hawserv1.ListPoliciesRequest) (*hawserv1.ListPoliciesResponse, error) {
	rows, bad, err := listBad[*keyspacev1.PolicyObject](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPolicy)
	if err != nil {
		return nil, apiError(err)
	}
	resp, stored := &hawserv1.ListPoliciesResponse{}, map[string]int64{}
	for _, b := range bad {
		info := &hawserv1.PolicyInfo{Name: b.kv.Key, Selects: "unreadable: " + b.err.Error()}
		if k, err := kvstore.ParseKey(b.kv.Key); err == nil {
			info.Namespace, info.Name = k.Names[0], k.Names[1]
		}
		stored[info.GetNamespace()+"/"+info.GetName()] = b.kv.ModRevision
		resp.Policies = append(resp.Policies, info)
	}
	for _, r := range rows {
		info := &hawserv1.PolicyInfo{
			Namespace: r.msg.GetNamespace(), Name: r.msg.GetName(), Kind: r.msg.GetKind(),
			Revision: r.msg.GetRevision(), Source: r.msg.GetSource(), UpdatedAt: r.msg.GetUpdatedAt(),
		}
		if objects, err := api.Parse([]byte(r.msg.GetSource())); err != nil {
			info.Selects = "unreadable: " + err.Error()
		} else {
			var selects []string
			for _, o := range objects {
				info.Rules += uint32(len(o.Rules))
				selects = append(selects, o.Selects()...)
			}
			info.Selects = strings.Join(selects, "; ")
		}
		stored[info.GetNamespace()+"/"+info.GetName()] = r.kv.ModRevision
		resp.Policies = append(resp.Policies, info)
	}
	slices.SortFunc(resp.GetPolicies(), func(a, b *hawserv1.PolicyInfo) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	if resp.Nodes, err = s.rollouts(ctx, stored); err != nil {
		return nil, apiError(err)
	}
	return resp, nil
}

// policyProblems are the stored policies that nobody can read. An agent that
// knew the former one goes on with it until it ends; one that starts has none.
func (s *Server) policyProblems(ctx context.Context) ([]*hawserv1.Problem, error) {
	_, bad, err := listBad[*keyspacev1.PolicyObject](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPolicy)
	var out []*hawserv1.Problem
	for _, b := range bad {
		name := strings.TrimPrefix(b.kv.Key, kvstore.Root)
		fix := "apply it again, or: hawser kvstore del " + name + " --write"
		if k, err := kvstore.ParseKey(b.kv.Key); err == nil {
			fix = fmt.Sprintf("apply it again, or delete it: hawser policy delete -n %s %s", k.Names[0], k.Names[1])
		}
		out = append(out, &hawserv1.Problem{
			Object: "policy", Problem: b.err.Error() + ": running nodes keep what it said; those that start judge no pod anew", Fix: fix,
		})
	}
	return out, err
}
