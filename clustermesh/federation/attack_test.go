// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// A cluster that takes the name of a peer that is there.
func TestTwoPeersWithOneName(t *testing.T) {
	a, b := pair(t)
	twin := newCluster(t, 3, func(c *testCluster) {
		c.name = b.name
		c.cfg.Cluster.Name = b.name
	})
	before := a.peer(b.name)
	text := invite(t, a, "")
	res, err := twin.m.Join(t.Context(), text, false)
	// Its CA is of another trust domain: it cannot even show the name.
	if err == nil && res.Joined {
		t.Fatal("a second cluster of the same name joined")
	}
	if tok := a.token(parse(t, text).ID); len(tok.GetUsedBy()) != 0 {
		t.Errorf("the token was consumed: %v", tok)
	}
	if after := a.peer(b.name); !samePeer(before, after) || string(after.GetTrustBundle()[0]) != string(before.GetTrustBundle()[0]) {
		t.Errorf("the first one's record changed: %v", after)
	}
	// And with a CA that says so, what is judged says that the name is taken.
	fs := peering.Preflight(peering.Side{Own: a.cfg.Cluster, CA: a.creds.CA(), Peers: []*keyspacev1.Peer{before}, Now: a.now()},
		peering.Candidate{Cluster: describe(b.name, 3, "x:1"), Bundle: twin.creds.CA()})
	found := false
	for _, f := range fs {
		found = found || f.GetCheck() == "name-clash" && f.GetBlocking()
	}
	if !found {
		t.Errorf("findings: %v", fs)
	}
	connected(t, a, b)
}

// Ranges that are not the peer's: each record is refused, whatever its kind.
func TestPublishedRangesOfOthers(t *testing.T) {
	a, b := pair(t)
	c := newCluster(t, 3)
	joinPeers(t, a, c)
	node := func(name, pods, tunnel, addr string) {
		b.put(kvstore.NewKey(kvstore.State, b.name, kvstore.KindNode, name), &keyspacev1.Node{
			Name: name, Cluster: b.name, PodCidrs: []string{pods}, TunnelAddress: tunnel,
			Addresses: []*keyspacev1.NodeAddress{{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: addr}},
		})
	}
	vtep := func(prefix, tunnel string) {
		b.put(kvstore.NewKey(kvstore.State, b.name, kvstore.KindVTEP, prefix), &keyspacev1.VTEP{Prefix: prefix, TunnelAddress: tunnel, Node: "n"})
	}
	node("ours", "10.2.1.0/24", "192.168.1.1", "192.168.1.1")   // the address of a node of ours
	node("route", "0.0.0.0/0", "192.168.2.1", "192.168.2.1")    // everything
	node("theirs", "10.3.1.0/24", "192.168.2.1", "192.168.2.1") // another peer's pods
	node("far", "10.2.1.0/24", "192.168.3.1", "192.168.2.1")    // another peer's node
	vtep("10.1.1.0/24", "192.168.2.1")                          // our pods behind its node
	vtep("10.3.0.0/16", "192.168.2.1")                          // another peer's pods behind its node
	vtep("10.0.0.0/8", "192.168.2.1")                           // around all of them
	vtep("10.2.9.0/24", "192.168.1.1")                          // its pods behind our node
	b.put(kvstore.NewKey(kvstore.State, b.name, kvstore.KindSlice, "demo", "echo", "n"), &keyspacev1.BackendSlice{
		Namespace: "demo", Service: "echo", Name: "n",
		Backends: []*keyspacev1.Backend{{Ip: "10.1.0.9", Ports: []*keyspacev1.BackendPort{{Port: 80}}}}, // our pod as its backend
	})
	node("good", "10.2.1.0/24", "192.168.2.1", "192.168.2.1")
	good := kvstore.NewKey(kvstore.State, b.name, kvstore.KindNode, "good").String()
	eventually(t, "the good one beside them", func() bool { return a.get(good) != nil })
	eventually(t, "nine refused", func() bool { return a.status(b).GetRefused()["address"] == 9 })
	if got := a.keys(b); len(got) != 1 {
		t.Errorf("a holds of b: %q", got)
	}
}

// A peer that publishes without end fills its grant and nothing else.
func TestFloodOfServicesEndsAtTheGrant(t *testing.T) {
	a, b := pair(t)
	few := uint64(50)
	if _, _, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{MaxServices: &few}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "grant taken up", func() bool { return a.status(b).GetSnapshotsReceived() > 1 })
	const many = 2000
	for from := 0; from < many; from += kvstore.MaxTxnOps {
		var ops []kvstore.Op
		for n := from; n < min(many, from+kvstore.MaxTxnOps); n++ {
			k := kvstore.NewKey(kvstore.State, b.name, kvstore.KindService, "demo", fmt.Sprintf("s%d", n))
			v, err := kvstore.Encode(k, &keyspacev1.Service{Namespace: "demo", Name: k.Names[1], Ports: []*keyspacev1.ServicePort{{Port: 80}}})
			if err != nil {
				t.Fatal(err)
			}
			ops = append(ops, kvstore.Put(k.String(), v))
		}
		if _, err := b.kv.Txn(t.Context(), nil, ops, nil); err != nil {
			t.Fatal(err)
		}
	}
	pod := b.ip(1, "still")
	eventually(t, "other kinds come through", func() bool { return a.get(pod) != nil })
	eventually(t, "the surplus refused", func() bool { return a.status(b).GetRefused()["limit"] == many-few })
	services := 0
	for k := range a.keys(b) {
		if strings.Contains(k, "/services/") {
			services++
		}
	}
	if services != int(few) {
		t.Errorf("a holds %d services of b, granted are %d", services, few)
	}
	if n := len(a.status(b).GetLastRefused()); n > keptRefusals {
		t.Errorf("%d refusals are kept", n)
	}
}

// A record that changes without end does not hold up the others, and what is
// seen in the end is the newest.
func TestEverChangingRecords(t *testing.T) {
	a, b := pair(t)
	const changes = 3000
	k, rec := b.ipRecord(1, "")
	for n := range changes {
		rec.Workload = fmt.Sprint("v", n)
		b.put(k, rec)
		if n == changes/2 {
			b.ip(2, "other")
		}
	}
	last := string(b.get(k.String()))
	eventually(t, "the newest version", func() bool { return string(a.get(k.String())) == last })
	if a.get(b.ip(2, "other")) == nil {
		t.Error("the other record did not come")
	}
	if s := a.status(b); s.GetState() != stateConnected || s.GetSnapshotsReceived() > 1 {
		t.Errorf("the stream did not stay: %v", s)
	}
}
