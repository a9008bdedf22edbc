// SPDX-License-Identifier: Apache-2.0

// Package cas changes records on the condition that nobody else did meanwhile:
// read with Get, write with Commit, repeat with Retry. It is for the few records
// that several writers share; what one writer owns goes through kvstore/store.
package cas

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/hawser-mesh/hawser/kvstore"
)

// ErrConflict says that somebody else wrote a record first.
var ErrConflict = errors.New("the record was changed at the same time; try again")

// tries is how often a write that was overtaken is tried again.
const tries = 8

// Record is a message with the revision that it was read at; 0: it does not
// exist, and Msg is empty.
type Record[T proto.Message] struct {
	Msg T
	Rev int64
}

// Get reads a key into an empty message.
func Get[T proto.Message](ctx context.Context, kv kvstore.Client, key string, into T) (Record[T], error) {
	r, _, err := kv.Get(ctx, key)
	if err != nil {
		return Record[T]{}, fmt.Errorf("read %s: %w", key, err)
	}
	if r == nil {
		return Record[T]{Msg: into}, nil
	}
	if err := proto.Unmarshal(r.Value, into); err != nil {
		return Record[T]{}, fmt.Errorf("read %s: %w", key, err)
	}
	return Record[T]{Msg: into, Rev: r.ModRevision}, nil
}

// Write is one change of a record that was read at Rev; without a message it
// deletes.
type Write struct {
	Key string
	Rev int64
	Msg proto.Message
}

// Commit does all writes or none; ErrConflict when one was overtaken.
func Commit(ctx context.Context, kv kvstore.Client, ws ...Write) error {
	var cmps []kvstore.Cmp
	var ops []kvstore.Op
	for _, w := range ws {
		if w.Rev == 0 {
			cmps = append(cmps, kvstore.Absent(w.Key))
		} else {
			cmps = append(cmps, kvstore.AtRevision(w.Key, w.Rev))
		}
		if w.Msg == nil {
			ops = append(ops, kvstore.Delete(w.Key))
			continue
		}
		b, err := proto.Marshal(w.Msg)
		if err != nil {
			return fmt.Errorf("encode %s: %w", w.Key, err)
		}
		ops = append(ops, kvstore.Put(w.Key, b))
	}
	res, err := kv.Txn(ctx, cmps, ops, nil)
	if err != nil {
		return fmt.Errorf("write %s: %w", ws[0].Key, err)
	}
	if !res.Succeeded {
		return ErrConflict
	}
	return nil
}

// Retry repeats fn, which reads and commits, while it is overtaken; after eight
// times it gives up with ErrConflict.
func Retry(ctx context.Context, fn func() error) error {
	var err error
	for range tries {
		if err = fn(); !errors.Is(err, ErrConflict) || ctx.Err() != nil {
			return err
		}
	}
	return err
}
