// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// Each operation is told once, with how it ended.
func TestOperationsAreTold(t *testing.T) {
	e := etcdtest.Start(t)
	ctx := t.Context()
	files, err := e.Files(pki.Request{Role: pki.RoleAgent, Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	tls, err := files.ClientTLS(&pki.ID{Cluster: e.Cluster, Role: pki.RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[[2]string]int{}
	c, err := etcd.NewClient(etcd.ClientConfig{Endpoints: e.Endpoints(), TLS: tls, Observe: func(operation, result string, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if got[[2]string{operation, result}]++; took <= 0 {
			t.Errorf("%s took %v", operation, took)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	own := kvstore.NewKey(kvstore.State, e.Cluster, kvstore.KindNode, "n1").String()
	prefix := kvstore.Prefix(kvstore.State, e.Cluster)
	_, rev, _ := c.Get(ctx, own)                                                                     //nolint:errcheck // the results are what is tested
	_, _ = c.List(ctx, prefix, "", 10, 0)                                                            //nolint:errcheck // as above
	_, _ = c.List(ctx, kvstore.Prefix(kvstore.Private, e.Cluster), "", 10, 0)                        //nolint:errcheck // as above
	_, _ = c.Txn(ctx, []kvstore.Cmp{kvstore.AtRevision(own, 1)}, nil, nil)                           //nolint:errcheck // as above
	_, _ = c.Txn(ctx, nil, []kvstore.Op{kvstore.Put(own, []byte("v"))}, nil)                         //nolint:errcheck // as above
	_ = c.Watch(ctx, prefix, rev+100, func(kvstore.WatchBatch) error { return nil })                 //nolint:errcheck // as above
	_ = c.Watch(ctx, prefix, rev+1, func(kvstore.WatchBatch) error { return errors.ErrUnsupported }) //nolint:errcheck // as above
	late, cancel := context.WithCancel(ctx)
	cancel()
	_, _, _ = c.Get(late, own) //nolint:errcheck // as above
	_, _, _ = c.Grant(ctx, 60) //nolint:errcheck // as above
	want := map[[2]string]int{
		{"get", "ok"}: 3, {"get", "canceled"}: 1, {"list", "ok"}: 1, {"list", "denied"}: 1,
		{"transaction", "unmet"}: 1, {"transaction", "ok"}: 1, {"watch", "future"}: 1, {"watch", "error"}: 1, {"grant", "ok"}: 1,
	}
	mu.Lock()
	defer mu.Unlock()
	if !maps.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
}
