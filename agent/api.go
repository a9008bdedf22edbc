// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/datapath/reconcile"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/version"
	"github.com/hawser-mesh/hawser/loadbalancer"
	"github.com/hawser-mesh/hawser/observe"
	"github.com/hawser-mesh/hawser/tunnel"
)

// service is the node API.
type service struct {
	hawserv1.UnimplementedNodeServer
	a *Agent
}

// AddEndpoint implements hawserv1.NodeServer.
func (s *service) AddEndpoint(ctx context.Context, q *hawserv1.AddEndpointRequest) (*hawserv1.AddEndpointResponse, error) {
	e, err := s.a.endpoints.Add(ctx, q)
	if err != nil {
		return nil, err
	}
	return &hawserv1.AddEndpointResponse{Endpoint: e}, nil
}

// DeleteEndpoint implements hawserv1.NodeServer.
func (s *service) DeleteEndpoint(ctx context.Context, q *hawserv1.DeleteEndpointRequest) (*hawserv1.DeleteEndpointResponse, error) {
	if q.GetContainerId() == "" || q.GetIfname() == "" {
		return nil, status.Error(codes.InvalidArgument, "delete endpoint: container id and interface name are both needed")
	}
	return &hawserv1.DeleteEndpointResponse{}, s.a.endpoints.Delete(ctx, q.GetContainerId(), q.GetIfname())
}

// ListEndpoints implements hawserv1.NodeServer.
func (s *service) ListEndpoints(context.Context, *hawserv1.ListEndpointsRequest) (*hawserv1.ListEndpointsResponse, error) {
	r := &hawserv1.ListEndpointsResponse{}
	for _, e := range s.a.endpoints.snapshot() {
		r.Endpoints = append(r.Endpoints, s.a.endpoints.describe(e))
	}
	return r, nil
}

// describe is an endpoint as the API shows it.
func (m *endpoints) describe(r *record) *hawserv1.Endpoint {
	e := &hawserv1.Endpoint{
		Id: uint32(r.ID), Node: m.cfg.Node, Cluster: m.cfg.Cluster, Namespace: r.Namespace, Name: r.Name,
		Identity: uint32(r.Identity), Labels: r.Labels, State: r.State,
		ContainerId: r.ContainerID, Ifname: r.IfName, HostDevice: r.HostDevice, Ifindex: r.IfIndex,
		Mac: datapath.MAC(r.PodMAC).String(), RuleSet: r.RuleSet, CreatedAt: r.CreatedAt,
		Gateway: netdev.Gateway4().String(), Mtu: uint32(m.podMTU()), Netns: r.Netns, Network: r.Network,
	}
	for _, a := range r.addrs() {
		e.Addresses = append(e.Addresses, a.String())
	}
	if r.Addr6.IsValid() {
		e.Gateway6 = netdev.Gateway6().String()
	}
	e.PolicyAudit, e.NodePolicyAudit = r.Audit, m.cfg.PolicyAudit
	if rs, ok := m.tables.RuleSets.Get(r.RuleSet); ok {
		e.IngressEnforced, e.EgressEnforced = rs.Ingress, rs.Egress
	}
	return e
}

// podMTU is the MTU of a pod's routes: the underlay's less the tunnel's header.
func (m *endpoints) podMTU() int { return m.mtu - tunnel.VXLANOverhead4 }

// ListIPCache implements hawserv1.NodeServer.
func (s *service) ListIPCache(context.Context, *hawserv1.ListIPCacheRequest) (*hawserv1.ListIPCacheResponse, error) {
	r := &hawserv1.ListIPCacheResponse{}
	inKernel := withheld(s.a.reconciler.Withheld())
	for _, e := range s.a.view.ips.List() {
		row := &hawserv1.IPCacheEntry{
			Prefix: e.Prefix.String(), Identity: uint32(e.Identity), Node: e.Node, Cluster: e.Cluster,
			Workload: e.Workload, Source: e.Source.String(), Kernel: inKernel[e.Prefix],
		}
		delete(inKernel, e.Prefix)
		if e.Tunnel.IsValid() {
			row.TunnelAddress = e.Tunnel.String()
		}
		r.Entries = append(r.Entries, row)
	}
	for p, state := range inKernel { // the world, of which no narrower prefix is
		if state == kernelHidden {
			r.Entries = append(r.Entries, &hawserv1.IPCacheEntry{Prefix: p.String(), Source: ipcache.KindReserved.String(), Kernel: state})
		}
	}
	return r, nil
}

