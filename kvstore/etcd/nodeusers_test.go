// SPDX-License-Identifier: Apache-2.0

package etcd_test

import (
	"errors"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// A user that is removed at one member loses its open watch at another, and its
// lease is renewed no more.
func TestExpelledEverywhere(t *testing.T) {
	t.Parallel()
	for _, k := range []etcdtest.Kind{etcdtest.Embedded, etcdtest.Members} {
		t.Run(string(k), func(t *testing.T) {
			e := etcdtest.StartKind(t, k)
			user := etcd.NodeUser(e.Cluster, [32]byte{7})
			root := e.Root(t)
			for range 2 { // doing it twice is no error
				if err := root.AdmitNode(t.Context(), e.Cluster, "n1", user); err != nil {
					t.Fatal(err)
				}
			}
			files, err := e.Files(pki.Request{Role: pki.RoleAgent, Name: "n1", EtcdUser: user})
			if err != nil {
				t.Fatal(err)
			}
			tls, err := files.ClientTLS(nil)
			if err != nil {
				t.Fatal(err)
			}
			endpoints := e.Endpoints()
			node, err := etcd.NewClient(etcd.ClientConfig{Endpoints: endpoints[len(endpoints)-1:], TLS: tls})
			if err != nil {
				t.Fatal(err)
			}
			defer node.Close()
			presence := kvstore.NewKey(kvstore.Local, e.Cluster, kvstore.KindPresence, "n1").String()
			var lease kvstore.Lease
			var lost <-chan struct{}
			etcdtest.Eventually(t, 30*time.Second, "the member has heard of the user", func() bool {
				lease, lost, err = node.Grant(t.Context(), 2)
				if err != nil {
					return false
				}
				_, err = node.Txn(t.Context(), nil, []kvstore.Op{{Kind: kvstore.OpPut, Key: presence, Lease: lease}}, nil)
				return err == nil
			})
			begun, ended := make(chan struct{}, 1), make(chan error, 1)
			kv, _, err := node.Get(t.Context(), presence)
			if err != nil || kv == nil {
				t.Fatal(kv, err)
			}
			go func() {
				ended <- node.Watch(t.Context(), kvstore.SubtreePrefix(kvstore.State), kv.ModRevision, func(kvstore.WatchBatch) error { return nil })
			}()
			go func() {
				_ = node.Watch(t.Context(), presence, kv.ModRevision, func(kvstore.WatchBatch) error {
					select {
					case begun <- struct{}{}:
					default:
					}
					return nil
				})
			}()
			<-begun
			for range 2 {
				if err := root.ExpelNode(t.Context(), user); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-ended:
				if err == nil {
					t.Error("the watch ended without an error")
				}
			case <-time.After(10 * time.Second):
				t.Error("the watch goes on")
			}
			select {
			case <-lost:
			case <-time.After(20 * time.Second):
				t.Error("its lease is renewed")
			}
			api := e.APIServer(t)
			etcdtest.Eventually(t, 20*time.Second, "it is absent", func() bool {
				kv, _, err := api.Get(t.Context(), presence)
				return err == nil && kv == nil
			})
			etcdtest.Eventually(t, 30*time.Second, "it is refused there", func() bool {
				_, _, err := node.Get(t.Context(), presence)
				return errors.Is(err, kvstore.ErrDenied)
			})
			if users, err := root.NodeUsers(t.Context(), e.Cluster); err != nil || len(users) != 0 {
				t.Errorf("users %v, %v", users, err)
			}
		})
	}
}
