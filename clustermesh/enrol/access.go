// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

// user is the etcd user of a key.
func (s *Service) user(keyHash []byte) string {
	var h [32]byte
	copy(h[:], keyHash)
	return etcd.NodeUser(s.CA.Cluster(), h)
}

// changeUser admits one key of a node to etcd and expels the one before; either
// may be none.
func (s *Service) changeUser(ctx context.Context, node string, former, key []byte) error {
	if s.Access == nil {
		return nil
	}
	if len(key) > 0 {
		if err := s.Access.AdmitNode(ctx, s.CA.Cluster(), node, s.user(key)); err != nil {
			return err
		}
	}
	if len(former) > 0 && !bytes.Equal(former, key) {
		return s.Access.ExpelNode(ctx, s.user(former))
	}
	return nil
}

// Reconcile makes etcd's users of nodes what the enrolments say: after a start,
// a restored backup or an import. As long as the record of one cannot be read nobody
// is expelled: it may be that node's user.
func (s *Service) Reconcile(ctx context.Context) error {
	if s.Access == nil {
		return nil
	}
	// Users first: one that is there was enrolled before, and is found below
	// unless it was forgotten.
	there, err := s.Access.NodeUsers(ctx, s.CA.Cluster())
	if err != nil {
		return fmt.Errorf("admit nodes to etcd: %w", err)
	}
	surplus := map[string]bool{}
	for _, u := range there {
		surplus[u] = true
	}
	var errs []error
	var unreadable []string
	err = s.eachEnrolment(ctx, func(key string, r *keyspacev1.Enrolment) {
		if r == nil {
			unreadable = append(unreadable, key)
			return
		}
		u := s.user(r.GetKeyHash())
		errs = append(errs, s.Access.AdmitNode(ctx, s.CA.Cluster(), r.GetNode(), u))
		delete(surplus, u)
	})
	if err != nil {
		return fmt.Errorf("admit nodes to etcd: %w", err)
	}
	if len(unreadable) > 0 {
		s.Log.Error("enrolments cannot be read; no node's access to etcd is taken away until they can; remove those keys (hawser kvstore del KEY --write) and invite the nodes again (hawser node invite NODE)", "keys", unreadable)
		return errors.Join(errs...)
	}
	for u := range surplus {
		errs = append(errs, s.Access.ExpelNode(ctx, u))
	}
	return errors.Join(errs...)
}

// eachEnrolment calls fn with each record and its key; the record is nil where it
// cannot be read.
func (s *Service) eachEnrolment(ctx context.Context, fn func(key string, r *keyspacev1.Enrolment)) error {
	prefix := kvstore.KindPrefix(kvstore.Private, s.CA.Cluster(), kvstore.KindEnrolment)
	_, err := inspect.Walk(ctx, s.KV, prefix, func(kv kvstore.KV) error {
		var r *keyspacev1.Enrolment
		if k, err := kvstore.ParseKey(kv.Key); err == nil {
			if m, err := kvstore.Decode(k, kv.Value); err == nil {
				r, _ = m.(*keyspacev1.Enrolment)
			}
		}
		fn(kv.Key, r)
		return nil
	})
	return err
}
