// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// What was refused comes when it is granted, although the peer sends it once
// only; what is granted no more goes.
func TestGrantsAreWidenedAndNarrowed(t *testing.T) {
	a, b := pair(t)
	good := b.ip(1, "good")
	_, rec := b.ipRecord(1, "later")
	rec.Prefix = "10.77.0.9/32"
	k := kvstore.NewKey(kvstore.State, b.name, kvstore.KindIP, rec.GetPrefix())
	b.put(k, rec)
	eventually(t, "growth refused", func() bool { return a.status(b).GetRefused()["address"] == 1 && a.get(good) != nil })
	if a.get(k.String()) != nil {
		t.Fatal("what was not granted has landed")
	}
	if s := a.status(b); s.GetRefusedNow() != 1 || s.GetRefusedAt() != 0 {
		t.Errorf("%d are refused as they stand, the stream at %d; want 1, never", s.GetRefusedNow(), s.GetRefusedAt())
	}
	_, wrong := b.ipRecord(2, "soon gone")
	wrong.Prefix = "10.78.0.9/32"
	gone := kvstore.NewKey(kvstore.State, b.name, kvstore.KindIP, wrong.GetPrefix())
	b.put(gone, wrong)
	eventually(t, "another one refused", func() bool { return a.status(b).GetRefusedNow() == 2 })
	b.del(gone.String())
	eventually(t, "one of them gone", func() bool { s := a.status(b); return s.GetRefusedNow() == 1 && s.GetRefused()["address"] == 2 })
	if _, changed, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{AddPods: []string{"10.79.0.0/24"}}); err != nil || !changed {
		t.Fatal(changed, err)
	}
	eventually(t, "still refused after it was sent anew", func() bool { s := a.status(b); return s.GetRefusedNow() == 1 && s.GetRefused()["address"] == 3 })
	if _, changed, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{RemovePods: []string{"10.79.0.0/24"}, AddPods: []string{"10.77.0.0/25"}}); err != nil || !changed {
		t.Fatal(changed, err)
	}
	eventually(t, "none is refused any more", func() bool { return a.status(b).GetRefusedNow() == 0 && a.get(k.String()) != nil })
	if _, changed, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{RemovePods: []string{"10.77.0.0/25"}}); err != nil || !changed {
		t.Fatal(changed, err)
	}
	eventually(t, "refused as before", func() bool { return a.status(b).GetRefusedNow() == 1 && a.get(k.String()) == nil })
	// A stream that begins anew, also after a restart, changes nothing.
	a.restart()
	connected(t, a, b)
	if a.get(k.String()) != nil {
		t.Fatal("what was not granted has landed after a restart")
	}
	change := func(c peering.GrantChange) (*keyspacev1.Peer, bool) {
		t.Helper()
		p, changed, err := a.m.ChangeGrant(t.Context(), b.name, c)
		if err != nil {
			t.Fatal(err)
		}
		return p, changed
	}
	if p, changed := change(peering.GrantChange{AddPods: []string{"10.77.0.0/24"}}); !changed || len(p.GetGrant().GetPodCidrs()) != 2 {
		t.Errorf("widened: %v %v", changed, p.GetGrant())
	}
	eventually(t, "what is granted now landed", func() bool { return a.get(k.String()) != nil && a.get(good) != nil })
	if _, changed := change(peering.GrantChange{AddPods: []string{"10.77.0.0/24"}}); changed {
		t.Error("granting it again changed something")
	}
	change(peering.GrantChange{RemovePods: []string{"10.77.0.0/24"}})
	eventually(t, "what is granted no more went", func() bool { return a.get(k.String()) == nil })
	if a.get(good) == nil {
		t.Error("the rest went with it")
	}
	change(peering.GrantChange{Namespaces: []string{"shop"}})
	eventually(t, "other namespaces went", func() bool { return a.get(good) == nil })
	change(peering.GrantChange{Namespaces: []string{}})
	eventually(t, "all namespaces came back", func() bool { return a.get(good) != nil })
}

