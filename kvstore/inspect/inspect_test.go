// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"slices"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

func kv(t *testing.T, k kvstore.Key, m *keyspacev1.VTEP) kvstore.KV {
	t.Helper()
	b, err := kvstore.Encode(k, m)
	if err != nil {
		t.Fatal(err)
	}
	return kvstore.KV{Key: k.String(), Value: b, CreateRevision: 3, ModRevision: 4}
}

func TestDecodeShowsEverything(t *testing.T) {
	good := kv(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindVTEP, "10.0.0.0/24"),
		&keyspacev1.VTEP{Prefix: "10.0.0.0/24", TunnelAddress: "192.0.2.1", UpdatedAt: 5})
	lie := good
	lie.Key = strings.Replace(good.Key, "10.0.0.0", "10.0.1.0", 1)
	garbage := good
	garbage.Value = []byte{0xff}
	for name, c := range map[string]struct {
		in      kvstore.KV
		record  string
		problem string
	}{
		"a record":       {good, `{"prefix":"10.0.0.0/24","tunnel_address":"192.0.2.1","updated_at":"5"}`, ""},
		"a lie":          {lie, `{"prefix":"10.0.0.0/24","tunnel_address":"192.0.2.1","updated_at":"5"}`, "mismatch: "},
		"garbage":        {garbage, `"/w=="`, "decode: "},
		"a strange key":  {kvstore.KV{Key: "hawser/v1/what", Value: []byte("x")}, `"eA=="`, "key: "},
		"a kind to come": {kvstore.KV{Key: "hawser/v1/state/east/future/x", Value: []byte("x")}, `"eA=="`, ""},
		"text":           {kvstore.KV{Key: "hawser/v1/private/east/incarnation", Value: []byte("i-1")}, `"i-1"`, ""},
		"a reference":    {kvstore.KV{Key: "hawser/v1/local/east/refs/65537/n1"}, `{}`, ""},
	} {
		e := inspect.Decode(c.in, kvstore.Limits{})
		if string(e.Record) != c.record || !strings.HasPrefix(e.Problem, c.problem) || c.problem == "" && e.Problem != "" {
			t.Errorf("%s: %s, problem %q", name, e.Record, e.Problem)
		}
		if e.Size != len(c.in.Value) || e.ModRevision != c.in.ModRevision {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestListTreeAndDiff(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.APIServer(t)
	var ops []kvstore.Op
	add := func(cluster, prefix, tunnel string) {
		x := kv(t, kvstore.NewKey(kvstore.State, cluster, kvstore.KindVTEP, prefix), &keyspacev1.VTEP{Prefix: prefix, TunnelAddress: tunnel})
		ops = append(ops, kvstore.Put(x.Key, x.Value))
	}
	add("east", "10.1.0.0/24", "192.0.2.1")
	add("east", "10.1.1.0/24", "192.0.2.1")
	add("east", "10.1.2.0/24", "192.0.2.1")
	add("west", "10.1.1.0/24", "192.0.2.1")
	add("west", "10.1.2.0/24", "192.0.2.2")
	add("west", "10.1.3.0/24", "192.0.2.2")
	ops = append(ops, kvstore.Put("hawser/v1/state/east/vteps/10.9.9.0%2F24", []byte{0xff}))
	if _, err := c.Txn(t.Context(), nil, ops, nil); err != nil {
		t.Fatal(err)
	}
	state := kvstore.SubtreePrefix(kvstore.State)
	list, err := inspect.List(t.Context(), c, state, kvstore.Limits{})
	if err != nil || len(list) != 7 || !slices.IsSortedFunc(list, func(a, b inspect.Entry) int { return strings.Compare(a.Key, b.Key) }) {
		t.Errorf("listed %d entries of 7, %v", len(list), err)
	}
	tree, err := inspect.Tree(t.Context(), c, state, kvstore.Limits{})
	if err != nil || len(tree) != 2 {
		t.Fatalf("tree %+v, %v", tree, err)
	}
	if b := tree[0]; b.Cluster != "east" || b.Kind != "vteps" || b.Keys != 4 || b.Bad != 1 || b.Bytes == 0 || b.Newest == 0 {
		t.Errorf("branch %+v", b)
	}
	got, err := inspect.Get(t.Context(), c, state+"none", kvstore.Limits{})
	if got != nil || err != nil {
		t.Errorf("get of nothing: %+v, %v", got, err)
	}
	a, err := inspect.Hashes(t.Context(), c, kvstore.Prefix(kvstore.State, "east"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := inspect.Hashes(t.Context(), c, kvstore.Prefix(kvstore.State, "west"))
	if err != nil {
		t.Fatal(err)
	}
	d := inspect.Diff(a, b)
	if d.Empty() || !slices.Equal(d.OnlyA, []string{"vteps/10.1.0.0%2F24", "vteps/10.9.9.0%2F24"}) ||
		!slices.Equal(d.OnlyB, []string{"vteps/10.1.3.0%2F24"}) || !slices.Equal(d.Changed, []string{"vteps/10.1.2.0%2F24"}) {
		t.Errorf("difference %+v", d)
	}
	if !inspect.Diff(a, a).Empty() {
		t.Error("a copy differs from itself")
	}
}
