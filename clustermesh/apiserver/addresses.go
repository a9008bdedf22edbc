// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// serviceFamilies are the families of which services here can have an address.
func (c *Config) serviceFamilies() (out []string) {
	for _, f := range []string{ipv4, ipv6} {
		if len(ofFamily(c.ServiceCIDRs, f)) > 0 {
			out = append(out, f)
		}
	}
	return out
}

// familiesOf are those of which a service gets an address.
func (s *Server) familiesOf(want *keyspacev1.Service, o loadbalancer.Object) ([]string, error) {
	have := s.cfg.serviceFamilies()
	families := loadbalancer.Families(want.GetIpFamilies(), have)
	if len(families) == 0 || o.DualStack && len(families) < 2 {
		return nil, status.Errorf(codes.FailedPrecondition,
			"spec.ipFamilies: this cluster has service addresses of %v only; a range of the other family is given by: hawser-apiserver run --service-cidr", have)
	}
	return families, nil
}

// vipIn is the service's address of a family; not ok without one.
func vipIn(svc *keyspacev1.Service, family string) (text string, ok bool) {
	for _, vip := range svc.GetVips() {
		if a, err := netip.ParseAddr(vip); err == nil && loadbalancer.FamilyOf(a) == family {
			return vip, true
		}
	}
	return "", false
}

// addresses gives a service an address of each family that it is to have: the one
// that it has, or a free one. What it has of other families is given back.
func (s *Server) addresses(ctx context.Context, want, old *keyspacev1.Service, o loadbalancer.Object, others *taken) (cmps []kvstore.Cmp, ops []kvstore.Op, err error) {
	families, err := s.familiesOf(want, o)
	if err != nil {
		return nil, nil, err
	}
	want.Vips = nil
	for _, f := range families {
		asked := netip.Addr{}
		if i := slices.IndexFunc(o.ClusterIPs, func(a netip.Addr) bool { return loadbalancer.FamilyOf(a) == f }); i >= 0 {
			asked = o.ClusterIPs[i]
		}
		if has, ok := vipIn(old, f); ok {
			if asked.IsValid() && asked.String() != has {
				return nil, nil, status.Errorf(codes.FailedPrecondition,
					"spec.clusterIP %s: its address is %s and cannot change; delete the service first", asked, has)
			}
			want.Vips = append(want.Vips, has)
			continue
		}
		vip, err := s.chooseVIP(ctx, f, asked, others)
		if err != nil {
			return nil, nil, err
		}
		key := kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindVIP, vip.String())
		op, err := put(key, &keyspacev1.VIPOwner{Ip: vip.String(), Namespace: want.GetNamespace(), Name: want.GetName()})
		if err != nil {
			return nil, nil, err
		}
		want.Vips = append(want.Vips, vip.String())
		cmps, ops = append(cmps, kvstore.Absent(key.String())), append(ops, op)
	}
	for _, vip := range old.GetVips() {
		if !slices.Contains(want.GetVips(), vip) {
			ops = append(ops, kvstore.Delete(kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindVIP, vip).String()))
		}
	}
	return cmps, ops, nil
}

func (s *Server) chooseVIP(ctx context.Context, family string, asked netip.Addr, others *taken) (netip.Addr, error) {
	used, err := others.addresses(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	if asked.IsValid() {
		if owner, taken := used[asked]; taken {
			return netip.Addr{}, status.Errorf(codes.FailedPrecondition, "spec.clusterIP %s: belongs to service %s", asked, owner)
		}
		return asked, nil
	}
	ranges := ofFamily(s.cfg.ServiceCIDRs, family)
	for _, p := range ranges {
		a, err := loadbalancer.NextVIP(p, func(a netip.Addr) bool { return used[a] != "" })
		if err == nil {
			return a, nil
		}
		if !errors.Is(err, loadbalancer.ErrExhausted) {
			return netip.Addr{}, err
		}
	}
	return netip.Addr{}, status.Errorf(codes.ResourceExhausted, "all addresses of the service ranges %v are in use", ranges)
}

// complete gives a stored service the addresses that it lacks since the cluster
// got a range of another family. Lost races are left to the next step.
func (v *vipKeeper) complete(ctx context.Context, r stored[*keyspacev1.Service]) error {
	if r.msg.GetHeadless() {
		return nil
	}
	want := proto.CloneOf(r.msg)
	lacks := func(f string) bool { _, ok := vipIn(want, f); return !ok }
	if !slices.ContainsFunc(loadbalancer.Families(want.GetIpFamilies(), v.s.cfg.serviceFamilies()), lacks) {
		return nil
	}
	cmps, ops, err := v.s.allocate(ctx, want, r.msg, loadbalancer.Object{}, &taken{s: v.s})
	if err != nil {
		return fmt.Errorf("addresses of service %s/%s: %w", want.GetNamespace(), want.GetName(), err)
	}
	key, err := kvstore.ParseKey(r.kv.Key)
	if err != nil {
		return err
	}
	op, err := put(key, want)
	if err != nil {
		return err
	}
	cmps = append(append(cmps, kvstore.AtRevision(r.kv.Key, r.kv.ModRevision)), v.fence...)
	res, err := v.s.kv.Txn(ctx, cmps, append(ops, op), nil)
	if err == nil && res.Succeeded {
		v.s.log.Info("service has a further address", "service", want.GetNamespace()+"/"+want.GetName(), "addresses", want.GetVips())
	}
	return err
}
