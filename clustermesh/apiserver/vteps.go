// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/tunnel"
)

// externalOwner owns the pod CIDRs behind external tunnel endpoints. No node's
// name has a colon.
const externalOwner = ":external"

func (s *Server) vtepKey(p netip.Prefix) kvstore.Key {
	return kvstore.NewKey(kvstore.State, s.cfg.Cluster, kvstore.KindVTEP, kvstore.PrefixName(p))
}

// vtepInfo is a VTEP as the API shows it.
func vtepInfo(cluster string, r *keyspacev1.VTEP) *hawserv1.VTEPInfo {
	v := &hawserv1.VTEPInfo{Prefix: r.GetPrefix(), TunnelAddress: r.GetTunnelAddress(), Node: r.GetNode(), Cluster: cluster}
	if r.GetNode() == "" {
		mac := tunnel.ExternalMAC()
		v.External, v.Mac, v.Vni = true, cmp.Or(r.GetMac(), net.HardwareAddr(mac[:]).String()), cmp.Or(r.GetVni(), tunnel.ExternalVNI)
	}
	return v
}

// AddVTEP declares an external tunnel endpoint. All that is wrong with one is
// said at once.
func (s *Server) AddVTEP(ctx context.Context, r *hawserv1.AddVTEPRequest) (*hawserv1.AddVTEPResponse, error) {
	want, err := parseVTEP(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	var action string
	for range raceTries {
		if action, err = s.tryAddVTEP(ctx, want, r.GetDryRun()); !errors.Is(err, errRace) {
			break
		}
	}
	if err != nil {
		return nil, apiError(fmt.Errorf("vtep %s: %w", want.GetPrefix(), err))
	}
	if r.GetDryRun() {
		action += dryRunSuffix
	} else if action != actionUnchanged {
		s.log.Info("external tunnel endpoint declared", "prefix", want.GetPrefix(), "tunnel", want.GetTunnelAddress(), "action", action)
	}
	return &hawserv1.AddVTEPResponse{Vtep: vtepInfo(s.cfg.Cluster, want), Action: action}, nil
}

// parseVTEP is the record that a request asks for, if what it says can be said of
// any cluster.
func parseVTEP(r *hawserv1.AddVTEPRequest) (*keyspacev1.VTEP, error) {
	p, err1 := parseVTEPPrefix(r.GetPrefix())
	at, err2 := netip.ParseAddr(r.GetTunnelAddress())
	switch {
	case err2 != nil:
		err2 = fmt.Errorf("tunnel address %.64q: not an address", r.GetTunnelAddress())
	case !at.Is4() || at.IsUnspecified() || at.IsLoopback() || at.IsMulticast():
		err2 = fmt.Errorf("tunnel address %s: must be the IPv4 address of one host, as tunnels are IPv4", at)
	}
	want := &keyspacev1.VTEP{Prefix: p.String(), TunnelAddress: at.String()}
	var err3, err4 error
	if r.GetMac() != "" {
		m, err := net.ParseMAC(r.GetMac())
		if err != nil || len(m) != 6 || m[0]&1 != 0 {
			err3 = fmt.Errorf("MAC %.64q: must be the hardware address of one interface, like 02:00:00:00:00:01", r.GetMac())
		}
		want.Mac = m.String()
	}
	if mac := tunnel.ExternalMAC(); want.GetMac() == net.HardwareAddr(mac[:]).String() {
		want.Mac = ""
	}
	if vni := r.GetVni(); vni > tunnel.MaxVNI || vni != 0 && vni != tunnel.ExternalVNI && vni <= uint32(identity.MaxReserved) {
		err4 = fmt.Errorf("VNI %d: must be %d or %d to %d; the others are the mesh's own", vni, tunnel.ExternalVNI, identity.MaxReserved+1, tunnel.MaxVNI)
	}
	if want.Vni = r.GetVni(); want.Vni == tunnel.ExternalVNI {
		want.Vni = 0
	}
	return want, errors.Join(err1, err2, err3, err4)
}

// parseVTEPPrefix reads a prefix, or an address as the prefix of one.
func parseVTEPPrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
		p, err = netip.PrefixFrom(a.WithZone(""), a.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("prefix %.64q: neither prefix nor address", text)
	case !p.Addr().Is4():
		return p, fmt.Errorf("prefix %s: must be IPv4: the datapath carries no other", p)
	case p != p.Masked():
		return p, fmt.Errorf("prefix %s: has host bits; did you mean %s?", p, p.Masked())
	case p.Bits() == 0:
		return p, errors.New("prefix 0.0.0.0/0: a default route is never behind a tunnel endpoint")
	}
	return p, nil
}

