// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"strconv"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// ListServices lists the services of this cluster with their backends in all
// clusters, merged as the agents merge them.
func (s *Server) ListServices(ctx context.Context, _ *hawserv1.ListServicesRequest) (*hawserv1.ListServicesResponse, error) {
	merged, err := s.mergeServices(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	r := &hawserv1.ListServicesResponse{}
	for _, v := range merged.List() {
		r.Services = append(r.Services, serviceInfo(v))
	}
	return r, nil
}

func (s *Server) mergeServices(ctx context.Context) (*loadbalancer.Desired, error) {
	merged, err := loadbalancer.NewDesired(s.cfg.Cluster)
	if err != nil {
		return nil, err
	}
	clusters, err := s.clusters(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range clusters {
		record, found, err := get[*keyspacev1.Cluster](ctx, s, kvstore.NewKey(kvstore.State, c, kvstore.KindCluster))
		if err != nil {
			return nil, err
		}
		if found {
			merged.SetCluster(c, record.msg.GetId())
		}
		if err := s.mergeFrom(ctx, merged, kvstore.State, c); err != nil {
			return nil, err
		}
	}
	health, err := s.health(ctx)
	if err != nil {
		return nil, err
	}
	var passed []loadbalancer.Node
	for node, h := range health {
		if h.GetState() == keyspacev1.NodeHealth_STATE_DEAD {
			passed = append(passed, loadbalancer.Node{Cluster: node[0], Name: node[1], Standing: loadbalancer.Gone})
		}
	}
	for node, reached := range s.watchman.reached() {
		if !reached {
			passed = append(passed, loadbalancer.Node{Cluster: node.Cluster, Name: node.Node, Standing: loadbalancer.Away})
		}
	}
	merged.SetNodes(passed)
	views, err := list[*keyspacev1.PeerView](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPeerView)
	if err != nil {
		return nil, err
	}
	for _, v := range views {
		merged.SetAge(v.msg.GetPeer(), loadbalancer.AgeOf(v.msg.GetData()))
	}
	return merged, s.mergeFrom(ctx, merged, kvstore.Local, s.cfg.Cluster)
}

func (s *Server) mergeFrom(ctx context.Context, merged *loadbalancer.Desired, sub kvstore.Subtree, cluster string) error {
	from := loadbalancer.Source{Cluster: cluster, Local: sub == kvstore.Local}
	services, err := list[*keyspacev1.Service](ctx, s, sub, cluster, kvstore.KindService)
	if err != nil {
		return err
	}
	for _, r := range services {
		merged.UpsertService(from, r.msg)
	}
	slices, err := list[*keyspacev1.BackendSlice](ctx, s, sub, cluster, kvstore.KindSlice)
	if err != nil {
		return err
	}
	for _, r := range slices {
		merged.UpsertSlice(from, r.msg)
	}
	return nil
}

func serviceInfo(v loadbalancer.View) *hawserv1.ServiceInfo {
	svc := v.Service
	info := &hawserv1.ServiceInfo{
		Id: svc.GetId(), Namespace: svc.GetNamespace(), Name: svc.GetName(), Vips: svc.GetVips(),
		Global: svc.GetGlobal(), Shared: svc.GetShared(), Clusters: v.Clusters,
		Annotations: svc.GetAnnotations(), Selector: svc.GetSelector(),
	}
	for _, p := range svc.GetPorts() {
		target := p.GetTarget()
		if target == "" {
			target = strconv.Itoa(int(p.GetPort()))
		}
		info.Ports = append(info.Ports, &hawserv1.ServicePortInfo{
			Name: p.GetName(), Protocol: protocolName(p.GetProtocol()), Port: p.GetPort(), Target: target,
		})
	}
	for _, b := range v.Backends {
		info.Backends = append(info.Backends, &hawserv1.FrontendBackend{
			Ip: b.Addr.String(), Port: uint32(b.Port), Cluster: b.Cluster, Node: b.Node,
			Workload: b.Workload, State: b.StateName(), Protocol: protocolName(b.Protocol), PortName: b.PortName,
		})
	}
	return info
}
