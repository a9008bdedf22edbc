// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

const kindService = "Service"

// raceTries is how often a write that another one overtook is tried again.
const raceTries = 8

var errRace = errors.New("overtaken by other writes")

// serviceSubtree is where a service is kept: what peers may read is under
// state/.
func serviceSubtree(shared bool) kvstore.Subtree {
	if shared {
		return kvstore.State
	}
	return kvstore.Local
}

func (s *Server) serviceKey(sub kvstore.Subtree, namespace, name string) kvstore.Key {
	return kvstore.NewKey(sub, s.cfg.Cluster, kvstore.KindService, namespace, name)
}

// storedService finds a service in either subtree.
func (s *Server) storedService(ctx context.Context, namespace, name string) (stored[*keyspacev1.Service], bool, error) {
	for _, sub := range []kvstore.Subtree{kvstore.State, kvstore.Local} {
		r, found, err := get[*keyspacev1.Service](ctx, s, s.serviceKey(sub, namespace, name))
		if err != nil || found {
			return r, found, err
		}
	}
	return stored[*keyspacev1.Service]{}, false, nil
}

// ApplyService stores the services of a manifest, each with the number and
// address that this cluster gives it. All objects are validated before the
// first is stored.
func (s *Server) ApplyService(ctx context.Context, r *hawserv1.ApplyServiceRequest) (*hawserv1.ApplyServiceResponse, error) {
	objects, err := loadbalancer.ParseServices([]byte(r.GetSource()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	var errs []error
	for _, o := range objects {
		for _, a := range o.ClusterIPs {
			if err := loadbalancer.CheckVIP(s.cfg.ServiceCIDRs, a); err != nil {
				errs = append(errs, fmt.Errorf("%s %s: spec.clusterIP: %w", kindService, o.ID(), err))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	resp, others := &hawserv1.ApplyServiceResponse{}, &taken{s: s}
	for _, o := range objects {
		action, err := s.applyService(ctx, o, others, r.GetDryRun())
		if err != nil {
			return nil, apiError(fmt.Errorf("%s %s: %w%s", kindService, o.ID(), err, doneBefore(resp.GetObjects())))
		}
		resp.Objects = append(resp.Objects, &hawserv1.AppliedObject{
			Kind: kindService, Namespace: o.Service.GetNamespace(), Name: o.Service.GetName(), Action: action,
		})
	}
	if r.GetDryRun() {
		markDryRun(resp.GetObjects())
	}
	return resp, nil
}

// doneBefore tells what of a manifest is stored although a later object failed.
func doneBefore(objects []*hawserv1.AppliedObject) string {
	var done []string
	for _, o := range objects {
		done = append(done, fmt.Sprintf("%s %s/%s %s", o.GetKind(), o.GetNamespace(), o.GetName(), o.GetAction()))
	}
	if len(done) == 0 {
		return "; nothing was changed"
	}
	return "; done before it: " + strings.Join(done, ", ")
}

func (s *Server) applyService(ctx context.Context, o loadbalancer.Object, others *taken, dryRun bool) (action string, err error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	for range raceTries {
		if action, err = s.tryApplyService(ctx, o, others, dryRun); !errors.Is(err, errRace) {
			return action, err
		}
		others.forget()
	}
	return "", err
}

func (s *Server) tryApplyService(ctx context.Context, o loadbalancer.Object, others *taken, dryRun bool) (action string, err error) {
	want := proto.CloneOf(o.Service)
	old, found, err := s.storedService(ctx, want.GetNamespace(), want.GetName())
	if err != nil {
		return "", err
	}
	key := s.serviceKey(serviceSubtree(want.GetShared()), want.GetNamespace(), want.GetName())
	cmps, ops, err := s.allocate(ctx, want, old.msg, o, others)
	if err != nil {
		return "", err
	}
	if found {
		action = actionConfigured
		cmps = append(cmps, kvstore.AtRevision(old.kv.Key, old.kv.ModRevision))
		if old.kv.Key != key.String() {
			ops = append(ops, kvstore.Delete(old.kv.Key))
		}
	} else {
		action = actionCreated
		cmps = append(cmps, kvstore.Absent(key.String()))
	}
	op, err := put(key, want)
	if err != nil {
		return "", err
	}
	if found && old.kv.Key == key.String() && kvstore.SameRecord(key, old.kv.Value, op.Value) {
		return actionUnchanged, nil
	}
	if dryRun {
		return action, nil
	}
	r, err := s.kv.Txn(ctx, cmps, append(ops, op), nil)
	if err == nil && !r.Succeeded {
		err = errRace
	}
	if err == nil {
		others.note(want)
	}
	return action, err
}

// number carries the number of a stored service over to its new version, or
// chooses one for a new service. It returns what must hold for it to be free, and
// the operations that take it.
func (s *Server) number(ctx context.Context, want, old *keyspacev1.Service, others *taken) ([]kvstore.Cmp, error) {
	if old != nil {
		want.Id = old.GetId()
		if want.GetHeadless() != old.GetHeadless() {
			return nil, status.Error(codes.FailedPrecondition,
				"spec.clusterIP: a service cannot get or lose its address; delete the service first")
		}
		return nil, nil
	}
	usedIDs, err := others.numbers(ctx)
	if err != nil {
		return nil, err
	}
	if want.Id, err = loadbalancer.NextServiceID(s.cfg.ClusterID, func(n uint32) bool { return usedIDs[n] }); err != nil {
		return nil, err
	}
	return []kvstore.Cmp{kvstore.Absent(s.serviceIDKey(want).String())}, nil
}

func (s *Server) serviceIDKey(svc *keyspacev1.Service) kvstore.Key {
	return kvstore.NewKey(kvstore.State, s.cfg.Cluster, kvstore.KindServiceID, kvstore.NumberName(svc.GetId()))
}

// allocate gives a service its number and its addresses: those that it has, and
// new ones of the families that it lacks. It returns what must hold for them to
// be free and the operations that take them, none when nothing is new.
func (s *Server) allocate(ctx context.Context, want, old *keyspacev1.Service, o loadbalancer.Object, others *taken) ([]kvstore.Cmp, []kvstore.Op, error) {
	cmps, err := s.number(ctx, want, old, others)
	if err != nil {
		return nil, nil, err
	}
	var ops []kvstore.Op
	if !want.GetHeadless() {
		taken, puts, err := s.addresses(ctx, want, old, o, others)
		if err != nil {
			return nil, nil, err
		}
		cmps, ops = append(cmps, taken...), puts
	}
	if len(cmps) == 0 && len(ops) == 0 {
		return nil, nil, nil
	}
	idOp, err := put(s.serviceIDKey(want), &keyspacev1.ServiceID{
		Number: want.GetId(), Namespace: want.GetNamespace(), Name: want.GetName(), Vips: want.GetVips(),
	})
	return cmps, append(ops, idOp), err
}

// DeleteService deletes one service by name, or those of a manifest. Number and
// address are free again.
func (s *Server) DeleteService(ctx context.Context, r *hawserv1.DeleteServiceRequest) (*hawserv1.DeleteServiceResponse, error) {
	names := [][2]string{{r.GetNamespace(), r.GetName()}}
	if r.GetSource() != "" {
		objects, err := loadbalancer.ParseServices([]byte(r.GetSource()))
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		names = nil
		for _, o := range objects {
			names = append(names, [2]string{o.Service.GetNamespace(), o.Service.GetName()})
		}
	}
	var olds []stored[*keyspacev1.Service]
	for _, n := range names {
		old, found, err := s.storedService(ctx, n[0], n[1])
		if err != nil {
			return nil, apiError(err)
		}
		if !found {
			return nil, status.Errorf(codes.NotFound, "no service %s/%s; nothing was deleted; see: hawser service list", n[0], n[1])
		}
		olds = append(olds, old)
	}
	resp := &hawserv1.DeleteServiceResponse{}
	for i, n := range names {
		if err := s.deleteService(ctx, olds[i]); err != nil {
			return nil, apiError(fmt.Errorf("%s %s/%s: %w%s", kindService, n[0], n[1], err, doneBefore(resp.GetObjects())))
		}
		resp.Objects = append(resp.Objects, &hawserv1.AppliedObject{Kind: kindService, Namespace: n[0], Name: n[1], Action: actionDeleted})
	}
	return resp, nil
}

// deleteService deletes a service as it was read, with its number and address.
func (s *Server) deleteService(ctx context.Context, old stored[*keyspacev1.Service]) error {
	ops := []kvstore.Op{
		kvstore.Delete(old.kv.Key),
		kvstore.Delete(kvstore.NewKey(kvstore.State, s.cfg.Cluster, kvstore.KindServiceID, kvstore.NumberName(old.msg.GetId())).String()),
	}
	for _, vip := range old.msg.GetVips() {
		ops = append(ops, kvstore.Delete(kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindVIP, vip).String()))
	}
	r, err := s.kv.Txn(ctx, []kvstore.Cmp{kvstore.AtRevision(old.kv.Key, old.kv.ModRevision)}, ops, nil)
	if err == nil && !r.Succeeded {
		err = errRace
	}
	return err
}
