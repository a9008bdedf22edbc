// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Update rewrites one record: fn changes what is stored (an empty record when
// there is nothing), and the result is stored, stamped with now, unless someone
// else wrote in between, in which case fn runs again on the newer record. Fields
// that this version does not know survive. Nothing is written when fn changes
// nothing or fails.
func Update[M proto.Message](ctx context.Context, c kvstore.Client, k kvstore.Key, now time.Time, fn func(M) error) error {
	for {
		kv, _, err := c.Get(ctx, k.String())
		if err != nil {
			return err
		}
		var old []byte
		cond := kvstore.Absent(k.String())
		if kv != nil {
			old, cond = kv.Value, kvstore.AtRevision(k.String(), kv.ModRevision)
		}
		value, err := changed(k, kv != nil, old, now, fn)
		if err != nil || value == nil {
			return err
		}
		res, err := c.Txn(ctx, []kvstore.Cmp{cond}, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
		if err != nil || res.Succeeded {
			return err
		}
	}
}

// changed is the value after fn, or nil if it is to stay as it is.
func changed[M proto.Message](k kvstore.Key, exists bool, old []byte, now time.Time, fn func(M) error) ([]byte, error) {
	rec, ok := kvstore.NewRecord(k)
	if !ok {
		return nil, fmt.Errorf("update %s: %w", k, kvstore.ErrUnknownKind)
	}
	m, ok := rec.(M)
	if !ok {
		return nil, fmt.Errorf("update %s: it holds a %T", k, rec)
	}
	if exists {
		if err := proto.Unmarshal(old, m); err != nil {
			return nil, fmt.Errorf("update %s: %w", k, err)
		}
	}
	before := proto.Clone(m)
	if err := fn(m); err != nil {
		return nil, err
	}
	if exists && proto.Equal(before, m) {
		return nil, nil
	}
	if f := m.ProtoReflect().Descriptor().Fields().ByName("updated_at"); f != nil {
		m.ProtoReflect().Set(f, protoreflect.ValueOfInt64(now.UnixNano()))
	}
	return kvstore.Encode(k, m)
}
