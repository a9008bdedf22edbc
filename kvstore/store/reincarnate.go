// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/hawser-mesh/hawser/kvstore"
)

// EnsureIncarnation reads the name of the store's history as own's API server
// gave it, private/<own>/incarnation, and makes it when absent.
func EnsureIncarnation(ctx context.Context, c kvstore.Client, own string) (string, error) {
	key := kvstore.NewKey(kvstore.Private, own, kvstore.KindIncarnation).String()
	kv, _, err := c.Get(ctx, key) // a full store takes no transaction that might write
	if err != nil {
		return "", fmt.Errorf("read the incarnation: %w", err)
	}
	if kv != nil {
		return string(kv.Value), nil
	}
	fresh := uuid.NewString()
	r, err := c.Txn(ctx,
		[]kvstore.Cmp{kvstore.Absent(key)},
		[]kvstore.Op{kvstore.Put(key, []byte(fresh))},
		[]kvstore.Op{kvstore.Read(key)})
	if err != nil {
		return "", fmt.Errorf("read the incarnation: %w", err)
	}
	if r.Succeeded {
		return fresh, nil
	}
	if len(r.Gets) == 0 || len(r.Gets[0]) == 0 {
		return "", fmt.Errorf("read the incarnation: %s vanished", key)
	}
	return string(r.Gets[0][0].Value), nil
}

// Reincarnate says that own's part of the store is another history from now on:
// in one transaction it gives it a new incarnation and removes the markers
// local/<own>/synced/, so that readers keep what they know until all is
// published again. Whoever restores or imports calls it before agents see the
// result. It returns the new incarnation.
func Reincarnate(ctx context.Context, c kvstore.Client, own string) (string, error) {
	fresh := uuid.NewString()
	markers := kvstore.Delete(kvstore.KindPrefix(kvstore.Local, own, kvstore.KindSynced))
	markers.Prefix = true
	_, err := c.Txn(ctx, nil, []kvstore.Op{
		kvstore.Put(kvstore.NewKey(kvstore.Private, own, kvstore.KindIncarnation).String(), []byte(fresh)),
		markers,
	}, nil)
	if err != nil {
		return "", fmt.Errorf("replace the incarnation of %s: %w", own, err)
	}
	return fresh, nil
}
