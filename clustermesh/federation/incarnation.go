// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/hawser-mesh/hawser/kvstore"
)

var errIncarnation = errors.New("our store is another one now: its incarnation changed")

// ensureIncarnation reads private/<own>/incarnation and makes it when absent.
func ensureIncarnation(ctx context.Context, kv kvstore.Client, own string) (string, error) {
	key := kvstore.NewKey(kvstore.Private, own, kvstore.KindIncarnation).String()
	fresh := uuid()
	res, err := kv.Txn(ctx, []kvstore.Cmp{kvstore.Absent(key)},
		[]kvstore.Op{kvstore.Put(key, []byte(fresh))}, []kvstore.Op{kvstore.Read(key)})
	if err != nil {
		return "", fmt.Errorf("read incarnation: %w", err)
	}
	if res.Succeeded {
		return fresh, nil
	}
	if len(res.Gets) == 0 || len(res.Gets[0]) == 0 {
		return "", errors.New("read incarnation: it vanished")
	}
	return string(res.Gets[0][0].Value), nil
}

// sameIncarnation is nil while the store is the one that was seen first.
func sameIncarnation(ctx context.Context, kv kvstore.Client, own, want string) error {
	r, _, err := kv.Get(ctx, kvstore.NewKey(kvstore.Private, own, kvstore.KindIncarnation).String())
	if err == nil && (r == nil || string(r.Value) != want) {
		return errIncarnation
	}
	return err
}

// uuid is a random UUID (RFC 9562, version 4).
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
