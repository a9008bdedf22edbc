// SPDX-License-Identifier: Apache-2.0

// Package inspect reads the keyspace for people: any key as JSON, listings with
// sizes, a summary of the tree, the difference between two copies.
//
// Start with Decode and Walk. Only Import writes. It believes nothing and hides
// nothing: a record that cannot be read is shown with the reason. Out of scope:
// how it is printed (the CLI).
package inspect

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hawser-mesh/hawser/kvstore"
)

const page = 1000

// Entry is one stored key as people see it.
type Entry struct {
	Key            string `json:"key"`
	Subtree        string `json:"subtree,omitempty"`
	Cluster        string `json:"cluster,omitempty"`
	Kind           string `json:"kind,omitempty"`
	Size           int    `json:"size"` // bytes of the value
	CreateRevision int64  `json:"createRevision"`
	ModRevision    int64  `json:"modRevision"`
	// Record is the value as JSON; of a value that cannot be read, its bytes
	// in base64.
	Record json.RawMessage `json:"record"`
	// Problem says why the record is not believed; empty when it is, or when
	// its kind is not known.
	Problem string `json:"problem,omitempty"`
}

// Decode shows one stored key, whatever it holds. Secrets are shown as they are:
// who may read private/ may read them.
func Decode(kv kvstore.KV, limits kvstore.Limits) Entry {
	e := Entry{
		Key: kv.Key, Size: len(kv.Value),
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
	k, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		e.Record, e.Problem = raw(kv.Value), problem(err)
		return e
	}
	e.Subtree, e.Cluster, e.Kind = string(k.Subtree), k.Cluster, string(k.Kind)
	e.Record, err = record(k, kv.Value, limits)
	if err != nil && !errors.Is(err, kvstore.ErrUnknownKind) {
		e.Problem = problem(err)
	}
	return e
}

func problem(err error) string {
	var b *kvstore.BadRecord
	if errors.As(err, &b) {
		return b.Reason + ": " + b.Detail
	}
	return err.Error()
}

// record is a value as JSON, also of one that is not believed if it can be read
// at all.
func record(k kvstore.Key, value []byte, limits kvstore.Limits) (json.RawMessage, error) {
	m, err := limits.Decode(k, value)
	if err != nil {
		lie, ok := kvstore.Unmarshal(k, value)
		if !ok {
			return raw(value), err
		}
		m = lie
	}
	switch t := m.(type) {
	case *wrapperspb.StringValue:
		b, jerr := json.Marshal(t.GetValue())
		return b, errors.Join(err, jerr)
	case *emptypb.Empty:
		return json.RawMessage("{}"), err
	}
	b, jerr := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if jerr != nil {
		return raw(value), errors.Join(err, jerr)
	}
	// protojson varies its spacing on purpose.
	var out bytes.Buffer
	if cerr := json.Compact(&out, b); cerr != nil {
		return raw(value), errors.Join(err, cerr)
	}
	return out.Bytes(), err
}

func raw(value []byte) json.RawMessage {
	b, _ := json.Marshal(value) // base64; never fails
	return b
}

// Get reads one key; nil when it does not exist.
func Get(ctx context.Context, c kvstore.Client, key string, limits kvstore.Limits) (*Entry, error) {
	kv, _, err := c.Get(ctx, key)
	if err != nil || kv == nil {
		return nil, err
	}
	e := Decode(*kv, limits)
	return &e, nil
}

// Walk calls fn with each key below prefix, in key order, all at one revision,
// which it returns. It stops at the first error.
func Walk(ctx context.Context, c kvstore.Client, prefix string, fn func(kvstore.KV) error) (rev int64, err error) {
	return WalkAt(ctx, c, prefix, 0, fn)
}

// WalkAt is Walk at a revision; 0 means the newest.
func WalkAt(ctx context.Context, c kvstore.Client, prefix string, rev int64, fn func(kvstore.KV) error) (int64, error) {
	after := ""
	for {
		p, err := c.List(ctx, prefix, after, page, rev)
		if err != nil {
			return 0, err
		}
		rev = p.Revision
		for _, kv := range p.KVs {
			if err := fn(kv); err != nil {
				return 0, err
			}
		}
		if !p.More || len(p.KVs) == 0 {
			return rev, nil
		}
		after = p.KVs[len(p.KVs)-1].Key
	}
}

