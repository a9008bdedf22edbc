// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// on is a cluster on a shared etcd, with ranges of its id.
func on(t *testing.T, e *etcdtest.Etcd, name string, id byte) Config {
	t.Helper()
	cfg := external(t, e, name)
	cfg.ClusterID, cfg.Etcd.Shared = uint32(id), true
	cfg.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, 0, 0}), 16)}
	cfg.NodeCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, id, 0}), 24)}
	cfg.ServiceCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 101, id, 0}), 24)}
	if err := etcd.SetupAccess(t.Context(), e.Root(t), name, true); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Clusters on one etcd find each other; one whose ranges or id are taken is not
// believed, and said to be. Nothing is mirrored.
func TestSharedEtcd(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.External)
	east, west := on(t, e, "east", 1), on(t, e, "west", 2)
	thief := on(t, e, "thief", 3)
	thief.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.128.0/17")}
	double := on(t, e, "twin", 4)
	double.ClusterID = 2
	api, _ := serve(t, east)
	answers(t, api)
	other, stopWest := serve(t, west)
	answers(t, other)
	peers := func(api hawserv1.MeshClient) string {
		r, err := api.MeshStatus(t.Context(), &hawserv1.MeshStatusRequest{})
		if err != nil {
			return err.Error()
		}
		var names []string
		for _, p := range r.GetPeers() {
			names = append(names, p.GetName()+" "+p.GetState())
		}
		return strings.Join(names, ",")
	}
	etcdtest.Eventually(t, patience, "they see each other", func() bool {
		return peers(api) == "west connected" && peers(other) == "east connected"
	})
	stops := map[string]func(){}
	for _, c := range []Config{thief, double} {
		x, stop := serve(t, c)
		answers(t, x)
		stops[c.Cluster] = stop
	}
	problems := func() string {
		var out []string
		for _, p := range answers(t, api).GetProblems() {
			out = append(out, p.GetProblem())
		}
		return strings.Join(out, "\n")
	}
	etcdtest.Eventually(t, patience, "the others are refused", func() bool {
		p := problems()
		return strings.Contains(p, "its pod CIDR 10.1.128.0/17 overlaps our own pod CIDR 10.1.0.0/16") && strings.Contains(p, "its id 2 is that of west")
	})
	if p := peers(api); p != "west connected" {
		t.Errorf("peers are %s", p)
	}
	root := e.Root(t)
	m := store.SyncedMarkers{Client: root, Own: "east"}
	etcdtest.Eventually(t, patience, "west's kinds are marked for east's agents", func() bool {
		_, ok, err := m.Complete(t.Context(), "west", kvstore.KindIP)
		return err == nil && ok
	})
	if _, ok, err := m.Complete(t.Context(), "thief", kvstore.KindIP); err != nil || ok {
		t.Errorf("a refused cluster is marked: %v, %v", ok, err)
	}
	if _, err := api.Invite(t.Context(), &hawserv1.InviteRequest{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "shares its etcd") {
		t.Errorf("invite: %v", err)
	}

	// What west declares later changes nothing of what it was granted.
	stopWest()
	wider := west
	wider.Socket += "2"
	wider.PodCIDRs = append(wider.PodCIDRs, netip.MustParsePrefix("10.77.0.0/16"))
	wide, stopWider := serve(t, wider)
	answers(t, wide)
	key := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPeerView, "west")
	view := func() *keyspacev1.PeerView {
		kv, _, err := root.Get(t.Context(), key.String())
		if err != nil || kv == nil {
			t.Fatalf("%v, %v", kv, err)
		}
		r, err := kvstore.Decode(key, kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		return r.(*keyspacev1.PeerView)
	}
	for end := time.Now().Add(3 * sharedPoll); time.Now().Before(end); time.Sleep(sharedPoll / 10) {
		if v := view(); len(v.GetPodCidrs()) != 1 {
			t.Fatalf("west granted itself more: %v", v)
		}
	}

	// An operator has it admitted anew. (Its twin would come first.)
	for _, name := range []string{"thief", "twin"} {
		stops[name]()
		gone := kvstore.Delete(kvstore.Prefix(kvstore.State, name))
		gone.Prefix = true
		if _, err := root.Txn(t.Context(), nil, []kvstore.Op{gone}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := root.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(key.String())}, nil); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, patience, "west is admitted anew, as it declares itself now", func() bool {
		kv, _, err := root.Get(t.Context(), key.String())
		return err == nil && kv != nil && len(view().GetPodCidrs()) == 2
	})
	stopWider()
}

