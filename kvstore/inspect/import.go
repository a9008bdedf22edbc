// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// maxImportBytes keeps a transaction below etcd's limit for a request.
const maxImportBytes = 1 << 20

// ImportOptions are what an import may do.
type ImportOptions struct {
	// Replace removes keys that are stored and not in the export, of the
	// kinds that API servers and operators write; what agents and peers
	// publish is theirs to remove.
	Replace bool
	// DryRun counts and writes nothing.
	DryRun bool
}

// Imported says what an import did, or would do.
type Imported struct {
	Written     int    `json:"written"`
	Removed     int    `json:"removed"`
	Unchanged   int    `json:"unchanged"`
	LeftToOwner int    `json:"leftToOwner"` // published by an agent that is present, or an identity that exists
	Skipped     int    `json:"skipped"`     // leased, or about another history
	Incarnation string `json:"incarnation,omitempty"`
}

// importer is one run of Import.
type importer struct {
	c       kvstore.Client
	own     string
	present map[string]bool // nodes whose agents hold their presence
	stored  map[string][]byte
	res     Imported

	puts       []kvstore.KV
	identities []kvstore.KV
	deletes    []string
}

// Import stores what Parse returned into own's store, which is another history
// from then on: it first replaces the incarnation and removes own's markers, then
// writes. Positions in peers' histories are dropped, so that mirrors are compared
// with their origin again. An export may be older than the store: keys of agents
// that are present, and identities that exist, stay as they are.
func Import(ctx context.Context, c kvstore.Client, own string, kvs []kvstore.KV, o ImportOptions) (Imported, error) {
	im := &importer{c: c, own: own, present: map[string]bool{}, stored: map[string][]byte{}}
	for _, p := range Prefixes(own) {
		if _, err := Walk(ctx, c, p, im.remember); err != nil {
			return im.res, fmt.Errorf("import: %w", err)
		}
	}
	im.plan(kvs, o.Replace)
	if o.DryRun {
		return im.res, nil
	}
	var err error
	if im.res.Incarnation, err = store.Reincarnate(ctx, c, own); err != nil {
		return im.res, fmt.Errorf("import: %w", err)
	}
	if err := im.write(ctx); err != nil {
		return im.res, fmt.Errorf("import stopped half-way; it can be repeated: %w", err)
	}
	return im.res, nil
}

func (im *importer) remember(kv kvstore.KV) error {
	im.stored[kv.Key] = kv.Value
	if k, err := kvstore.ParseKey(kv.Key); err == nil && k.Kind == kvstore.KindPresence {
		im.present[k.Names[0]] = true
	}
	return nil
}

// plan sorts what is imported into what is done with it.
func (im *importer) plan(kvs []kvstore.KV, replace bool) {
	wanted := map[string]bool{}
	for _, kv := range kvs {
		wanted[kv.Key] = true
		k, err := kvstore.ParseKey(kv.Key)
		old, exists := im.stored[kv.Key]
		switch {
		case err != nil || ofThisHistory(k.Kind, k.Subtree):
			im.res.Skipped++
		case exists && bytes.Equal(old, kv.Value):
			im.res.Unchanged++
		case exists && (k.Kind == kvstore.KindIdentity || k.Kind == kvstore.KindIdentityLabels):
			im.res.LeftToOwner++
		case k.Cluster == im.own && im.present[writer(k, kv.Value)]:
			im.res.LeftToOwner++
		case k.Kind == kvstore.KindIdentity:
			im.identities = append(im.identities, kv)
			im.res.Written += 2
		case k.Kind == kvstore.KindIdentityLabels: // written and counted with their number
		default:
			im.puts = append(im.puts, kv)
			im.res.Written++
		}
	}
	for key := range im.stored {
		k, err := kvstore.ParseKey(key)
		if err != nil {
			continue
		}
		position := k.Kind == kvstore.KindProgress && k.Subtree == kvstore.Private
		if position || replace && !wanted[key] && im.mayRemove(k) {
			im.deletes = append(im.deletes, key)
			im.res.Removed++
		}
	}
	slices.SortStableFunc(im.puts, func(a, b kvstore.KV) int { return cmp.Compare(importRank(a), importRank(b)) })
	slices.Sort(im.deletes)
}

