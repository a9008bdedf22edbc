// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// What NodeInfo.drain says.
const (
	nodeDraining = "draining" // some backend of the node still takes new connections
	nodeDrained  = "drained"
)

func (s *Server) nodeConfigKey(node string) kvstore.Key {
	return kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindNodeConfig, node)
}

func (s *Server) nodeKey(node string) kvstore.Key {
	return kvstore.NewKey(kvstore.State, s.cfg.Cluster, kvstore.KindNode, node)
}

// DrainNode has a node's agent publish its backends as in maintenance, or as
// before.
func (s *Server) DrainNode(ctx context.Context, r *hawserv1.DrainNodeRequest) (*hawserv1.DrainNodeResponse, error) {
	node := r.GetNode()
	_, known, err := get[*keyspacev1.Node](ctx, s, s.nodeKey(node))
	if err != nil {
		return nil, apiError(err)
	}
	if !known {
		return nil, status.Errorf(codes.NotFound, "no node %q in cluster %s; see: hawser node list", node, s.cfg.Cluster)
	}
	if !r.GetUndrain() && !r.GetForce() {
		if err := s.mayDrain(ctx, node); err != nil {
			return nil, err
		}
	}
	changed, err := s.changeNodeConfig(ctx, node, func(c *keyspacev1.NodeConfig) {
		if c.GetDrained() == r.GetUndrain() {
			c.Drained, c.DrainedSince = !r.GetUndrain(), 0
			if c.GetDrained() {
				c.DrainedSince = time.Now().UnixNano()
			}
		}
	})
	if err != nil {
		return nil, apiError(err)
	}
	if changed {
		s.log.Info("node drained", "node", node, "drained", !r.GetUndrain())
	}
	resp := &hawserv1.DrainNodeResponse{Changed: changed}
	_, resp.Present, err = get[*keyspacev1.Presence](ctx, s, kvstore.NewKey(kvstore.Local, s.cfg.Cluster, kvstore.KindPresence, node))
	if err != nil {
		return nil, apiError(err)
	}
	taking, all, err := s.backendsOf(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	resp.Backends = uint64(all[node])
	if !r.GetUndrain() {
		resp.Drain = drainState(taking[node])
	}
	return resp, nil
}

// mayDrain refuses to leave services of this cluster without a backend that
// takes new connections.
func (s *Server) mayDrain(ctx context.Context, node string) error {
	merged, err := s.mergeServices(ctx)
	if err != nil {
		return apiError(err)
	}
	var left []string
	for _, v := range merged.List() {
		if here, elsewhere := takers(v, s.cfg.Cluster, node); here && !elsewhere {
			left = append(left, v.Service.GetNamespace()+"/"+v.Service.GetName())
		}
	}
	if len(left) == 0 {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"node %s has the only backends that take new connections for %s: start others first, or refuse their clients with --force", node, strings.Join(left, ", "))
}

// takers tells where a service has backends that take new connections: on the
// node, and on others.
func takers(v loadbalancer.View, cluster, node string) (here, elsewhere bool) {
	for _, b := range v.Backends {
		switch {
		case b.StateName() != loadbalancer.StateName(keyspacev1.Backend_STATE_ACTIVE):
		case b.Cluster == cluster && b.Node == node:
			here = true
		default:
			elsewhere = true
		}
	}
	return here, elsewhere
}

// changeNodeConfig rewrites what is decided for a node, and reports whether that
// changed anything.
func (s *Server) changeNodeConfig(ctx context.Context, node string, change func(*keyspacev1.NodeConfig)) (bool, error) {
	for range raceTries {
		ops, cmps, err := s.nodeConfigOps(ctx, node, change)
		if err != nil || len(ops) == 0 {
			return false, err
		}
		r, err := s.kv.Txn(ctx, cmps, ops, nil)
		if err != nil || r.Succeeded {
			return err == nil, err
		}
	}
	return false, errRace
}

// nodeConfigOps are what changes a node's record, and what must hold for it;
// none when it says so already.
func (s *Server) nodeConfigOps(ctx context.Context, node string, change func(*keyspacev1.NodeConfig)) ([]kvstore.Op, []kvstore.Cmp, error) {
	key := s.nodeConfigKey(node)
	old, found, err := get[*keyspacev1.NodeConfig](ctx, s, key)
	if err != nil {
		return nil, nil, err
	}
	now, cmp := &keyspacev1.NodeConfig{Node: node}, kvstore.Absent(key.String())
	if found {
		now, cmp = proto.CloneOf(old.msg), kvstore.AtRevision(key.String(), old.kv.ModRevision)
	}
	before := proto.CloneOf(now)
	if change(now); proto.Equal(before, now) {
		return nil, nil, nil
	}
	op, err := put(key, now)
	return []kvstore.Op{op}, []kvstore.Cmp{cmp}, err
}

func drainState(taking int) string {
	if taking > 0 {
		return nodeDraining
	}
	return nodeDrained
}

// backendsOf counts this cluster's backends by node, ports apart: those that may
// take new connections, and all.
func (s *Server) backendsOf(ctx context.Context) (taking, all map[string]int, err error) {
	taking, all = map[string]int{}, map[string]int{}
	for _, sub := range []kvstore.Subtree{kvstore.State, kvstore.Local} {
		rows, err := list[*keyspacev1.BackendSlice](ctx, s, sub, s.cfg.Cluster, kvstore.KindSlice)
		if err != nil {
			return nil, nil, err
		}
		for _, r := range rows {
			for _, b := range r.msg.GetBackends() {
				all[b.GetNode()] += len(b.GetPorts())
				if b.GetState() == keyspacev1.Backend_STATE_ACTIVE || b.GetState() == keyspacev1.Backend_STATE_TERMINATING {
					taking[b.GetNode()] += len(b.GetPorts())
				}
			}
		}
	}
	return taking, all, nil
}

// tellDrains completes a listing of nodes.
func (s *Server) tellDrains(ctx context.Context, nodes []*hawserv1.NodeInfo) error {
	configs, err := list[*keyspacev1.NodeConfig](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindNodeConfig)
	if err != nil {
		return err
	}
	since := map[string]int64{}
	for _, c := range configs {
		if c.msg.GetDrained() {
			since[c.msg.GetNode()] = c.msg.GetDrainedSince()
		}
	}
	if len(since) == 0 {
		return nil
	}
	taking, _, err := s.backendsOf(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if at, drained := since[n.GetName()]; drained && n.GetCluster() == s.cfg.Cluster {
			n.Drain, n.DrainSince = drainState(taking[n.GetName()]), at
		}
	}
	return nil
}