func (s *Server) tryAddVTEP(ctx context.Context, want *keyspacev1.VTEP, dryRun bool) (action string, err error) {
	p := netip.MustParsePrefix(want.GetPrefix()) // parseVTEP made it
	_, rev, err := s.kv.Get(ctx, s.podCIDRKey(p).String())
	if err != nil {
		return "", err
	}
	owners, err := s.podCIDROwners(ctx)
	if err != nil {
		return "", err
	}
	vteps, err := list[*keyspacev1.VTEP](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindVTEP)
	if err != nil {
		return "", err
	}
	if err := s.checkVTEP(ctx, want, p, owners, vteps); err != nil {
		return "", err
	}
	key := s.vtepKey(p)
	there, action := kvstore.Absent(key.String()), actionCreated
	for _, v := range vteps {
		if v.kv.Key == key.String() {
			there, action = kvstore.AtRevision(key.String(), v.kv.ModRevision), actionConfigured
			if sameVTEP(v.msg, want) && owners[p] == externalOwner {
				return actionUnchanged, nil
			}
		}
	}
	if dryRun {
		return action, nil
	}
	op, err := put(key, proto.CloneOf(want))
	if err != nil {
		return "", err
	}
	own, err := put(s.podCIDRKey(p), wrapperspb.String(externalOwner))
	if err != nil {
		return "", err
	}
	// A node may not get the range meanwhile.
	quiet := kvstore.NoneAfter(kvstore.KindPrefix(kvstore.Private, s.cfg.Cluster, kvstore.KindPodCIDR), rev)
	res, err := s.kv.Txn(ctx, []kvstore.Cmp{there, quiet}, []kvstore.Op{op, own}, nil)
	if err == nil && !res.Succeeded {
		err = errRace
	}
	return action, err
}

func sameVTEP(a, b *keyspacev1.VTEP) bool {
	return a.GetTunnelAddress() == b.GetTunnelAddress() && a.GetMac() == b.GetMac() && a.GetVni() == b.GetVni() && a.GetNode() == b.GetNode()
}

// checkVTEP says what of this cluster stands against a declaration.
func (s *Server) checkVTEP(ctx context.Context, want *keyspacev1.VTEP, p netip.Prefix, own owners, vteps []stored[*keyspacev1.VTEP]) error {
	at := netip.MustParseAddr(want.GetTunnelAddress())
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !slices.ContainsFunc(s.cfg.PodCIDRs, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
		refuse("it is not within this cluster's pod CIDRs (%s), and peers believe nothing else of it", strings.Join(texts(s.cfg.PodCIDRs), ", "))
	}
	if !slices.ContainsFunc(s.cfg.NodeCIDRs, func(q netip.Prefix) bool { return q.Contains(at) }) {
		refuse("tunnel address %s is not within this cluster's node CIDRs (%s), and peers believe nothing else of it", at, strings.Join(texts(s.cfg.NodeCIDRs), ", "))
	}
	if p.Contains(at) {
		refuse("it contains its own tunnel address %s, which would be reached through itself", at)
	}
	if other, clash := own.clash(p, externalOwner); clash {
		refuse("it overlaps %s, the pod CIDR of node %s; choose a range that no node has (hawser node list)", other, own[other])
	}
	for _, v := range vteps {
		q, err := netip.ParsePrefix(v.msg.GetPrefix())
		switch {
		case err != nil:
		case v.msg.GetNode() != "":
			if _, told := own[q]; q.Overlaps(p) && !told {
				refuse("it overlaps %s, the pod CIDR of node %s; choose a range that no node has (hawser node list)", q, v.msg.GetNode())
			}
		case q != p && q.Overlaps(p):
			refuse("it overlaps %s, which is declared behind %s; delete that first: hawser vtep delete %s", q, v.msg.GetTunnelAddress(), q)
		case q != p && v.msg.GetTunnelAddress() == want.GetTunnelAddress() && (v.msg.GetMac() != want.GetMac() || v.msg.GetVni() != want.GetVni()):
			i := vtepInfo(s.cfg.Cluster, v.msg)
			refuse("%s is also the endpoint of %s, with MAC %s and VNI %d: an endpoint has one of each", at, q, i.GetMac(), i.GetVni())
		}
	}
	needed, err := s.vtepNeeds(ctx, p, at)
	if err := errors.Join(append(errs, needed...)...); err != nil {
		return status.Error(codes.FailedPrecondition, strings.ReplaceAll(err.Error(), "\n", "\n  and "))
	}
	return err
}

