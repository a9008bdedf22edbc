// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// gossiper is an agent as gossip sees one, at an address of its own.
func gossiper(t *testing.T, name, addr string, keys [][]byte, server netip.AddrPort) (stop func()) {
	t.Helper()
	g := liveness.NewGossip(liveness.GossipConfig{
		Cluster: "east", Name: name, Listen: netip.AddrPortFrom(netip.MustParseAddr(addr), liveness.GossipPort),
		Seeds: func() []netip.AddrPort { return []netip.AddrPort{server} }, Log: slog.New(slog.DiscardHandler),
	})
	if err := g.SetKeys(keys); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// The leader makes the gossip keys and tells them; agents that gossip under them
// are alive, and one of which neither gossip nor its neighbour hears is dead.
func TestHealth(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd, cfg.ListenGossip = port(t), port(t)
	api, _ := serve(t, cfg)
	answers(t, api)
	kv := agentOf(t, cfg, "n1", cfg.ListenEtcd.String())
	write := func(k kvstore.Key, m proto.Message) {
		t.Helper()
		value, err := kvstore.Encode(k, m)
		if err == nil {
			_, err = kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var keys [][]byte
	etcdtest.Eventually(t, patience, "gossip keys are told", func() bool {
		v, _, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.Local, "east", kvstore.KindGossip).String())
		if err != nil || v == nil {
			return false
		}
		r, err := decode[*keyspacev1.Gossip](*v)
		keys = r.msg.GetKeys()
		return err == nil && len(keys) == 1
	})
	if _, _, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.Private, "east", kvstore.KindGossipKeys).String()); err == nil {
		t.Error("an agent reads private/")
	}
	addrs := map[string]string{"n1": "127.0.7.1", "n2": "127.0.7.2"}
	tell := func(prober, target string, up bool, refutes int64) {
		t.Helper()
		write(kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, prober), &keyspacev1.NodeStatus{
			Node: prober, Paths: []*keyspacev1.PathReport{{Cluster: "east", Node: target, Up: up}}, Refutes: refutes,
		})
	}
	report := func(prober, target string, up bool) { t.Helper(); tell(prober, target, up, 0) }
	stops := map[string]func(){}
	for name, addr := range addrs {
		stops[name] = gossiper(t, name, addr, keys, cfg.ListenGossip)
		write(kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, name), &keyspacev1.Node{
			Name: name, Cluster: "east", TunnelAddress: "192.168.1." + name[1:], Capabilities: []string{liveness.Capability},
			Addresses: []*keyspacev1.NodeAddress{{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: "192.168.1." + name[1:]}},
		})
	}
	report("n1", "n2", true)
	report("n2", "n1", true)
	rev := func(node string) int64 { // of its record
		t.Helper()
		record, _, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.State, "east", kvstore.KindHealth, node).String())
		if err != nil || record == nil {
			t.Fatal(record, err)
		}
		return record.ModRevision
	}
	is := func(node, want string) func() bool {
		return func() bool {
			r, err := api.ListNodes(t.Context(), &hawserv1.ListNodesRequest{})
			for _, n := range r.GetNodes() {
				if err == nil && n.GetName() == node {
					return n.GetHealth() == want
				}
			}
			return false
		}
	}
	etcdtest.Eventually(t, patience, "n1 is alive", is("n1", "alive"))
	etcdtest.Eventually(t, patience, "n2 is alive", is("n2", "alive"))
	old := rev("n2")
	stops["n2"]()
	etcdtest.Eventually(t, patience, "n2's agent is down", is("n2", "agent down"))
	down := rev("n2")
	report("n1", "n2", false)
	etcdtest.Eventually(t, patience, "n2 is dead", is("n2", "dead"))
	if !is("n1", "alive")() {
		t.Error("n1 is not alive")
	}
	// It runs nevertheless, and says so, of this very record: earlier denials are
	// not enough, and it must hold its presence.
	kv2 := agentOf(t, cfg, "n2", cfg.ListenEtcd.String())
	present := func(there bool) {
		t.Helper()
		k := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, "n2")
		op := kvstore.Delete(k.String())
		if there {
			value, err := kvstore.Encode(k, &keyspacev1.Presence{Node: "n2"})
			if err != nil {
				t.Fatal(err)
			}
			op = kvstore.Put(k.String(), value)
		}
		if _, err := kv2.Txn(t.Context(), nil, []kvstore.Op{op}, nil); err != nil {
			t.Fatal(err)
		}
	}
	write2 := func(refutes int64) {
		t.Helper()
		k := kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, "n2")
		value, err := kvstore.Encode(k, &keyspacev1.NodeStatus{Node: "n2", Paths: []*keyspacev1.PathReport{{Cluster: "east", Node: "n1", Up: true}}, Refutes: refutes})
		if err == nil {
			_, err = kv2.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	present(true)
	write2(old)
	report("n1", "n2", true) // read after that
	etcdtest.Eventually(t, patience, "n2's agent is down, an old denial is none", is("n2", "agent down"))
	report("n1", "n2", false)
	etcdtest.Eventually(t, patience, "n2 is dead again", is("n2", "dead"))
	write2(down)
	etcdtest.Eventually(t, patience, "n2 runs, and nobody reaches it", is("n2", "suspect"))
	present(false)
	etcdtest.Eventually(t, patience, "n2 is dead after all", is("n2", "dead"))
}

// A node that is forgotten knows the gossip keys: all of them are on their way out
// as soon as it is.
func TestForgettingANodeReplacesTheGossipKeys(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd, cfg.ListenGossip = port(t), port(t)
	api, _ := serve(t, cfg)
	answers(t, api)
	kv := agentOf(t, cfg, "n1", cfg.ListenEtcd.String())
	told := func() [][]byte {
		v, _, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.Local, "east", kvstore.KindGossip).String())
		if err != nil || v == nil {
			return nil
		}
		r, err := decode[*keyspacev1.Gossip](*v)
		if err != nil {
			t.Fatal(err)
		}
		return r.msg.GetKeys()
	}
	etcdtest.Eventually(t, patience, "a gossip key is told", func() bool { return len(told()) == 1 })
	known := told()
	key := kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, "n2")
	value, err := kvstore.Encode(key, &keyspacev1.Node{Name: "n2", Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key.String(), value)}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n2", Force: true}); err != nil {
		t.Fatal(err)
	}
	// Its life is a month. Who is up to date uses both until all know the new one.
	etcdtest.Eventually(t, patience, "another key is told", func() bool {
		now := told()
		return len(now) == 2 && bytes.Equal(now[0], known[0]) && !bytes.Equal(now[1], known[0])
	})
}
