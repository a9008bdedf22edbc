// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"errors"
	"testing"

	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
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

// TestTransactionParts: each compare holds and fails as documented, of one key
// and of all below one, and each operation does what it says.
func TestTransactionParts(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	dir := kvstore.KindPrefix(kvstore.Local, e.Cluster, kvstore.KindRef)
	key, other, empty := dir+"1/n", dir+"2/n", dir+"3/"
	created := put(t, c, key, "a")
	written := put(t, c, key, "b")
	put(t, c, other, "b")
	for _, cmp := range []struct {
		kvstore.Cmp
		holds bool
	}{
		{kvstore.Absent(empty), true},
		{kvstore.Absent(key), false},
		{kvstore.Cmp{Key: empty, Prefix: true}, true},
		{kvstore.Cmp{Key: dir, Prefix: true}, false},
		{kvstore.Cmp{Key: key, Target: kvstore.CmpExists}, true},
		{kvstore.Cmp{Key: empty, Target: kvstore.CmpExists}, false},
		{kvstore.AtRevision(key, written), true},
		{kvstore.AtRevision(key, created), false},
		{kvstore.Cmp{Key: key, Target: kvstore.CmpCreateRev, Rev: created}, true},
		{kvstore.Cmp{Key: key, Target: kvstore.CmpCreateRev, Rev: written}, false},
		{kvstore.Cmp{Key: key, Target: kvstore.CmpValue, Value: []byte("b")}, true},
		{kvstore.Cmp{Key: key, Target: kvstore.CmpValue, Value: []byte("a")}, false},
		{kvstore.Cmp{Key: dir, Prefix: true, Target: kvstore.CmpValue, Value: []byte("b")}, true},
		{kvstore.Cmp{Key: dir, Prefix: true, Target: kvstore.CmpCreateRev, Rev: created}, false},
	} {
		res, err := c.Txn(t.Context(), []kvstore.Cmp{cmp.Cmp}, nil, []kvstore.Op{kvstore.Read(key)})
		if err != nil || res.Succeeded != cmp.holds || len(res.Gets) != map[bool]int{true: 0, false: 1}[cmp.holds] {
			t.Errorf("%+v: %+v, %v", cmp, res, err)
		}
	}
	res, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Read(key), {Kind: kvstore.OpGet, Key: dir, Prefix: true}}, nil)
	if err != nil || len(res.Gets) != 2 || len(res.Gets[0]) != 1 || len(res.Gets[1]) != 2 {
		t.Errorf("reading one key and all: %+v, %v", res, err)
	}
	if _, err := c.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(key)}, nil); err != nil {
		t.Error(err)
	}
	if p, err := c.List(t.Context(), dir, "", 10, 0); err != nil || len(p.KVs) != 1 || p.KVs[0].Key != other {
		t.Errorf("after one deletion: %+v, %v", p, err)
	}
	if _, err := c.Txn(t.Context(), nil, []kvstore.Op{{Kind: kvstore.OpDelete, Key: dir, Prefix: true}}, nil); err != nil {
		t.Error(err)
	}
	if p, err := c.List(t.Context(), dir, "", 10, 0); err != nil || len(p.KVs) != 0 {
		t.Errorf("after the deletion of all: %+v, %v", p, err)
	}
	if _, err := c.Txn(t.Context(), nil, []kvstore.Op{{Kind: kvstore.OpPut, Key: key, Lease: 12345}}, nil); err == nil {
		t.Error("a lease that is not there was taken for none")
	}
}

// Whoever must know where etcd is gets it from every form that a client takes.
func TestHostOf(t *testing.T) {
	for endpoint, want := range map[string]string{
		"https://192.0.2.1:2379": "192.0.2.1", "192.0.2.1:2379": "192.0.2.1", "https://192.0.2.1:2379/": "192.0.2.1",
		"https://[2001:db8::1]:2379": "2001:db8::1", "[2001:db8::1]:2379": "2001:db8::1",
		"https://etcd-1.example:2379": "etcd-1.example", "etcd-1.example:2379": "etcd-1.example", "": "", "https://[": "",
	} {
		if got := etcd.HostOf(endpoint); got != want {
			t.Errorf("%q: %q, want %q", endpoint, got, want)
		}
	}
}
