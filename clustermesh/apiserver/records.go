// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hawser-mesh/hawser/kvstore"
)

// pageSize is the number of keys read at a time.
const pageSize = 1000

// stored is a decoded record with its key.
type stored[T proto.Message] struct {
	key kvstore.Key
	kv  kvstore.KV
	msg T
}

// list reads all records of a kind of one cluster. Bad records are logged and
// left out.
func list[T proto.Message](ctx context.Context, s *Server, sub kvstore.Subtree, cluster string, kind kvstore.Kind) ([]stored[T], error) {
	out, _, err := listBad[T](ctx, s, sub, cluster, kind)
	return out, err
}

// unreadable is a record that is left out.
type unreadable struct {
	kv  kvstore.KV
	err error
}

// listBad is list; it also returns the bad records.
func listBad[T proto.Message](ctx context.Context, s *Server, sub kvstore.Subtree, cluster string, kind kvstore.Kind) ([]stored[T], []unreadable, error) {
	var out []stored[T]
	var bad []unreadable
	prefix, after, rev := kvstore.KindPrefix(sub, cluster, kind), "", int64(0)
	for {
		page, err := s.kv.List(ctx, prefix, after, pageSize, rev)
		if err != nil {
			return nil, nil, err
		}
		for _, kv := range page.KVs {
			if r, err := decode[T](kv); err != nil {
				s.log.Warn("skip record", "key", kv.Key, "error", err)
				bad = append(bad, unreadable{kv, err})
			} else {
				out = append(out, r)
			}
		}
		if !page.More {
			return out, bad, nil
		}
		after, rev = page.KVs[len(page.KVs)-1].Key, page.Revision
	}
}

// listAll is list over every cluster under state/, own first.
func listAll[T proto.Message](ctx context.Context, s *Server, kind kvstore.Kind) ([]stored[T], error) {
	out, _, err := listAllBad[T](ctx, s, kind)
	return out, err
}

// listAllBad is listAll; it also returns the bad records.
func listAllBad[T proto.Message](ctx context.Context, s *Server, kind kvstore.Kind) (out []stored[T], bad []unreadable, err error) {
	clusters, err := s.clusters(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range clusters {
		rows, broken, err := listBad[T](ctx, s, kvstore.State, c, kind)
		if err != nil {
			return nil, nil, err
		}
		out, bad = append(out, rows...), append(bad, broken...)
	}
	return out, bad, nil
}

func decode[T proto.Message](kv kvstore.KV) (stored[T], error) {
	key, err := kvstore.ParseKey(kv.Key)
	if err != nil {
		return stored[T]{}, err
	}
	m, err := kvstore.Decode(key, kv.Value)
	if err != nil {
		return stored[T]{}, err
	}
	msg, ok := m.(T)
	if !ok {
		return stored[T]{}, fmt.Errorf("record %s: holds a %T", kv.Key, m)
	}
	return stored[T]{key, kv, msg}, nil
}

// clusters are the names of the clusters below state/, own first.
func (s *Server) clusters(ctx context.Context) ([]string, error) {
	names := []string{s.cfg.Cluster}
	prefix, after := kvstore.SubtreePrefix(kvstore.State), ""
	for {
		page, err := s.kv.List(ctx, prefix, after, 1, 0)
		if err != nil {
			return nil, err
		}
		if len(page.KVs) == 0 {
			return names, nil
		}
		key, err := kvstore.ParseKey(page.KVs[0].Key)
		if err != nil {
			after = page.KVs[0].Key
			continue
		}
		if key.Cluster != s.cfg.Cluster {
			names = append(names, key.Cluster)
		}
		// The first key after all of this cluster's: '0' follows '/'.
		after = prefix + key.Cluster + "0"
	}
}

// get reads one record; ok is false when it does not exist.
func get[T proto.Message](ctx context.Context, s *Server, key kvstore.Key) (r stored[T], ok bool, err error) {
	kv, _, err := s.kv.Get(ctx, key.String())
	if err != nil || kv == nil {
		return r, false, err
	}
	r, err = decode[T](*kv)
	return r, err == nil, err
}

// put is the operation that stores a record, stamped with the time.
func put(key kvstore.Key, m proto.Message) (kvstore.Op, error) {
	r := m.ProtoReflect()
	if f := r.Descriptor().Fields().ByName("updated_at"); f != nil {
		r.Set(f, protoreflect.ValueOfInt64(time.Now().UnixNano()))
	}
	value, err := kvstore.Encode(key, m)
	if err != nil {
		return kvstore.Op{}, err
	}
	return kvstore.Put(key.String(), value), nil
}

// putIfChanged stores a record unless the stored one says the same, and reports
// whether it did.
func (s *Server) putIfChanged(ctx context.Context, key kvstore.Key, m proto.Message) (bool, error) {
	old, _, err := s.kv.Get(ctx, key.String())
	if err != nil {
		return false, err
	}
	op, err := put(key, m)
	if err != nil {
		return false, err
	}
	if old != nil && kvstore.SameRecord(key, old.Value, op.Value) {
		return false, nil
	}
	_, err = s.kv.Txn(ctx, nil, []kvstore.Op{op}, nil)
	return true, err
}
