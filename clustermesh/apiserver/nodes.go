// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/kvstore"
)

// parameters are what a node must know of this cluster.
func (s *Server) parameters() *hawserv1.ClusterParameters {
	p := &hawserv1.ClusterParameters{
		Name: s.cfg.Cluster, EtcdEndpoints: s.etcdEndpoints(),
		ClusterBits: s.cfg.ClusterBits, TunnelPort: uint32(s.cfg.TunnelPort),
	}
	if api := s.cfg.advertisedAPI(); api != "" {
		p.ApiEndpoints = []string{api}
	}
	return p
}

// openEnrolment makes the service that admits nodes, and etcd's users what it
// remembers.
func (s *Server) openEnrolment(ctx context.Context) error {
	d := enrol.Deps{
		CA: s.creds.authority(), KV: s.kv, Parameters: s.parameters, Lifetime: s.cfg.NodeCertificates, Now: time.Now, Log: s.log,
	}
	if s.etcd != nil {
		d.Access = s.etcd.Root()
	}
	s.enrol = enrol.NewService(d)
	return s.enrol.Reconcile(ctx)
}

// InviteNode makes a token with which one host joins as a node, once.
func (s *Server) InviteNode(ctx context.Context, r *hawserv1.InviteNodeRequest) (*hawserv1.InviteNodeResponse, error) {
	token, err := s.enrol.Invite(ctx, r.GetNode(), time.Duration(r.GetTtlSeconds())*time.Second)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &hawserv1.InviteNodeResponse{Token: token.String(), ExpiresAt: token.Expires.UnixNano()}, nil
}

// ForgetNode removes a node that will not come back. What it wrote goes before
// its enrolment, so that a repetition after an error finishes it.
func (s *Server) ForgetNode(ctx context.Context, r *hawserv1.ForgetNodeRequest) (*hawserv1.ForgetNodeResponse, error) {
	node := r.GetNode()
	_, present, err := get[*keyspacev1.Presence](ctx, s, kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindPresence, node))
	if err != nil {
		return nil, apiError(err)
	}
	if present && !r.GetForce() {
		return nil, status.Errorf(codes.FailedPrecondition,
			"node %s is present: stop its agent and wait a minute, or use --force; a running agent would write its keys again", node)
	}
	count, err := s.removeNode(ctx, node)
	if err != nil {
		return nil, apiError(err)
	}
	was, err := s.enrol.Forget(ctx, node)
	if err != nil {
		return nil, apiError(err)
	}
	if was != nil && s.enrol.Access != nil {
		// An agent that runs puts back what is removed, until it is cut off.
		if _, err := s.removeNode(ctx, node); err != nil {
			return nil, apiError(fmt.Errorf("forgot node %s, but not what its agent wrote since: %w; try again", node, err))
		}
	}
	// Also when nothing is found: an earlier attempt may have ended here.
	if err := s.replaceGossipKeys(ctx); err != nil {
		return nil, apiError(fmt.Errorf("forgot node %s, but the gossip keys that it knows are not replaced: %w; try again", node, err))
	}
	if count == 0 && was == nil {
		return nil, status.Errorf(codes.NotFound, "no node %q in cluster %s, or not any more: nothing of it is left; see: hawser node list", node, s.cfg.Cluster)
	}
	s.log.Info("node forgotten", "node", node, "keys", count, "enrolled", was != nil)
	return &hawserv1.ForgetNodeResponse{
		KeysRemoved: uint64(count), WasEnrolled: was != nil, CertificateExpiresAt: was.GetExpiresAt(),
		CutOff: was != nil && s.enrol.Access != nil,
	}, nil
}

// removeNode removes what a node wrote and what was decided for it, and returns
// how many keys that were.
func (s *Server) removeNode(ctx context.Context, node string) (count int, err error) {
	keys, err := s.keysOf(ctx, node)
	if err != nil {
		return 0, err
	}
	ranges, err := s.podCIDROwners(ctx)
	if err != nil {
		return 0, err
	}
	// What was decided for it goes in one transaction with all that shows that it is
	// a node: else the leader would put it back.
	config, record := s.nodeConfigKey(node).String(), s.nodeKey(node).String()
	rest, last := []kvstore.Op{}, []kvstore.Op{kvstore.Delete(config), kvstore.Delete(record)}
	for _, k := range keys {
		if k != config && k != record {
			rest = append(rest, kvstore.Delete(k))
		}
	}
	for p, owner := range ranges {
		if owner == node {
			keys = append(keys, s.podCIDRKey(p).String())
			last = append(last, kvstore.Delete(s.podCIDRKey(p).String()))
		}
	}
	for _, ops := range [][]kvstore.Op{rest, last} {
		if err := s.commit(ctx, ops); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
}

// keysOf lists all that a node wrote about itself, its node record last.
func (s *Server) keysOf(ctx context.Context, node string) ([]string, error) {
	var keys []string
	add := func(kv kvstore.KV) { keys = append(keys, kv.Key) }
	ips, err := list[*keyspacev1.IPEntry](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindIP)
	if err != nil {
		return nil, err
	}
	for _, r := range ips {
		if r.msg.GetNode() == node {
			add(r.kv)
		}
	}
	vteps, err := list[*keyspacev1.VTEP](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindVTEP)
	if err != nil {
		return nil, err
	}
	for _, r := range vteps {
		if r.msg.GetNode() == node {
			add(r.kv)
		}
	}
	for _, dir := range []struct {
		sub  kvstore.Subtree
		kind kvstore.Kind
	}{
		{kvstore.State, kvstore.KindSlice}, {kvstore.Local, kvstore.KindSlice}, {kvstore.Local, kvstore.KindRef},
		{kvstore.Local, kvstore.KindStatus}, {kvstore.Local, kvstore.KindNodeConfig}, {kvstore.Local, kvstore.KindPresence},
		{kvstore.State, kvstore.KindHealth}, {kvstore.State, kvstore.KindNode},
	} {
		if err := s.eachNamed(ctx, kvstore.KindPrefix(dir.sub, s.cfg.Cluster, dir.kind), node, add); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// eachNamed calls fn for the keys below a prefix whose last name is the node.
func (s *Server) eachNamed(ctx context.Context, prefix, node string, fn func(kvstore.KV)) error {
	for after := ""; ; {
		page, err := s.kv.List(ctx, prefix, after, pageSize, 0)
		if err != nil {
			return err
		}
		for _, kv := range page.KVs {
			after = kv.Key
			key, err := kvstore.ParseKey(kv.Key)
			if err != nil || len(key.Names) == 0 {
				continue
			}
			// A node's further slices of one service are <node>~<n>.
			if name, _, _ := strings.Cut(key.Names[len(key.Names)-1], "~"); name == node {
				fn(kv)
			}
		}
		if !page.More {
			return nil
		}
	}
}