func TestWhatNoPeerIsGranted(t *testing.T) {
	a, b := pair(t)
	c := newCluster(t, 3)
	joinPeers(t, a, c)
	for _, x := range []struct {
		c    peering.GrantChange
		want string
	}{
		{peering.GrantChange{AddPods: []string{"0.0.0.0/0"}}, "default route"},
		{peering.GrantChange{AddNodes: []string{"::/0"}}, "default route"},
		{peering.GrantChange{AddPods: []string{"10.1.4.0/24"}}, "overlaps 10.1.0.0/16"},     // ours
		{peering.GrantChange{AddNodes: []string{"192.168.1.0/25"}}, "overlaps 192.168.1.0"}, // our nodes
		{peering.GrantChange{AddPods: []string{"172.17.0.0/24"}}, "overlaps 172.17.0.0/16"}, // our services
		{peering.GrantChange{AddPods: []string{"10.3.0.0/24"}}, "overlaps 10.3.0.0/16"},     // another peer's
		{peering.GrantChange{AddPods: []string{"10.0.0.0/8"}}, "overlaps"},                  // around all of them
		{peering.GrantChange{AddPods: []string{"8.0.0.0/5"}}, "wider than a /8"},
		{peering.GrantChange{AddPods: []string{"2000::/3"}}, "wider than a /16"},
		{peering.GrantChange{AddNodes: []string{"127.0.0.0/24"}}, "loopback"},
		{peering.GrantChange{AddNodes: []string{"169.254.0.0/17"}}, "link-local"},
		{peering.GrantChange{AddNodes: []string{"fe80::/64"}}, "link-local"},
		{peering.GrantChange{AddPods: []string{"::1/128"}}, "reserved"},
		{peering.GrantChange{AddPods: []string{"224.1.0.0/16"}}, "multicast"},
		{peering.GrantChange{AddPods: []string{"ff02::/16"}}, "multicast"},
		{peering.GrantChange{AddPods: []string{"0.1.0.0/16"}}, "unspecified"},
		{peering.GrantChange{AddPods: []string{"255.255.255.255/32"}}, "reserved"},
		{peering.GrantChange{AddPods: []string{"::ffff:10.9.0.0/112"}}, "write it as IPv4"},
		{peering.GrantChange{AddServices: []string{"0.0.0.0/0"}}, "default route"},
		{peering.GrantChange{AddPods: []string{"10.9.0.1/16"}}, "did you mean 10.9.0.0/16"},
		{peering.GrantChange{AddPods: []string{"x"}}, "ADDRESS/BITS"},
		{peering.GrantChange{RemovePods: []string{"10.9.0.0/16"}}, "is not granted; granted are [10.2.0.0/16]"},
	} {
		if _, _, err := a.m.ChangeGrant(t.Context(), b.name, x.c); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v, want %q", x.c, err, x.want)
		}
	}
	if _, _, err := a.m.ChangeGrant(t.Context(), "nobody", peering.GrantChange{}); err == nil {
		t.Error("a stranger has a grant")
	}
	peers, _, err := a.m.Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if len(p.GetGrant().GetPodCidrs()) != 1 || len(p.GetGrant().GetNodeCidrs()) != 1 {
			t.Errorf("refused changes changed the grant of %s: %v", p.GetName(), p.GetGrant())
		}
	}
}

