// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

func TestCut(t *testing.T) {
	granted := newRangeSet([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00:1::/48")})
	for name, c := range map[string]struct{ declared, in, more []string }{
		"granted":                 {[]string{"10.1.0.0/16"}, []string{"10.1.0.0/16"}, nil},
		"part of what is":         {[]string{"10.1.7.0/24", "fd00:1::/64"}, []string{"10.1.7.0/24", "fd00:1::/64"}, nil},
		"not granted":             {[]string{"10.3.0.0/16", "fd00:2::/48"}, nil, []string{"10.3.0.0/16", "fd00:2::/48"}},
		"more than is":            {[]string{"10.0.0.0/8"}, []string{"10.1.0.0/16", "10.2.0.0/16"}, []string{"10.0.0.0/8"}},
		"each once":               {[]string{"10.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/9"}, []string{"10.1.0.0/16", "10.2.0.0/16"}, []string{"10.0.0.0/8", "10.0.0.0/9"}},
		"unreadable is for Check": {[]string{"x", "10.1.0.0/16"}, []string{"x", "10.1.0.0/16"}, nil},
	} {
		in, more := cut(c.declared, granted)
		if !slices.Equal(in, c.in) || !slices.Equal(more, c.more) {
			t.Errorf("%s: %v of which is granted %v, not %v; want %v and %v", name, c.declared, in, more, c.in, c.more)
		}
	}
}

// What a record costs is in proportion to its size, whatever is granted: with a
// product of its lists, as of the addresses of the node here with its ranges, this
// would take minutes. Lists as long are refused before; see kvstore.MaxRanges.
func TestLargeRecordsAreJudgedInTheirTime(t *testing.T) {
	const many, addresses = 60_000, 40_000
	grant := &keyspacev1.Grant{ServiceCidrsPinned: true, NodeCidrs: []string{"10.0.0.0/8"}, PodCidrs: []string{"fd00::/16"}, ServiceCidrs: []string{"172.16.0.0/12"}}
	cluster := &keyspacev1.Cluster{Name: "west", Id: 2}
	node := &keyspacev1.Node{Name: "w1", Cluster: "west", PodCidrs: []string{"fd00:1::/64"}}
	for i := range many {
		cluster.PodCidrs = append(cluster.PodCidrs, fmt.Sprintf("fd0%x:%x::/48", i%2, i+1))
		cluster.NodeCidrs = append(cluster.NodeCidrs, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
		cluster.ServiceCidrs = append(cluster.ServiceCidrs, fmt.Sprintf("172.16.%d.%d/32", i/256, i%256))
		node.PodCidrs = append(node.PodCidrs, fmt.Sprintf("fe00:%x::/48", i+1))
	}
	for range addresses {
		node.Addresses = append(node.Addresses, &keyspacev1.NodeAddress{Ip: fmt.Sprintf("fe00:%x::1", many)})
	}
	g, err := NewGuard(&keyspacev1.Peer{Name: "west", ClusterId: 2, Grant: grant}, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := kvstore.NewKey(kvstore.State, "west", kvstore.KindCluster)
	cluster.KubeApiservers = []string{"192.0.2.1/32"}
	in, surplus := g.Within(key, cluster)
	if c := in.(*keyspacev1.Cluster); len(c.GetKubeApiservers()) != 0 {
		t.Errorf("the copy says where the peer's Kubernetes API servers are: %v", c.GetKubeApiservers())
	}
	if c := in.(*keyspacev1.Cluster); len(c.GetPodCidrs()) != many/2 || len(c.GetNodeCidrs()) != many || len(c.GetServiceCidrs()) != many || surplus == nil {
		t.Errorf("granted are %d, %d and %d ranges of the cluster, want %d, %d and %[5]d; surplus %v",
			len(c.GetPodCidrs()), len(c.GetNodeCidrs()), len(c.GetServiceCidrs()), many/2, many, surplus)
	}
	if err := g.Check(key, in); err != nil {
		t.Error(err)
	}
	key = kvstore.NewKey(kvstore.State, "west", kvstore.KindNode, "w1")
	in, surplus = g.Within(key, node)
	if n := in.(*keyspacev1.Node); len(n.GetPodCidrs()) != 1 || len(n.GetAddresses()) != 0 || surplus == nil {
		t.Errorf("granted are %d ranges and %d addresses of the node, want one and none; surplus %v", len(n.GetPodCidrs()), len(n.GetAddresses()), surplus)
	}
	if err := g.Check(key, in); err != nil {
		t.Error(err)
	}
	// What is said of a record that has nothing granted does not grow with it.
	node.PodCidrs = node.GetPodCidrs()[1:]
	in, _ = g.Within(key, node)
	if err := g.Check(key, in); err == nil || len(err.Error()) > 10_000 {
		t.Errorf("a node with nothing granted: %.200v", err)
	}
}

// Who asks to join with more ranges than a cluster may have is told that alone,
// not of each that stands against another one.
func TestTooManyRangesAreNotCompared(t *testing.T) {
	own := &keyspacev1.Cluster{Name: "east", Id: 1, PodCidrs: []string{"10.0.0.0/9"}, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8}}
	c := &keyspacev1.Cluster{Name: "west", Id: 2, Mesh: own.GetMesh()}
	for i := range kvstore.MaxRanges + 1 {
		c.PodCidrs = append(c.PodCidrs, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
	}
	fs := Preflight(Side{Own: own}, Candidate{Cluster: c})
	if !Blocks(fs) || len(fs) != 1 || fs[0].GetCheck() != "cidr" {
		t.Errorf("%d findings, want one that blocks: %.300v", len(fs), fs)
	}
}
