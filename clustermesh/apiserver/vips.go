// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"slices"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// vipsEvery is how often services and the owners of their addresses are compared.
const vipsEvery = time.Minute

// ownServices reads this cluster's services of both subtrees.
func (s *Server) ownServices(ctx context.Context) ([]stored[*keyspacev1.Service], error) {
	public, err1 := list[*keyspacev1.Service](ctx, s, kvstore.State, s.cfg.Cluster, kvstore.KindService)
	private, err2 := list[*keyspacev1.Service](ctx, s, kvstore.Local, s.cfg.Cluster, kvstore.KindService)
	return slices.Concat(public, private), errors.Join(err1, err2)
}

// vipKeeper repairs who owns which service address: a service's address that
// nobody owns (its record was imported, or its owner's lost) becomes the
// service's, and one whose service is gone is free after a while.
type vipKeeper struct {
	s     *Server
	fence []kvstore.Cmp
	now   func() time.Time
	lost  grace
}

func (v *vipKeeper) step(ctx context.Context) error {
	// Owners first: a service that is made meanwhile brings its own.
	owners, err := list[*keyspacev1.VIPOwner](ctx, v.s, kvstore.Private, v.s.cfg.Cluster, kvstore.KindVIP)
	if err != nil {
		return err
	}
	services, err := v.s.ownServices(ctx)
	if err != nil {
		return err
	}
	has := map[string]bool{} // address and service
	owned := map[string]stored[*keyspacev1.VIPOwner]{}
	for _, o := range owners {
		owned[o.msg.GetIp()] = o
	}
	var errs []error
	for _, r := range services {
		for _, ip := range r.msg.GetVips() {
			has[ip+" "+r.msg.GetNamespace()+"/"+r.msg.GetName()] = true
			if _, ok := owned[ip]; !ok {
				errs = append(errs, v.claim(ctx, r, ip))
			}
		}
		errs = append(errs, v.complete(ctx, r))
	}
	var lost []string
	for ip, o := range owned {
		if !has[ip+" "+o.msg.GetNamespace()+"/"+o.msg.GetName()] {
			lost = append(lost, ip)
		}
	}
	for _, ip := range v.lost.due(v.now(), lost, v.s.cfg.departedAfter()) {
		errs = append(errs, v.free(ctx, owned[ip]))
	}
	return errors.Join(errs...)
}

func (v *vipKeeper) claim(ctx context.Context, r stored[*keyspacev1.Service], ip string) error {
	key := kvstore.NewKey(kvstore.Private, v.s.cfg.Cluster, kvstore.KindVIP, ip)
	op, err := put(key, &keyspacev1.VIPOwner{Ip: ip, Namespace: r.msg.GetNamespace(), Name: r.msg.GetName()})
	if err != nil {
		return err
	}
	cmps := append(slices.Clone(v.fence), kvstore.Absent(key.String()), kvstore.AtRevision(r.kv.Key, r.kv.ModRevision))
	res, err := v.s.kv.Txn(ctx, cmps, []kvstore.Op{op}, nil)
	if err == nil && res.Succeeded {
		v.s.log.Info("service address is owned again", "address", ip, "service", r.msg.GetNamespace()+"/"+r.msg.GetName())
	}
	return err
}

// free gives an address back unless its owner, or a service of that name, has
// come since.
func (v *vipKeeper) free(ctx context.Context, o stored[*keyspacev1.VIPOwner]) error {
	cmps := append(slices.Clone(v.fence), kvstore.AtRevision(o.kv.Key, o.kv.ModRevision))
	for _, sub := range []kvstore.Subtree{kvstore.State, kvstore.Local} {
		key := v.s.serviceKey(sub, o.msg.GetNamespace(), o.msg.GetName())
		r, found, err := get[*keyspacev1.Service](ctx, v.s, key)
		switch {
		case err != nil:
			return err
		case !found:
			cmps = append(cmps, kvstore.Absent(key.String()))
		case slices.Contains(r.msg.GetVips(), o.msg.GetIp()):
			return nil
		default:
			cmps = append(cmps, kvstore.AtRevision(key.String(), r.kv.ModRevision))
		}
	}
	res, err := v.s.kv.Txn(ctx, cmps, []kvstore.Op{kvstore.Delete(o.kv.Key)}, nil)
	if err == nil && res.Succeeded {
		v.s.log.Info("service address is free again", "address", o.msg.GetIp(), "of", o.msg.GetNamespace()+"/"+o.msg.GetName())
	}
	return err
}
