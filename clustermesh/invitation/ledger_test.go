// SPDX-License-Identifier: Apache-2.0

package invitation

import (
	"fmt"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// However many tokens there are, none of a node that was forgotten stays open, and
// none that expired long ago stays at all.
func TestManyTokens(t *testing.T) {
	e := etcdtest.Start(t)
	kv := e.APIServer(t)
	at := time.Unix(1_700_000_000, 0)
	l := NewLedger(kv, e.Cluster, func() time.Time { return at })
	const many = 2500 // a page is 1,000
	var ops []kvstore.Op
	node := func(n int) string { return fmt.Sprintf("n%d", n%2) }
	id := func(n int) string { return fmt.Sprintf("%032x", n) }
	for n := range many {
		key := kvstore.NewKey(kvstore.Private, e.Cluster, kvstore.KindToken, id(n))
		value, err := kvstore.Encode(key, &keyspacev1.Token{Id: id(n), Secret: make([]byte, secretBytes), Node: node(n), ExpiresAt: at.Add(time.Hour).UnixNano()})
		if err != nil {
			t.Fatal(err)
		}
		if ops = append(ops, kvstore.Put(key.String(), value)); len(ops) == kvstore.MaxTxnOps || n == many-1 {
			if _, err := kv.Txn(t.Context(), nil, ops, nil); err != nil {
				t.Fatal(err)
			}
			ops = nil
		}
	}
	if err := l.RevokeNode(t.Context(), node(1)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, many - 2, many - 1} {
		r, err := l.Token(t.Context(), id(n))
		if err != nil || r.Msg.GetRevoked() != (node(n) == node(1)) {
			t.Errorf("token %d of %d, of %s: revoked %t, %v", n, many, node(n), r.Msg.GetRevoked(), err)
		}
	}
	at = at.Add(2*kept + time.Hour)
	if err := l.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	page, err := kv.List(t.Context(), kvstore.KindPrefix(kvstore.Private, e.Cluster, kvstore.KindToken), "", 10, 0)
	if err != nil || len(page.KVs) != 0 {
		t.Errorf("%d tokens are left, %v", len(page.KVs), err)
	}
}
