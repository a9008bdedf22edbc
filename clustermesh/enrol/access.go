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
// a restored backup or an import.
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
	err = s.eachEnrolment(ctx, func(r *keyspacev1.Enrolment) {
		u := s.user(r.GetKeyHash())
		errs = append(errs, s.Access.AdmitNode(ctx, s.CA.Cluster(), r.GetNode(), u))
		delete(surplus, u)
	})
	if err != nil {
		return fmt.Errorf("admit nodes to etcd: %w", err)
	}
	for u := range surplus {
		errs = append(errs, s.Access.ExpelNode(ctx, u))
	}
	return errors.Join(errs...)
}

const enrolmentPage = 500

func (s *Service) eachEnrolment(ctx context.Context, fn func(*keyspacev1.Enrolment)) error {
	prefix := kvstore.KindPrefix(kvstore.Private, s.CA.Cluster(), kvstore.KindEnrolment)
	for after := ""; ; {
		page, err := s.KV.List(ctx, prefix, after, enrolmentPage, 0)
		if err != nil {
			return err
		}
		for _, kv := range page.KVs {
			after = kv.Key
			k, err := kvstore.ParseKey(kv.Key)
			if err != nil {
				continue
			}
			if m, err := kvstore.Decode(k, kv.Value); err == nil {
				if r, ok := m.(*keyspacev1.Enrolment); ok {
					fn(r)
				}
			}
		}
		if !page.More {
			return nil
		}
	}
}
