// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

// user is the etcd user of a key.
func (s *Service) user(keyHash []byte) string {
	var h [32]byte
	copy(h[:], keyHash)
	return etcd.NodeUser(s.CA.Cluster(), h)
}

// settle makes etcd's users what the enrolment of a node says: the key that it
// names is admitted, each other one of the keys expelled. The enrolment is read
// again afterwards: who was admitted by what it said before does not stay.
func (s *Service) settle(ctx context.Context, node string, keys ...[]byte) error {
	if s.Access == nil {
		return nil
	}
	return cas.Retry(ctx, func() error {
		was, err := s.enrolment(ctx, node)
		if err != nil {
			return err
		}
		named := was.Msg.GetKeyHash()
		if err := s.expel(ctx, named, keys...); err != nil {
			return err
		}
		if len(named) > 0 {
			if err := s.Access.AdmitNode(ctx, s.CA.Cluster(), node, s.user(named)); err != nil {
				return err
			}
		}
		now, err := s.enrolment(ctx, node)
		if err != nil || bytes.Equal(now.Msg.GetKeyHash(), named) {
			return err
		}
		keys = append(keys, named)
		return cas.ErrConflict
	})
}

// expel takes etcd from each of the keys but one; they may be empty.
func (s *Service) expel(ctx context.Context, but []byte, keys ...[]byte) error {
	for _, k := range keys {
		if s.Access == nil || len(k) == 0 || bytes.Equal(k, but) {
			continue
		}
		if err := s.Access.ExpelNode(ctx, s.user(k)); err != nil {
			return err
		}
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
	enrolled, unreadable, err := s.enrolled(ctx)
	if err != nil {
		return fmt.Errorf("admit nodes to etcd: %w", err)
	}
	var errs []error
	for node, key := range enrolled {
		errs = append(errs, s.Access.AdmitNode(ctx, s.CA.Cluster(), node, s.user(key)))
	}
	// Other replicas forget nodes and give their names to other keys meanwhile.
	now, _, err := s.enrolled(ctx)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("admit nodes to etcd: %w", err))...)
	}
	for node, key := range enrolled {
		if !bytes.Equal(now[node], key) {
			errs = append(errs, s.settle(ctx, node, key))
		}
	}
	return errors.Join(append(errs, s.expelSurplus(ctx, there, enrolled, unreadable))...)
}

// sweep expels the users that no enrolment names.
func (s *Service) sweep(ctx context.Context) error {
	if s.Access == nil {
		return nil
	}
	there, err := s.Access.NodeUsers(ctx, s.CA.Cluster()) // first, as in Reconcile
	if err != nil {
		return err
	}
	enrolled, unreadable, err := s.enrolled(ctx)
	if err != nil {
		return err
	}
	return s.expelSurplus(ctx, there, enrolled, unreadable)
}

func (s *Service) expelSurplus(ctx context.Context, there []string, enrolled map[string][]byte, unreadable []string) error {
	if len(unreadable) > 0 {
		s.Log.Error("enrolments cannot be read; no node's access to etcd is taken away until they can; remove those keys (hawser kvstore del KEY --write) and invite the nodes again (hawser node invite NODE)", "keys", unreadable)
		return nil
	}
	named := map[string]bool{}
	for _, key := range enrolled {
		named[s.user(key)] = true
	}
	var errs []error
	for _, u := range there {
		if !named[u] {
			errs = append(errs, s.Access.ExpelNode(ctx, u))
		}
	}
	return errors.Join(errs...)
}

// enrolled are the keys of all nodes by name, and the enrolments that cannot be read.
func (s *Service) enrolled(ctx context.Context) (keys map[string][]byte, unreadable []string, err error) {
	keys = map[string][]byte{}
	prefix := kvstore.KindPrefix(kvstore.Private, s.CA.Cluster(), kvstore.KindEnrolment)
	_, err = inspect.Walk(ctx, s.KV, prefix, func(kv kvstore.KV) error {
		if k, err := kvstore.ParseKey(kv.Key); err == nil {
			if m, err := kvstore.Decode(k, kv.Value); err == nil {
				if r, ok := m.(*keyspacev1.Enrolment); ok {
					keys[r.GetNode()] = r.GetKeyHash()
					return nil
				}
			}
		}
		unreadable = append(unreadable, kv.Key)
		return nil
	})
	return keys, unreadable, err
}
