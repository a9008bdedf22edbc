// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Node states in listings.
const (
	nodePresent    = "present"    // its agent holds its presence lease
	nodeAbsent     = "absent"     // its agent is down; its data stays
	nodeRemote     = "remote"     // known from a peer
	nodeUnreadable = "unreadable" // its record cannot be read
)

// ListNodes lists the nodes of all clusters, also those whose records cannot be
// read.
func (s *Server) ListNodes(ctx context.Context, _ *hawserv1.ListNodesRequest) (*hawserv1.ListNodesResponse, error) {
	nodes, bad, err := listAllBad[*keyspacev1.Node](ctx, s, kvstore.KindNode)
	if err != nil {
		return nil, apiError(err)
	}
	present, err := list[*keyspacev1.Presence](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindPresence)
	if err != nil {
		return nil, apiError(err)
	}
	here := map[string]bool{}
	for _, p := range present {
		here[p.msg.GetNode()] = true
	}
	ips, err := listAll[*keyspacev1.IPEntry](ctx, s, kvstore.KindIP)
	if err != nil {
		return nil, apiError(err)
	}
	workloads := countWorkloads(ips)
	health, err := s.health(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	resp := &hawserv1.ListNodesResponse{}
	for _, n := range nodes {
		info := &hawserv1.NodeInfo{
			Cluster: n.key.Cluster, Name: n.msg.GetName(), TunnelAddress: n.msg.GetTunnelAddress(),
			PodCidrs: n.msg.GetPodCidrs(), Mtu: n.msg.GetMtu(), Version: n.msg.GetVersion(),
			Workloads: workloads[[2]string{n.key.Cluster, n.msg.GetName()}],
			State:     nodeRemote,
		}
		for _, a := range n.msg.GetAddresses() {
			info.Addresses = append(info.Addresses, a.GetIp())
		}
		if n.key.Cluster == s.cfg.Cluster {
			info.State = nodeAbsent
			if here[n.msg.GetName()] {
				info.State = nodePresent
			}
		}
		resp.Nodes = append(resp.Nodes, info)
	}
	for _, b := range bad {
		if info := unreadableNode(b); info != nil {
			info.Workloads = workloads[[2]string{info.GetCluster(), info.GetName()}]
			resp.Nodes = append(resp.Nodes, info)
		}
	}
	for _, info := range resp.GetNodes() {
		if h := health[[2]string{info.GetCluster(), info.GetName()}]; h != nil {
			info.Health, info.HealthSince = liveness.StateName(h.GetState()), h.GetSince()
			info.Process, info.Path, info.Witnesses = h.GetProcess(), h.GetPath(), h.GetWitnesses()
		}
	}
	if err := s.tellDrains(ctx, resp.GetNodes()); err != nil {
		return nil, apiError(err)
	}
	return resp, nil
}

// unreadableNode tells of a record under a node's key that cannot be read; nil when
// the key is not one of a node.
func unreadableNode(b unreadable) *hawserv1.NodeInfo {
	key, err := kvstore.ParseKey(b.kv.Key)
	if err != nil {
		return nil
	}
	problem := b.err.Error()
	if bad := (*kvstore.BadRecord)(nil); errors.As(b.err, &bad) {
		problem = "its record cannot be read: " + bad.Reason + ": " + bad.Detail
	}
	return &hawserv1.NodeInfo{Cluster: key.Cluster, Name: key.Names[0], State: nodeUnreadable, Problem: problem}
}

// countWorkloads counts the workloads of each node, by cluster and name: one may
// have an address of each family.
func countWorkloads(ips []stored[*keyspacev1.IPEntry]) map[[2]string]uint64 {
	out, seen := map[[2]string]uint64{}, map[[4]string]bool{}
	for _, ip := range ips {
		on := [2]string{ip.key.Cluster, ip.msg.GetNode()}
		who := [4]string{on[0], on[1], ip.msg.GetNamespace(), ip.msg.GetWorkload()}
		if ip.msg.GetWorkload() == "" || !seen[who] {
			out[on]++
		}
		seen[who] = true
	}
	return out
}

// health is the verdict on every node of every cluster, by cluster and name.
func (s *Server) health(ctx context.Context) (map[[2]string]*keyspacev1.NodeHealth, error) {
	rows, err := listAll[*keyspacev1.NodeHealth](ctx, s, kvstore.KindHealth)
	out := make(map[[2]string]*keyspacev1.NodeHealth, len(rows))
	for _, r := range rows {
		out[[2]string{r.key.Cluster, r.msg.GetNode()}] = r.msg
	}
	return out, err
}

// ListAddresses lists the addresses of the workloads of all clusters, sorted.
func (s *Server) ListAddresses(ctx context.Context, _ *hawserv1.ListAddressesRequest) (*hawserv1.ListAddressesResponse, error) {
	rows, err := listAll[*keyspacev1.IPEntry](ctx, s, kvstore.KindIP)
	if err != nil {
		return nil, apiError(err)
	}
	resp := &hawserv1.ListAddressesResponse{}
	for _, r := range rows {
		info := &hawserv1.AddressInfo{Prefix: r.msg.GetPrefix(), Cluster: r.key.Cluster, Node: r.msg.GetNode(), Identity: r.msg.GetIdentity()}
		if r.msg.GetWorkload() != "" {
			info.Workload = r.msg.GetNamespace() + "/" + r.msg.GetWorkload()
		}
		resp.Addresses = append(resp.Addresses, info)
	}
	slices.SortFunc(resp.GetAddresses(), func(a, b *hawserv1.AddressInfo) int {
		pa, _ := netip.ParsePrefix(a.GetPrefix())
		pb, _ := netip.ParsePrefix(b.GetPrefix())
		return cmp.Or(pa.Addr().Compare(pb.Addr()), cmp.Compare(pa.Bits(), pb.Bits()))
	})
	return resp, nil
}

// ListVTEPs lists which prefix is behind which tunnel endpoint.
func (s *Server) ListVTEPs(ctx context.Context, _ *hawserv1.ListVTEPsRequest) (*hawserv1.ListVTEPsResponse, error) {
	rows, err := listAll[*keyspacev1.VTEP](ctx, s, kvstore.KindVTEP)
	if err != nil {
		return nil, apiError(err)
	}
	resp := &hawserv1.ListVTEPsResponse{}
	for _, r := range rows {
		resp.Vteps = append(resp.Vteps, vtepInfo(r.key.Cluster, r.msg))
	}
	slices.SortFunc(resp.GetVteps(), func(a, b *hawserv1.VTEPInfo) int {
		pa, _ := netip.ParsePrefix(a.GetPrefix())
		pb, _ := netip.ParsePrefix(b.GetPrefix())
		return cmp.Or(pa.Addr().Compare(pb.Addr()), cmp.Compare(pa.Bits(), pb.Bits()))
	})
	return resp, nil
}

// protocolName is how a protocol is shown.
func protocolName(p keyspacev1.Protocol) string {
	switch p {
	case keyspacev1.Protocol_PROTOCOL_TCP:
		return "tcp"
	case keyspacev1.Protocol_PROTOCOL_UDP:
		return "udp"
	case keyspacev1.Protocol_PROTOCOL_SCTP:
		return "sctp"
	}
	return fmt.Sprint(int32(p))
}