// A peer's service ranges are pinned like its other ranges: nothing is sent to
// addresses there that nobody has, so that a range of the outside would cut us off
// from it.
func TestServiceRangesArePinned(t *testing.T) {
	a, b := pair(t, func(c *testCluster) {
		c.cfg.Cluster.ServiceCidrs = []string{fmt.Sprintf("172.%d.0.0/16", 30+c.cfg.Cluster.GetId())}
	})
	say := func(cidrs ...string) {
		r := describe(b.name, 2, "x:1")
		r.ServiceCidrs = cidrs
		b.put(kvstore.NewKey(kvstore.State, b.name, kvstore.KindCluster), r)
	}
	key := kvstore.NewKey(kvstore.State, b.name, kvstore.KindCluster).String()
	say("172.32.0.0/16")
	eventually(t, "what was declared is there", func() bool { return a.get(key) != nil })
	say("172.32.0.0/16", "93.184.0.0/16")
	eventually(t, "another range refused", func() bool { return a.status(b).GetRefused()["address"] == 1 })
	if got := a.declared(b); !slices.Equal(got, []string{"10.2.0.0/16", "192.168.2.0/24", "172.32.0.0/16"}) {
		t.Errorf("the copy says %q, want all but what is not granted", got)
	}
	if _, _, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{AddServices: []string{"93.184.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a wider grant lets it in", func() bool { return slices.Contains(a.declared(b), "93.184.0.0/16") })
}

// declared are the ranges of a peer by the copy of its record; nil: there is none.
func (c *testCluster) declared(peer *testCluster) []string {
	c.t.Helper()
	kv := c.get(kvstore.NewKey(kvstore.State, peer.name, kvstore.KindCluster).String())
	r := &keyspacev1.Cluster{}
	if kv == nil {
		return nil
	}
	if err := proto.Unmarshal(kv, r); err != nil {
		c.t.Fatal(err)
	}
	return slices.Concat(r.GetPodCidrs(), r.GetNodeCidrs(), r.GetServiceCidrs())
}

// A peer that declares more than is granted loses that alone; so does one of which
// less is granted than before. What is left out is named until it is granted, also
// by an API server that was started since.
func TestGrowthAloneIsRefused(t *testing.T) {
	a, b := pair(t)
	key := kvstore.NewKey(kvstore.State, b.name, kvstore.KindCluster)
	named := func() (out string) {
		for _, f := range a.status(b).GetFindings() {
			if f.GetCheck() == "grant" {
				out += f.GetProblem() + ": " + f.GetFix() + "\n"
			}
		}
		return out
	}
	is := func(step string, ranges []string, names ...string) {
		t.Helper()
		eventually(t, step, func() bool {
			ok := slices.Equal(a.declared(b), ranges) && (named() == "") == (len(names) == 0) && (a.status(b).GetRefusedNow() == 0) == (len(names) == 0)
			for _, n := range names {
				ok = ok && strings.Contains(named(), n)
			}
			return ok
		})
	}
	grown := describe(b.name, 2, "x:1")
	grown.NotGranted = []string{"pod 10.99.0.0/16"} // which only its copy says
	b.put(key, grown)
	all := []string{"10.2.0.0/16", "192.168.2.0/24", "172.18.0.0/16"}
	is("as declared at the join", all)
	grown.PodCidrs = append(grown.PodCidrs, "10.66.0.0/16", "10.1.0.0/16")
	grown.NodeCidrs = append(grown.NodeCidrs, "192.168.66.0/24")
	grown.ServiceCidrs = append(grown.ServiceCidrs, "172.31.7.0/24")
	b.put(key, grown)
	names := []string{"pod CIDR 10.66.0.0/16", "pod CIDR 10.1.0.0/16", "grant " + b.name + " --add-node-cidr 192.168.66.0/24", "grant " + b.name + " --add-service-cidr 172.31.7.0/24"}
	is("the growth is refused, the rest stays", all, names...)
	a.restart()
	connected(t, a, b)
	eventually(t, "named after a restart", func() bool { return strings.Contains(named(), names[2]) && slices.Equal(a.declared(b), all) })
	b.put(key, describe(b.name, 2, "x:1"))
	is("taken back by the peer", all)
	change := func(c peering.GrantChange) {
		t.Helper()
		if _, _, err := a.m.ChangeGrant(t.Context(), b.name, c); err != nil {
			t.Fatal(err)
		}
	}
	change(peering.GrantChange{RemovePods: []string{"10.2.0.0/16"}, AddPods: []string{"10.2.1.0/24"}})
	is("narrowed to a part", []string{"10.2.1.0/24", "192.168.2.0/24", "172.18.0.0/16"}, "pod CIDR 10.2.0.0/16")
	change(peering.GrantChange{AddPods: []string{"10.2.0.0/16"}})
	is("granted again", all)
}

// A node that has one more range than is granted stays with the others, and so do
// the backends that are granted; one of which nothing is granted, or with an address
// that is not the peer's, does not.
func TestNodesOfAPeerThatGrows(t *testing.T) {
	a, b := pair(t)
	node := func(name, addr string, pods ...string) string {
		k := kvstore.NewKey(kvstore.State, b.name, kvstore.KindNode, name)
		b.put(k, &keyspacev1.Node{Name: name, Cluster: b.name, PodCidrs: pods, TunnelAddress: "192.168.2.1", Addresses: []*keyspacev1.NodeAddress{
			{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: "192.168.2.1"}, {Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: addr},
		}})
		return k.String()
	}
	grown := node("grown", "fd00:2:0:1::1", "10.2.1.0/24", "fd00:2:0:1::/64")
	moved := node("moved", "192.168.2.2", "10.66.0.0/24")
	lying := node("lying", "fd00:1:0:1::1", "10.2.2.0/24", "fd00:2:0:2::/64")
	ours := node("ours", "192.168.1.7", "10.2.3.0/24", "192.168.1.0/24")
	slice := kvstore.NewKey(kvstore.State, b.name, kvstore.KindSlice, "demo", "web", "s")
	b.put(slice, &keyspacev1.BackendSlice{Namespace: "demo", Service: "web", Name: "s",
		Backends: []*keyspacev1.Backend{{Ip: "10.2.1.7"}, {Ip: "fd00:2:0:1::7"}, {Ip: "10.1.0.7"}}})
	eventually(t, "all judged", func() bool { return a.status(b).GetRefused()["address"] == 5 })
	backends := func() (out []string) {
		s := &keyspacev1.BackendSlice{}
		if err := proto.Unmarshal(a.get(slice.String()), s); err != nil {
			t.Fatal(err)
		}
		for _, b := range s.GetBackends() {
			out = append(out, b.GetIp())
		}
		return out
	}
	// Refusals are counted before what is left is written.
	eventually(t, "the backend that is granted", func() bool { return slices.Equal(backends(), []string{"10.2.1.7"}) })
	for _, k := range []string{moved, lying, ours} {
		if a.get(k) != nil {
			t.Errorf("%s has landed", k)
		}
	}
	is := func(step string, pods, addresses int) {
		t.Helper()
		eventually(t, step, func() bool {
			r, kv := &keyspacev1.Node{}, a.get(grown)
			return kv != nil && proto.Unmarshal(kv, r) == nil && len(r.GetPodCidrs()) == pods && len(r.GetAddresses()) == addresses
		})
	}
	is("without the range that is not granted", 1, 1)
	if _, _, err := a.m.ChangeGrant(t.Context(), b.name, peering.GrantChange{AddPods: []string{"fd00:2::/48"}}); err != nil {
		t.Fatal(err)
	}
	is("granted", 2, 2)
	eventually(t, "its backend too", func() bool { return slices.Equal(backends(), []string{"10.2.1.7", "fd00:2:0:1::7"}) })
}

// What a peer may read beside the public records is by its grant, too.
func TestReadingIsGranted(t *testing.T) {
	a, b := pair(t)
	b.ip(1, "x")
	eventually(t, "copied", func() bool {
		r, err := a.m.DiffPeer(t.Context(), b.name, DiffRange{})
		return err == nil && len(r.GetRows()) == 0 && r.GetCompared() > 0
	})
	no := false
	if _, changed, err := b.m.ChangeGrant(t.Context(), a.name, peering.GrantChange{Diff: &no}); err != nil || !changed {
		t.Fatal(changed, err)
	}
	eventually(t, "refused with what to do", func() bool {
		_, err := a.m.DiffPeer(t.Context(), b.name, DiffRange{})
		return err != nil && strings.Contains(err.Error(), "hawser mesh grant "+a.name+" --diff")
	})
	connected(t, a, b) // the stream goes on
	yes := true
	if _, changed, err := b.m.ChangeGrant(t.Context(), a.name, peering.GrantChange{Diff: &yes}); err != nil || !changed {
		t.Fatal(changed, err)
	}
	eventually(t, "granted again", func() bool { _, err := a.m.DiffPeer(t.Context(), b.name, DiffRange{}); return err == nil })
}