// States of an IPCacheEntry in the kernel, beside as it should be.
const (
	kernelMissing = "missing"
	kernelHidden  = "hidden"
)

// withheld is which addresses of the mesh's common space the kernel could not be
// told, and which are hidden because of them.
func withheld(w reconcile.Withheld) map[netip.Prefix]string {
	out := map[netip.Prefix]string{}
	note := func(keys []datapath.IPKey, state string) {
		for _, k := range keys {
			if k.ClusterID == 0 {
				out[k.Prefix] = state
			}
		}
	}
	note(w.Around, kernelHidden)
	note(w.Missing, kernelMissing)
	return out
}

// ListMaps implements hawserv1.NodeServer.
func (s *service) ListMaps(context.Context, *hawserv1.ListMapsRequest) (*hawserv1.ListMapsResponse, error) {
	infos, err := s.a.dp.ListMaps()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	r := &hawserv1.ListMapsResponse{}
	for _, m := range infos {
		r.Maps = append(r.Maps, &hawserv1.Map{
			Name: m.Name, Type: m.Type, Id: m.ID, KeySize: m.KeySize, ValueSize: m.ValueSize,
			MaxEntries: m.MaxEntries, Entries: m.Entries, MemoryBytes: m.Memory, Pin: m.Pin,
		})
	}
	return r, nil
}

// ListDrops implements hawserv1.NodeServer.
func (s *service) ListDrops(context.Context, *hawserv1.ListDropsRequest) (*hawserv1.ListDropsResponse, error) {
	rows, err := maps.ReadMetrics(s.a.dp.Maps().Metrics)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	r := &hawserv1.ListDropsResponse{}
	for _, m := range rows {
		r.Drops = append(r.Drops, &hawserv1.DropCounter{
			Reason: maps.ReasonName(m.Reason), Direction: m.Direction.String(), Program: m.Program,
			Packets: m.Packets, Bytes: m.Bytes,
		})
	}
	return r, nil
}

// ListFrontends implements hawserv1.NodeServer.
func (s *service) ListFrontends(context.Context, *hawserv1.ListFrontendsRequest) (*hawserv1.ListFrontendsResponse, error) {
	r := &hawserv1.ListFrontendsResponse{}
	for _, f := range s.a.view.lb.List() {
		for _, vip := range f.Service.GetVips() {
			for _, p := range f.Service.GetPorts() {
				r.Frontends = append(r.Frontends, frontend(f, vip, p))
			}
		}
	}
	return r, nil
}

func frontend(f loadbalancer.View, vip string, p *keyspacev1.ServicePort) *hawserv1.Frontend {
	row := &hawserv1.Frontend{
		ServiceId: f.Service.GetId(), Namespace: f.Service.GetNamespace(), Name: f.Service.GetName(), Vip: vip,
		Port: p.GetPort(), Protocol: observe.ProtocolName(uint8(p.GetProtocol())), Global: f.Service.GetGlobal(),
	}
	addr, _ := netip.ParseAddr(vip)
	for _, b := range f.Backends {
		if b.PortName != p.GetName() || b.Protocol != p.GetProtocol() || b.Addr.Is4() != addr.Is4() {
			continue
		}
		row.Backends = append(row.Backends, &hawserv1.FrontendBackend{
			Ip: b.Addr.String(), Port: uint32(b.Port), Cluster: b.Cluster, Node: b.Node,
			Workload: b.Workload, State: b.StateName(), Protocol: row.GetProtocol(), PortName: b.PortName,
		})
	}
	return row
}

// ListPaths implements hawserv1.NodeServer.
func (s *service) ListPaths(context.Context, *hawserv1.ListPathsRequest) (*hawserv1.ListPathsResponse, error) {
	return &hawserv1.ListPathsResponse{Paths: s.a.watchman.paths()}, nil
}

// Monitor implements hawserv1.NodeServer.
func (s *service) Monitor(q *hawserv1.MonitorRequest, stream grpc.ServerStreamingServer[hawserv1.Event]) error {
	l := s.a.hub.Listen(q.GetTypes())
	defer func() { l.Close(); s.a.watch() }()
	s.a.watch()
	// The header tells the caller that nothing is missed from here on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case e := <-l.C():
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		case <-s.a.stopping:
			return status.Error(codes.Unavailable, "the agent is stopping")
		}
	}
}

