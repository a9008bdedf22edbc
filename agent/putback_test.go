// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// publishing is an agent that follows the keyspace and publishes, without a kernel.
func publishing(t *testing.T, e *etcdtest.Etcd) *Agent {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	a := &Agent{
		cfg: Config{Cluster: e.Cluster, Node: "n1", NodeAddress: netip.MustParseAddr("192.168.1.1"), PodCIDR: netip.MustParsePrefix("10.1.1.0/24"), Log: log},
		log: log, view: testView(t), kv: e.Agent(t, "n1"), timers: newTimers(), unreadable: newUnreadable(e.Cluster, false),
	}
	a.space = a.view.space
	a.marks = newMarkers(e.Cluster, func() bool { return false }, func() {}, func() {})
	a.trust = newTrust(&a.cfg, log, false)
	if err := a.makeStores(); err != nil {
		t.Fatal(err)
	}
	a.publisher = &publisher{
		cfg: &a.cfg, log: log, writer: a.writer, view: a.view, ips: a.view.ips, mtu: 1500,
		endpoints: map[netip.Addr]loadbalancer.LocalEndpoint{}, slices: map[serviceName][]kvstore.Key{}, changed: make(chan struct{}, 1), tell: make(chan struct{}, 1),
	}
	a.watchman = &watchman{self: liveness.NodeID{Cluster: e.Cluster, Node: "n1"}, log: log, view: a.view, tell: a.publisher.wakeStatus}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 4)
	parts := []func(context.Context) error{a.state.Run, a.local.Run, a.writer.Run, a.keepIdentities}
	for _, run := range parts {
		go func() { ended <- run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range parts {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	a.ids.setCluster(1)
	return a
}

// Whatever somebody removes or damages of what a node publishes is back at once;
// what the node itself withdrew stays away.
func TestOwnKeysArePutBack(t *testing.T) {
	e := etcdtest.Start(t)
	api := e.APIServer(t)
	a := publishing(t, e)
	if err := a.publisher.announceNode(); err != nil {
		t.Fatal(err)
	}
	set := labels.New(
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: "echo"},
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: e.Cluster},
	)
	number, err := a.ids.Allocate(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	pod := &record{Namespace: "demo", Name: "echo-1", Addr: netip.MustParseAddr("10.1.1.5"), Identity: number, Labels: set.Strings()}
	if err := a.publisher.Announce(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	key := func(sub kvstore.Subtree, kind kvstore.Kind, names ...string) kvstore.Key {
		return kvstore.NewKey(sub, e.Cluster, kind, names...)
	}
	ip := key(kvstore.State, kvstore.KindIP, "10.1.1.5/32")
	ref := key(kvstore.Local, kvstore.KindRef, kvstore.NumberName(uint32(number)), "n1")
	legible := func(k kvstore.Key) bool {
		kv, _, err := api.Get(t.Context(), k.String())
		if err != nil {
			t.Fatal(err)
		}
		if kv == nil {
			return false
		}
		_, err = kvstore.Decode(k, kv.Value)
		return err == nil
	}
	do := func(op kvstore.Op) (rev int64) {
		t.Helper()
		r, err := api.Txn(t.Context(), nil, []kvstore.Op{op}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r.Revision
	}
	for _, k := range []kvstore.Key{key(kvstore.State, kvstore.KindNode, "n1"), key(kvstore.State, kvstore.KindVTEP, "10.1.1.0/24"), ip, ref} {
		do(kvstore.Delete(k.String()))
		etcdtest.Eventually(t, 20*time.Second, k.String()+" is put back", func() bool { return legible(k) })
	}
	vtep := key(kvstore.State, kvstore.KindVTEP, "10.1.1.0/24")
	do(kvstore.Put(ip.String(), []byte("zzz")))
	etcdtest.Eventually(t, 20*time.Second, "the address can be read again", func() bool { return legible(ip) })

	if err := a.publisher.Withdraw(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := a.ids.Release(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if err := a.writer.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	rev := do(kvstore.Delete(vtep.String()))
	if err := a.state.WaitRevision(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, 20*time.Second, "the prefix is put back a second time", func() bool { return legible(vtep) })
	for _, k := range []kvstore.Key{ip, ref} {
		if kv, _, err := api.Get(t.Context(), k.String()); err != nil || kv != nil {
			t.Errorf("%s was withdrawn, and is there: %v", k, err)
		}
	}
}