// vtepNeeds are the addresses of nodes, API servers and workloads that a
// declaration would take.
func (s *Server) vtepNeeds(ctx context.Context, p netip.Prefix, at netip.Addr) (refused []error, err error) {
	nodes, err := list[*keyspacev1.Node](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindNode)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		addrs := []string{n.msg.GetTunnelAddress()}
		for _, a := range n.msg.GetAddresses() {
			addrs = append(addrs, a.GetIp())
		}
		slices.Sort(addrs)
		for _, text := range slices.Compact(addrs) {
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil:
			case a == at:
				refused = append(refused, fmt.Errorf("tunnel address %s is node %s's; an external endpoint is no node", at, n.msg.GetName()))
			case p.Contains(a):
				refused = append(refused, fmt.Errorf("hosts need their route to %s, an address of node %s", a, n.msg.GetName()))
			}
		}
	}
	for _, a := range s.ownAddresses() {
		if p.Contains(a) {
			refused = append(refused, fmt.Errorf("hosts need their route to %s of the API server or its etcd", a))
		}
		if a == at {
			refused = append(refused, fmt.Errorf("tunnel address %s is that of the API server or its etcd; an external endpoint is another host", at))
		}
	}
	ips, err := list[*keyspacev1.IPEntry](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindIP)
	if err != nil {
		return nil, err
	}
	for _, ip := range ips {
		if q, err := netip.ParsePrefix(ip.msg.GetPrefix()); err == nil && q.Overlaps(p) {
			return append(refused, fmt.Errorf("%s is %s/%s on node %s", q, ip.msg.GetNamespace(), ip.msg.GetWorkload(), ip.msg.GetNode())), nil
		}
	}
	return refused, nil
}

// ownAddresses are those at which nodes and peers reach API server and etcd, as
// far as they are addresses, each once.
func (s *Server) ownAddresses() (out []netip.Addr) {
	for _, e := range slices.Concat(s.etcdEndpoints(), s.cfg.advertised(), []string{s.cfg.advertisedAPI(), s.cfg.ListenGossip.String()}) {
		if a, err := netip.ParseAddr(etcd.HostOf(e)); err == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// DeleteVTEP takes the declaration of an external tunnel endpoint back.
func (s *Server) DeleteVTEP(ctx context.Context, r *hawserv1.DeleteVTEPRequest) (*hawserv1.DeleteVTEPResponse, error) {
	p, err := parseVTEPPrefix(r.GetPrefix())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	for range raceTries {
		old, found, err := get[*keyspacev1.VTEP](ctx, s, s.vtepKey(p))
		switch {
		case err != nil:
			return nil, apiError(err)
		case !found:
			return nil, status.Errorf(codes.NotFound, "no tunnel endpoint is declared for %s; nothing was deleted; see: hawser vtep list", p)
		case old.msg.GetNode() != "":
			return nil, status.Errorf(codes.FailedPrecondition, "%s is the pod CIDR of node %s, not an external endpoint's; nothing was deleted", p, old.msg.GetNode())
		}
		resp := &hawserv1.DeleteVTEPResponse{Vtep: vtepInfo(s.cfg.Cluster, old.msg), Action: actionDeleted}
		if r.GetDryRun() {
			resp.Action += dryRunSuffix
			return resp, nil
		}
		res, err := s.kv.Txn(ctx, []kvstore.Cmp{kvstore.AtRevision(old.kv.Key, old.kv.ModRevision)},
			[]kvstore.Op{kvstore.Delete(old.kv.Key), kvstore.Delete(s.podCIDRKey(p).String())}, nil)
		if err != nil {
			return nil, apiError(err)
		}
		if res.Succeeded {
			s.log.Info("external tunnel endpoint deleted", "prefix", p, "tunnel", old.msg.GetTunnelAddress())
			return resp, nil
		}
	}
	return nil, apiError(fmt.Errorf("vtep %s: %w", p, errRace))
}