// List shows all keys below prefix.
func List(ctx context.Context, c kvstore.Client, prefix string, limits kvstore.Limits) ([]Entry, error) {
	var out []Entry
	_, err := Walk(ctx, c, prefix, func(kv kvstore.KV) error {
		out = append(out, Decode(kv, limits))
		return nil
	})
	return out, err
}

// Branch sums up the keys of one kind of one cluster in one subtree.
type Branch struct {
	Subtree string `json:"subtree"`
	Cluster string `json:"cluster"`
	Kind    string `json:"kind"`
	Keys    int    `json:"keys"`
	Bytes   int64  `json:"bytes"`  // of keys and values
	Bad     int    `json:"bad"`    // records that are not believed
	Newest  int64  `json:"newest"` // highest revision
}

// Tree sums up what is below prefix, by subtree, cluster and kind. Keys that
// cannot be parsed are counted under an empty subtree.
func Tree(ctx context.Context, c kvstore.Client, prefix string, limits kvstore.Limits) ([]Branch, error) {
	out, _, err := tree(ctx, c, prefix, 0, limits)
	return out, err
}

// tree is Tree at a revision (0: the newest), which it returns.
func tree(ctx context.Context, c kvstore.Client, prefix string, rev int64, limits kvstore.Limits) ([]Branch, int64, error) {
	sums := map[[3]string]*Branch{}
	rev, err := WalkAt(ctx, c, prefix, rev, func(kv kvstore.KV) error {
		e := Decode(kv, limits)
		at := [3]string{e.Subtree, e.Cluster, e.Kind}
		b := sums[at]
		if b == nil {
			b = &Branch{Subtree: e.Subtree, Cluster: e.Cluster, Kind: e.Kind}
			sums[at] = b
		}
		b.Keys++
		b.Bytes += int64(len(kv.Key) + len(kv.Value))
		b.Newest = max(b.Newest, kv.ModRevision)
		if e.Problem != "" {
			b.Bad++
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("sum up %s: %w", prefix, err)
	}
	out := make([]Branch, 0, len(sums))
	for _, b := range sums {
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b Branch) int {
		return cmp.Or(cmp.Compare(a.Subtree, b.Subtree), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Kind, b.Kind))
	})
	return out, rev, nil
}

// Hash is what two copies of a value are compared by.
func Hash(value []byte) [sha256.Size]byte { return sha256.Sum256(value) }

// Hashes are the keys below prefix, without it, with the hashes of their values.
func Hashes(ctx context.Context, c kvstore.Client, prefix string) (map[string][sha256.Size]byte, error) {
	out := map[string][sha256.Size]byte{}
	_, err := Walk(ctx, c, prefix, func(kv kvstore.KV) error {
		out[kv.Key[len(prefix):]] = Hash(kv.Value)
		return nil
	})
	return out, err
}

// Difference is how two copies of a subtree differ, each list sorted.
type Difference struct {
	OnlyA   []string `json:"onlyA"`
	OnlyB   []string `json:"onlyB"`
	Changed []string `json:"changed"`
}

// Empty reports whether the copies are the same.
func (d Difference) Empty() bool { return len(d.OnlyA)+len(d.OnlyB)+len(d.Changed) == 0 }

// Diff compares two copies, key by key.
func Diff(a, b map[string][sha256.Size]byte) Difference {
	var d Difference
	for k, ha := range a {
		hb, ok := b[k]
		switch {
		case !ok:
			d.OnlyA = append(d.OnlyA, k)
		case ha != hb:
			d.Changed = append(d.Changed, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			d.OnlyB = append(d.OnlyB, k)
		}
	}
	slices.Sort(d.OnlyA)
	slices.Sort(d.OnlyB)
	slices.Sort(d.Changed)
	return d
}