// writer is the node whose agent writes a key; empty when none does.
func writer(k kvstore.Key, value []byte) string {
	switch k.Kind {
	case kvstore.KindNode, kvstore.KindStatus:
		return k.Names[0]
	case kvstore.KindRef:
		return k.Names[1]
	case kvstore.KindSlice:
		return k.Names[2] // a plain host's slice is named by its node
	case kvstore.KindIP, kvstore.KindVTEP:
		if m, ok := kvstore.Unmarshal(k, value); ok {
			if n, ok := m.(interface{ GetNode() string }); ok {
				return n.GetNode()
			}
		}
	}
	return ""
}

// mayRemove lists what API servers and operators write.
func (im *importer) mayRemove(k kvstore.Key) bool {
	if k.Cluster != im.own {
		return false
	}
	switch k.Kind {
	case kvstore.KindService, kvstore.KindServiceID, kvstore.KindPolicy, kvstore.KindNodeConfig, kvstore.KindToken,
		kvstore.KindPodCIDR, kvstore.KindVIP:
		return true
	case kvstore.KindPeerView:
		return k.Subtree == kvstore.Private
	}
	return false
}

// importRank puts nodes before ips before the rest; within a rank the export's order
// stays.
func importRank(kv kvstore.KV) int {
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return 0
	}
	if i := slices.Index(kvstore.PublicKinds, k.Kind); i >= 0 {
		return i
	}
	return len(kvstore.PublicKinds)
}

func (im *importer) write(ctx context.Context) error {
	for _, kv := range im.identities {
		if err := im.identity(ctx, kv); err != nil {
			return err
		}
	}
	var ops []kvstore.Op
	size := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := im.c.Txn(ctx, nil, ops, nil)
		ops, size = nil, 0
		return err
	}
	add := func(op kvstore.Op) error {
		n := len(op.Key) + len(op.Value)
		if len(ops) == kvstore.MaxTxnOps || size+n > maxImportBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		ops, size = append(ops, op), size+n
		return nil
	}
	for _, kv := range im.puts {
		if err := add(kvstore.Put(kv.Key, kv.Value)); err != nil {
			return err
		}
	}
	for _, key := range im.deletes {
		if err := add(kvstore.Delete(key)); err != nil {
			return err
		}
	}
	return flush()
}

// identity stores a number with its labels key, unless one of them exists by
// now, or the number is retired: a number never changes its meaning.
func (im *importer) identity(ctx context.Context, kv kvstore.KV) error {
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return err
	}
	m, err := kvstore.Decode(k, kv.Value)
	if err != nil {
		return err
	}
	id, ok := m.(*keyspacev1.Identity)
	if !ok {
		return fmt.Errorf("%s holds a %T", kv.Key, m)
	}
	set, err := labels.ParseSet(id.GetLabels(), labels.Any)
	if err != nil {
		return err
	}
	byLabels := kvstore.NewKey(kvstore.State, k.Cluster, kvstore.KindIdentityLabels, set.Hash())
	value, err := kvstore.Encode(byLabels, &keyspacev1.IdentityRef{Number: id.GetNumber()})
	if err != nil {
		return err
	}
	free := []kvstore.Cmp{kvstore.Absent(kv.Key), kvstore.Absent(byLabels.String())}
	if k.Cluster == im.own { // peers may still map a retired number to other labels
		free = append(free, kvstore.Absent(kvstore.NewKey(kvstore.Local, im.own, kvstore.KindRetired, k.Names[0]).String()))
	}
	r, err := im.c.Txn(ctx, free,
		[]kvstore.Op{kvstore.Put(byLabels.String(), value), kvstore.Put(kv.Key, kv.Value)}, nil)
	if err == nil && !r.Succeeded {
		im.res.Written -= 2
		im.res.LeftToOwner += 2
	}
	return err
}