// Status implements hawserv1.NodeServer.
func (s *service) Status(ctx context.Context, _ *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	a := s.a
	r := &hawserv1.NodeStatusReport{
		Cluster: a.cfg.Cluster, Node: a.cfg.Node, Version: version.String(), StartedAt: a.started.UnixNano(),
		Adopted: a.dp.Adopted(), UnderlayDevice: a.cfg.UnderlayDevice, UnderlayAddress: a.cfg.NodeAddress.String(),
		TunnelProtocol: "vxlan", TunnelPort: uint32(a.cfg.TunnelPort), TunnelDatapath: a.tunnel.way, AttachMode: a.dp.AttachMode(),
		PodCidrs: a.cfg.podCIDRTexts(), PodMtu: uint32(a.endpoints.podMTU()),
		Keyspace: a.keyspaceStatus(), Enrolled: a.enrolled, Now: time.Now().UnixNano(),
		Pools: a.pools(),
	}
	if err := a.healthy(ctx); err != nil {
		r.NotReady = err.Error()
	}
	r.Problems = append(append(r.Problems, fullPools(r.GetPools())...), fullConntrack(a.dp.Flows())...)
	r.MasqueradeAddresses = masqueradeAddresses(a.dp.Config())
	was := a.dp.Config().Masquerade6
	if is, err := a.cfg.outsideAddress6(was); err != nil {
		a.log.Warn("read the address for what pods send to the outside", "error", err)
	} else {
		r.Problems = append(r.Problems, otherAddress6(a.cfg.UnderlayDevice, was, is)...)
	}
	if cert, err := pki.ReadCertificate(pki.FilesIn(a.cfg.TLSDir, "tls").Cert); err == nil {
		r.CertificateExpiresAt = cert.NotAfter.UnixNano()
		if id, err := pki.CertificateID(cert); err == nil {
			r.Certificate = id.String()
		}
	}
	r.Policies, r.PoliciesSettled = a.enforced()
	r.PolicyScope, r.PolicyMode, r.PolicyAudit = string(a.cfg.scope()), string(a.cfg.mode()), a.cfg.PolicyAudit
	for _, e := range a.endpoints.snapshot() {
		r.Endpoints++
		if e.State != stateReady {
			r.EndpointsNotReady++
		}
	}
	for _, t := range a.reconciler.Status() {
		r.Tables = append(r.Tables, &hawserv1.TableStatus{
			Name: t.Table, Entries: uint64(t.Entries), Revision: t.Revision, Reconciled: t.Reconciled, LastError: t.LastError,
		})
		if t.LastError != "" {
			r.Problems = append(r.Problems, &hawserv1.Problem{Object: "table " + t.Table, Problem: t.LastError, Fix: "it is tried again; see the agent's log"})
		}
	}
	if k := r.GetKeyspace(); !k.GetConnected() {
		r.Problems = append(r.Problems, disconnected(k, a.cfg.Node, a.enrolled))
	}
	r.Problems = append(append(r.Problems, a.tunnel.problems()...), a.host.problems()...)
	r.Problems = append(append(r.Problems, a.watchman.problems()...), a.grants.problems()...)
	r.Problems = append(r.Problems, a.publisher.problems()...)
	r.Problems = append(append(r.Problems, a.unreadable.problems()...), a.routeless.problems()...)
	for _, p := range a.ids.problems() {
		r.Problems = append(r.Problems, &hawserv1.Problem{
			Object: "identities", Problem: p,
			Fix: "see what the numbers are and what retired ones wait for: hawser identity list",
		})
	}
	if a.dns != nil {
		if st := a.dns.Status(); st.Problem != "" {
			r.Problems = append(r.Problems, &hawserv1.Problem{
				Object: "names", Problem: "pods get no answers: " + st.Problem,
				Fix: "free the address, or give another one: hawser-agent --dns-listen ADDRESS:PORT; it is tried again",
			})
		}
	}
	r.Problems = append(r.Problems, a.policyProblems()...)
	for _, c := range a.view.ips.Conflicts() {
		r.Problems = append(r.Problems, &hawserv1.Problem{
			Object:  "address " + c.Winner.Prefix.String(),
			Problem: fmt.Sprintf("claimed by %s and by %s; the first is believed", claimant(c.Winner.Cluster, c.Winner.Node), claimant(c.Loser.Cluster, c.Loser.Node)),
			Fix:     "give the clusters ranges that do not overlap",
		})
	}
	return r, nil
}

func claimant(cluster, node string) string {
	if node == "" {
		return cluster
	}
	return cluster + "/" + node
}

func parseNumber(s string) (identity.Number, error) {
	var n uint32
	if _, err := fmt.Sscanf(s, "%d", &n); err != nil {
		return 0, fmt.Errorf("identity number %q: %w", s, err)
	}
	return identity.Number(n), nil
}
