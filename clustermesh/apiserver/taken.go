// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"net/netip"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// taken are the numbers and addresses that the services of the cluster have: as
// they are stored when they are first asked for, and what one request gives out
// after that. So a manifest of many services reads the others once. Who relies on
// it compares when it writes. It is for one goroutine.
type taken struct {
	s    *Server
	ids  map[uint32]bool
	vips map[netip.Addr]string // the service that has it
}

// numbers reads them from etcd when it has not yet.
func (t *taken) numbers(ctx context.Context) (map[uint32]bool, error) {
	if t.ids != nil {
		return t.ids, nil
	}
	ids, err := list[*keyspacev1.ServiceID](ctx, t.s, kvstore.State, t.s.cfg.Cluster, kvstore.KindServiceID)
	if err != nil {
		return nil, err
	}
	t.ids = make(map[uint32]bool, len(ids))
	for _, i := range ids {
		t.ids[i.msg.GetNumber()] = true
	}
	return t.ids, nil
}

// addresses are those that a service has, by whatever record says so. It reads
// them from etcd when it has not yet.
func (t *taken) addresses(ctx context.Context) (map[netip.Addr]string, error) {
	if t.vips != nil {
		return t.vips, nil
	}
	services, err := t.s.ownServices(ctx)
	if err != nil {
		return nil, err
	}
	owners, err := list[*keyspacev1.VIPOwner](ctx, t.s, kvstore.Private, t.s.cfg.Cluster, kvstore.KindVIP)
	if err != nil {
		return nil, err
	}
	t.vips = make(map[netip.Addr]string, len(owners))
	for _, r := range services {
		t.note(r.msg)
	}
	for _, o := range owners {
		t.noteVIP(o.msg.GetIp(), o.msg.GetNamespace(), o.msg.GetName())
	}
	return t.vips, nil
}

// note remembers what a service was given.
func (t *taken) note(svc *keyspacev1.Service) {
	if t.ids != nil {
		t.ids[svc.GetId()] = true
	}
	for _, vip := range svc.GetVips() {
		t.noteVIP(vip, svc.GetNamespace(), svc.GetName())
	}
}

func (t *taken) noteVIP(text, namespace, name string) {
	if a, err := netip.ParseAddr(text); err == nil && t.vips != nil {
		t.vips[a] = namespace + "/" + name
	}
}

// forget has everything read again.
func (t *taken) forget() { t.ids, t.vips = nil, nil }
