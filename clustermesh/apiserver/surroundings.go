// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"net/netip"
	"strings"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// completeEnd adds what the keyspace says of an end's address: its names for
// ports. It returns its node, if it is known.
func (s *Server) completeEnd(ctx context.Context, end *trace.End) (node string, err error) {
	cluster, _ := end.Labels.Get(labels.Mesh, labels.ClusterKey)
	if cluster == "" || !end.Addr.IsValid() {
		return "", nil
	}
	key := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIP, netip.PrefixFrom(end.Addr, end.Addr.BitLen()).String())
	r, found, err := get[*keyspacev1.IPEntry](ctx, s, key)
	if err != nil || !found {
		return "", err
	}
	end.PortsKnown = true
	for _, p := range r.msg.GetNamedPorts() {
		end.Ports = append(end.Ports, policy.NamedPort{Name: p.GetName(), Protocol: uint8(p.GetProtocol()), Port: uint16(p.GetPort())})
	}
	return r.msg.GetNode(), nil
}

// enforcement is how the end's node was told to enforce policy, or all nodes when
// they agree; note says when that is not known.
func (s *Server) enforcement(ctx context.Context, node string, q *trace.Question) (note string, err error) {
	rows, err := list[*keyspacev1.NodeStatus](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindStatus)
	if err != nil {
		return "", err
	}
	type told struct {
		scope, mode string
		audit       bool
	}
	ways := map[told]bool{}
	for _, r := range rows {
		way := told{r.msg.GetPolicyScope(), r.msg.GetPolicyMode(), r.msg.GetPolicyAudit()}
		if way.scope == "" {
			continue
		}
		if r.msg.GetNode() == node {
			ways = map[told]bool{way: true}
			break
		}
		ways[way] = true
	}
	if len(ways) == 1 {
		for way := range ways {
			q.Scope, q.Mode, q.Audit = policy.Scope(way.scope), policy.Mode(way.mode), way.audit
		}
		return "", nil
	}
	if len(ways) > 1 {
		return "the nodes of " + s.cfg.Cluster + " enforce policy differently, and which node it is on is not known: answered for the defaults", nil
	}
	return "no node of " + s.cfg.Cluster + " has said how it enforces policy: answered for the defaults", nil
}

// servedServices are the services that policies name, with who serves them.
func (s *Server) servedServices(ctx context.Context, objects []api.Object) ([]trace.Service, error) {
	names := trace.ServicesOf(objects)
	if len(names) == 0 {
		return nil, nil
	}
	merged, err := s.mergeServices(ctx)
	if err != nil {
		return nil, err
	}
	byNumber := map[uint32]labels.Set{}
	ids, err := listAll[*keyspacev1.Identity](ctx, s, kvstore.KindIdentity)
	if err != nil {
		return nil, err
	}
	for _, r := range ids {
		if set, err := labels.ParseSet(r.msg.GetLabels(), labels.Any); err == nil {
			byNumber[r.msg.GetNumber()] = set
		}
	}
	var out []trace.Service
	for _, name := range names {
		namespace, short, _ := strings.Cut(name, "/")
		v, _ := merged.Get(namespace, short)
		service := trace.Service{Name: name}
		for _, b := range v.Backends {
			service.Addrs = append(service.Addrs, b.Addr)
			key := kvstore.NewKey(kvstore.State, b.Cluster, kvstore.KindIP, netip.PrefixFrom(b.Addr, b.Addr.BitLen()).String())
			ip, found, err := get[*keyspacev1.IPEntry](ctx, s, key)
			if err != nil {
				return nil, err
			}
			if set, ok := byNumber[ip.msg.GetIdentity()]; found && ok {
				service.Labels = append(service.Labels, set)
			}
		}
		out = append(out, service)
	}
	return out, nil
}

// maxWarnings bounds what an apply says about one request.
const maxWarnings = 20

// policyWarnings are what objects may not be meant to say. A keyspace that does
// not answer fails the apply that follows, not this.
func (s *Server) policyWarnings(ctx context.Context, objects []api.Object) []string {
	rows, err := listAll[*keyspacev1.Identity](ctx, s, kvstore.KindIdentity)
	if err != nil {
		return nil
	}
	var nodes trace.Question
	if _, err := s.enforcement(ctx, "", &nodes); err != nil {
		return nil
	}
	around := trace.Surroundings{Cluster: s.cfg.Cluster, Scope: nodes.Scope, KubeAPIServers: s.cfg.KubeAPIServers}
	for _, r := range rows {
		if set, err := labels.ParseSet(r.msg.GetLabels(), labels.Any); err == nil {
			around.Identities = append(around.Identities, trace.Identity{Number: identity.Number(r.msg.GetNumber()), Cluster: r.key.Cluster, Labels: set})
		}
	}
	if len(trace.ServicesOf(objects)) > 0 {
		if merged, err := s.mergeServices(ctx); err == nil {
			around.Services = map[string]bool{}
			for _, v := range merged.List() {
				around.Services[v.Service.GetNamespace()+"/"+v.Service.GetName()] = len(v.Backends) > 0
			}
		}
	}
	var out []string
	for _, f := range trace.Lint(around, objects) {
		if len(out) == maxWarnings {
			return append(out, "and more; see: hawser policy lint")
		}
		out = append(out, f.String())
	}
	return out
}
