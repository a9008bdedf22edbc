// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"errors"
	"testing"

	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

func TestClient(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	ctx := t.Context()
	key := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindNode, "n1").String()

	kv, rev, err := c.Get(ctx, key)
	if err != nil || kv != nil || rev == 0 {
		t.Fatalf("get of a missing key: %v at %d, %v", kv, rev, err)
	}
	res, err := c.Txn(ctx, []kvstore.Cmp{kvstore.Absent(key)}, []kvstore.Op{kvstore.Put(key, []byte("v"))}, nil)
	if err != nil || !res.Succeeded {
		t.Fatalf("first put: %+v, %v", res, err)
	}
	res, err = c.Txn(ctx, []kvstore.Cmp{kvstore.Absent(key)}, nil, []kvstore.Op{kvstore.Read(key)})
	if err != nil || res.Succeeded || len(res.Gets) != 1 || string(res.Gets[0][0].Value) != "v" {
		t.Fatalf("losing put: %+v, %v", res, err)
	}
	agent := e.Agent(t, "n1")
	if _, err := agent.Txn(ctx, nil, []kvstore.Op{kvstore.Put(kvstore.Prefix(kvstore.Private, e.Cluster)+"x", nil)}, nil); !errors.Is(err, kvstore.ErrDenied) {
		t.Fatalf("agent writes private/: %v", err)
	}
}