// What a cluster was granted outlives what it published: whoever comes by its
// name is judged by it, until an operator releases it.
func TestGrantOutlivesTheCluster(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.External)
	api, _ := serve(t, on(t, e, "east", 1))
	answers(t, api)
	root := e.Root(t)
	publish := func(id uint32, service string) {
		t.Helper()
		key := kvstore.NewKey(kvstore.State, "west", kvstore.KindCluster)
		value, err := kvstore.Encode(key, &keyspacev1.Cluster{
			Name: "west", Id: id, PodCidrs: []string{"10.2.0.0/16"}, NodeCidrs: []string{"192.168.2.0/24"}, ServiceCidrs: []string{service},
			Mesh: &keyspacev1.MeshParameters{ClusterBits: 8},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := root.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key.String(), value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	remove := func() {
		t.Helper()
		gone := kvstore.Delete(kvstore.Prefix(kvstore.State, "west"))
		gone.Prefix = true
		if _, err := root.Txn(t.Context(), nil, []kvstore.Op{gone}, nil); err != nil {
			t.Fatal(err)
		}
	}
	state := func() string {
		r, err := api.MeshStatus(t.Context(), &hawserv1.MeshStatusRequest{})
		if err != nil || len(r.GetPeers()) != 1 {
			return ""
		}
		return r.GetPeers()[0].GetState()
	}
	problem := func(want string) {
		t.Helper()
		etcdtest.Eventually(t, patience, want, func() bool {
			for _, p := range answers(t, api).GetProblems() {
				if strings.Contains(p.GetProblem(), want) {
					return true
				}
			}
			return false
		})
	}
	grant := func() *hawserv1.PeerGrant {
		t.Helper()
		r, err := api.ListGrants(t.Context(), &hawserv1.ListGrantsRequest{})
		if err != nil || len(r.GetGrants()) != 1 {
			t.Fatalf("%v, %v", r, err)
		}
		return r.GetGrants()[0]
	}

	// Its service ranges are compared with ours, too.
	for service, want := range map[string]string{
		"192.168.1.0/24": "its service CIDR 192.168.1.0/24 overlaps our own node CIDR",
		"10.1.128.0/17":  "its service CIDR 10.1.128.0/17 overlaps our own pod CIDR",
		"2002:a01::/32":  "its service CIDR 2002:a01::/32 has 6to4 addresses",
	} {
		publish(2, service)
		problem(want)
		if s := state(); s != "" {
			t.Errorf("%s: west is %s", service, s)
		}
	}
	publish(2, "10.101.1.0/24") // those of our services
	etcdtest.Eventually(t, patience, "admitted", func() bool { return state() == "connected" })
	few := uint64(7)
	if _, err := api.ChangeGrant(t.Context(), &hawserv1.ChangeGrantRequest{Peer: "west", MaxServices: &few, Namespaces: []string{"shop"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Leave(t.Context(), &hawserv1.LeaveRequest{Peer: "west"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "shares its etcd") {
		t.Errorf("leave one that is there: %v", err)
	}

	remove()
	etcdtest.Eventually(t, patience, "gone", func() bool { return state() == "gone" })
	m := store.SyncedMarkers{Client: root, Own: "east"}
	if _, ok, err := m.Complete(t.Context(), "west", kvstore.KindIP); err != nil || ok {
		t.Errorf("marked: %v, %v", ok, err)
	}
	publish(5, "10.102.0.0/16")
	problem("its id is 5, what is granted is for 2")
	publish(2, "93.184.0.0/16")
	etcdtest.Eventually(t, patience, "back", func() bool { return state() == "connected" })
	if g := grant(); g.GetMaxServices() != 7 || len(g.GetNamespaces()) != 1 || strings.Join(g.GetServiceCidrs(), ",") != "10.101.1.0/24" {
		t.Errorf("it comes back with another grant: %v", g)
	}
	etcdtest.Eventually(t, patience, "marked again", func() bool {
		_, ok, err := m.Complete(t.Context(), "west", kvstore.KindIP)
		return err == nil && ok
	})

	// An operator releases it.
	remove()
	etcdtest.Eventually(t, patience, "gone again", func() bool { return state() == "gone" })
	if _, err := api.Leave(t.Context(), &hawserv1.LeaveRequest{Peer: "west"}); err != nil {
		t.Fatal(err)
	}
	if s := state(); s != "" {
		t.Errorf("left: it is %s", s)
	}
	if _, err := api.Leave(t.Context(), &hawserv1.LeaveRequest{Peer: "west"}); status.Code(err) != codes.NotFound {
		t.Errorf("leave again: %v", err)
	}
	publish(2, "10.102.0.0/16")
	etcdtest.Eventually(t, patience, "admitted anew", func() bool { return state() == "connected" })
	if g := grant(); g.GetMaxServices() == 7 || strings.Join(g.GetServiceCidrs(), ",") != "10.102.0.0/16" {
		t.Errorf("released, and yet: %v", g)
	}
}

// Of a cluster that shares the etcd those keys are counted that its grant allows;
// the others are refused, with the reason and the key.
func TestSharedEtcdCountsWhatIsBelieved(t *testing.T) {
	e := etcdtest.StartKind(t, etcdtest.External)
	api, _ := serve(t, on(t, e, "east", 1))
	other, stopWest := serve(t, on(t, e, "west", 2))
	answers(t, other)
	status := func() *hawserv1.PeerStatus {
		t.Helper()
		r, err := api.MeshStatus(t.Context(), &hawserv1.MeshStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetPeers()) != 1 {
			return &hawserv1.PeerStatus{}
		}
		return r.GetPeers()[0]
	}
	etcdtest.Eventually(t, patience, "they see each other", func() bool { return status().GetState() == "connected" })
	stopWest() // what it publishes stays as it is
	few := uint64(2)
	if _, err := api.ChangeGrant(t.Context(), &hawserv1.ChangeGrantRequest{Peer: "west", MaxIps: &few}); err != nil {
		t.Fatal(err)
	}
	before := status()
	if before.GetKeys() == 0 || len(before.GetRefused()) != 0 {
		t.Fatalf("before: %v", before)
	}
	root := e.Root(t)
	for _, prefix := range []string{"10.2.0.5/32", "10.2.0.6/32", "10.2.0.7/32", "10.1.0.5/32"} {
		key := kvstore.NewKey(kvstore.State, "west", kvstore.KindIP, prefix)
		value, err := kvstore.Encode(key, &keyspacev1.IPEntry{Prefix: prefix, Identity: 2<<16 + 1, Node: "n", TunnelAddress: "192.168.2.5"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := root.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key.String(), value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	bad := kvstore.NewKey(kvstore.State, "west", kvstore.KindNode, "n").String()
	if _, err := root.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(bad, []byte("zzz"))}, nil); err != nil {
		t.Fatal(err)
	}
	after := status()
	if n := after.GetKeys() - before.GetKeys(); n != 2 || after.GetKeysByKind()["ips"] != 2 {
		t.Errorf("%d keys more are believed, want 2: %v", n, after)
	}
	r := after.GetRefused()
	if after.GetRefusedNow() != 3 || r["limit"] != 1 || r["decode"] != 1 || len(r) != 3 {
		t.Errorf("refused: %v", after)
	}
	if text := strings.Join(after.GetLastRefused(), "\n"); !strings.Contains(text, "prefix 10.1.0.5/32 is not within a granted range") || !strings.Contains(text, "ips/10.2.0.7%2F32: limit") {
		t.Errorf("what is refused is not said: %s", text)
	}
}
