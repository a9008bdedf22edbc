// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"fmt"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

const pageSize = 1000

// Survey is what a store says of one cluster's identities, all at one revision.
// Records that cannot be believed are not in it.
type Survey struct {
	Revision int64
	IDs      map[identity.Number]ID
	// Nodes are those that refer to each number.
	Nodes   map[identity.Number][]string
	Retired map[identity.Number]Retired

	byLabels map[string]labelsKey // by hash
}

// ID is a number that stands for labels.
type ID struct {
	Labels labels.Set
	rev    int64
}

// Retired is a number that may not be given again yet.
type Retired struct {
	Number identity.Number
	Since  time.Time
	// Revision is that at which the number was deleted.
	Revision int64
	// LabelsHash is that of the labels that it stood for, "" if nobody may put it
	// back.
	LabelsHash string
}

type labelsKey struct {
	number identity.Number
	rev    int64
}

// Look surveys a cluster. It reads every key of its identities.
func Look(ctx context.Context, kv kvstore.Client, cluster string) (*Survey, error) {
	s := &Survey{
		IDs: map[identity.Number]ID{}, Nodes: map[identity.Number][]string{},
		Retired: map[identity.Number]Retired{}, byLabels: map[string]labelsKey{},
	}
	for _, part := range []struct {
		tree kvstore.Subtree
		kind kvstore.Kind
	}{
		{kvstore.State, kvstore.KindIdentity}, {kvstore.State, kvstore.KindIdentityLabels},
		{kvstore.Local, kvstore.KindRef}, {kvstore.Local, kvstore.KindRetired},
	} {
		prefix := kvstore.KindPrefix(part.tree, cluster, part.kind)
		if err := s.list(ctx, kv, prefix); err != nil {
			return nil, fmt.Errorf("survey identities: %w", err)
		}
	}
	return s, nil
}

func (s *Survey) list(ctx context.Context, kv kvstore.Client, prefix string) error {
	for after := ""; ; {
		p, err := kv.List(ctx, prefix, after, pageSize, s.Revision)
		if err != nil {
			return err
		}
		s.Revision = p.Revision
		for _, kv := range p.KVs {
			after = kv.Key
			s.take(kv)
		}
		if !p.More {
			return nil
		}
	}
}

func (s *Survey) take(kv kvstore.KV) {
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return
	}
	if k.Kind == kvstore.KindRef {
		if n, ok := kvstore.ParseNumber(k.Names[0]); ok {
			s.Nodes[identity.Number(n)] = append(s.Nodes[identity.Number(n)], k.Names[1])
		}
		return
	}
	m, err := kvstore.Decode(k, kv.Value)
	if err != nil {
		return
	}
	switch r := m.(type) {
	case *keyspacev1.Identity:
		if set, err := labels.ParseSet(r.GetLabels(), labels.Any); err == nil {
			s.IDs[identity.Number(r.GetNumber())] = ID{Labels: set, rev: kv.ModRevision}
		}
	case *keyspacev1.IdentityRef:
		n := identity.Number(r.GetNumber())
		if k.Kind == kvstore.KindRetired {
			s.Retired[n] = Retired{Number: n, Since: time.Unix(0, r.GetUpdatedAt()), Revision: kv.ModRevision, LabelsHash: r.GetLabelsHash()}
		} else {
			s.byLabels[k.Names[0]] = labelsKey{n, kv.ModRevision}
		}
	}
}

// Used reports whether any node refers to a number.
func (s *Survey) Used(n identity.Number) bool { return len(s.Nodes[n]) > 0 }

// rememberedAs is the hash under which a number that is retired now may be put
// back: "" if it is retired already and others may remember it as something else.
func (s *Survey) rememberedAs(n identity.Number, hash string) string {
	if r, already := s.Retired[n]; already && r.LabelsHash != hash {
		return ""
	}
	return hash
}

// Free is how many of the numbers of a range are left to be given. The first of
// a range is never given.
func (s *Survey) Free(first, last identity.Number) int {
	free := int(last - first)
	for n := range s.IDs {
		if n > first && n <= last {
			free--
		}
	}
	for n := range s.Retired {
		if _, also := s.IDs[n]; !also && n > first && n <= last {
			free--
		}
	}
	return free
}
