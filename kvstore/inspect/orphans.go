// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"slices"
	"strings"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Orphan is a key that refers to something which is not stored.
type Orphan struct {
	Key     string `json:"key"`
	Cluster string `json:"cluster"`
	Kind    string `json:"kind"`
	Missing string `json:"missing"` // the key that should exist
	Why     string `json:"why"`
	// Needs are the keys of which one should exist; Missing is the first.
	Needs    []string `json:"-"`
	Revision int64    `json:"-"` // of the last change of Key
}

// owner is what a key needs to make sense: one of keys.
type owner struct {
	keys []string
	why  string
}

// Orphans finds the keys of state/ and local/<own>/ whose owner is missing:
// references without identity or node, halves of identities, ips and vteps
// without node, ips without identity, slices without service. Both subtrees are
// read at one revision, so what is being written right now is not reported. The
// client needs the rights of an administrator of own.
func Orphans(ctx context.Context, c kvstore.Client, own string) ([]Orphan, error) {
	return orphans(ctx, c, kvstore.SubtreePrefix(kvstore.State), own)
}

// OwnOrphans is Orphans of state/<own>/ and local/<own>/ alone, for the API
// server of own.
func OwnOrphans(ctx context.Context, c kvstore.Client, own string) ([]Orphan, error) {
	return orphans(ctx, c, kvstore.Prefix(kvstore.State, own), own)
}

func orphans(ctx context.Context, c kvstore.Client, state, own string) ([]Orphan, error) {
	exists := map[string]int64{}
	needs := map[string][]owner{}
	collect := func(kv kvstore.KV) error {
		exists[kv.Key] = kv.ModRevision
		k, err := kvstore.ParseKey(kv.Key)
		if err != nil {
			return nil //nolint:nilerr // ls shows it; it refers to nothing
		}
		if o := owners(k, kv.Value); len(o) > 0 {
			needs[kv.Key] = o
		}
		return nil
	}
	rev, err := Walk(ctx, c, state, collect)
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	if _, err := WalkAt(ctx, c, kvstore.Prefix(kvstore.Local, own), rev, collect); err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	out := []Orphan{}
	for key, os := range needs {
		k, _ := kvstore.ParseKey(key) // it did above
		for _, o := range os {
			if !slices.ContainsFunc(o.keys, func(k string) bool { return exists[k] != 0 }) {
				out = append(out, Orphan{Key: key, Cluster: k.Cluster, Kind: string(k.Kind), Missing: o.keys[0], Why: o.why, Needs: o.keys, Revision: exists[key]})
			}
		}
	}
	slices.SortFunc(out, func(a, b Orphan) int { return strings.Compare(a.Key+a.Missing, b.Key+b.Missing) })
	return out, nil
}

// owners are the keys that a key cannot do without. Values that cannot be read
// need nothing: ls shows what is wrong with them.
func owners(k kvstore.Key, value []byte) []owner {
	state := func(kind kvstore.Kind, names ...string) string {
		return kvstore.NewKey(kvstore.State, k.Cluster, kind, names...).String()
	}
	local := func(kind kvstore.Kind, names ...string) string {
		return kvstore.NewKey(kvstore.Local, k.Cluster, kind, names...).String()
	}
	if k.Kind == kvstore.KindRef {
		return []owner{
			{[]string{state(kvstore.KindIdentity, k.Names[0])}, "the identity referred to does not exist"},
			{[]string{state(kvstore.KindNode, k.Names[1])}, "the referring node does not exist"},
		}
	}
	m, err := kvstore.Decode(k, value)
	if err != nil {
		return nil
	}
	switch r := m.(type) {
	case *keyspacev1.IPEntry:
		out := []owner{{[]string{state(kvstore.KindNode, r.GetNode())}, "the node of the address does not exist"}}
		if n := identity.Number(r.GetIdentity()); n > identity.MaxReserved && !n.IsLocal() {
			out = append(out, owner{[]string{state(kvstore.KindIdentity, kvstore.NumberName(r.GetIdentity()))}, "the identity of the address does not exist"})
		}
		return out
	case *keyspacev1.VTEP:
		if r.GetNode() != "" {
			return []owner{{[]string{state(kvstore.KindNode, r.GetNode())}, "the node behind the prefix does not exist"}}
		}
	case *keyspacev1.IdentityRef:
		if k.Kind == kvstore.KindIdentityLabels {
			return []owner{{[]string{state(kvstore.KindIdentity, kvstore.NumberName(r.GetNumber()))}, "the number of the labels does not exist"}}
		}
	case *keyspacev1.Identity:
		set, err := labels.ParseSet(r.GetLabels(), labels.Any)
		if err != nil {
			return nil
		}
		return []owner{{[]string{state(kvstore.KindIdentityLabels, set.Hash())}, "the labels of the number do not exist"}}
	case *keyspacev1.BackendSlice:
		return []owner{{[]string{
			state(kvstore.KindService, r.GetNamespace(), r.GetService()),
			local(kvstore.KindService, r.GetNamespace(), r.GetService()),
		}, "the service of the slice does not exist"}}
	}
	return nil
}
