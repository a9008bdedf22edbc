// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/netip"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// What nodes that are there found of the ways to a peer's nodes is told, each with
// what to do; where all is well, nothing.
func TestTunnelFindings(t *testing.T) {
	up := func(node string, mtu uint32) *keyspacev1.PathReport {
		return &keyspacev1.PathReport{Cluster: "west", Node: node, Up: true, Mtu: mtu, FullMtu: 1500}
	}
	down := func(node string) *keyspacev1.PathReport { return &keyspacev1.PathReport{Cluster: "west", Node: node} }
	other := &keyspacev1.PathReport{Cluster: "north", Node: "x1"}
	for name, c := range map[string]struct {
		n1, n2 []*keyspacev1.PathReport
		want   map[string]string // by check
	}{
		"all is well":       {[]*keyspacev1.PathReport{up("w1", 1500), up("w2", 0), other}, []*keyspacev1.PathReport{up("w1", 1500)}, nil},
		"nobody has looked": {[]*keyspacev1.PathReport{other}, nil, map[string]string{"tunnel": "none of ours has looked"}},
		"the port is shut":  {[]*keyspacev1.PathReport{down("w1"), down("w2")}, []*keyspacev1.PathReport{down("w1")}, map[string]string{"tunnel": "none of its nodes that ours probe answers through the tunnel (8472/udp)"}},
		"one way":           {[]*keyspacev1.PathReport{up("w1", 1500), down("w2")}, []*keyspacev1.PathReport{up("w2", 1500)}, map[string]string{"tunnel": "on the way n1 → w2"}},
		"a small MTU":       {[]*keyspacev1.PathReport{up("w1", 1400)}, nil, map[string]string{"path-mtu": "the way n1 → w1 carries packets of 1400 bytes, nodes send up to 1500"}},
	} {
		w := &watchman{
			nodes:   map[string]netip.Addr{"n1": {}, "n2": {}},
			present: map[string]bool{"n1": true, "n2": true},
			reports: map[string]report{"n1": {paths: c.n1}, "n2": {paths: c.n2}, "gone": {paths: []*keyspacev1.PathReport{down("w1")}}},
		}
		got := w.tunnels(&keyspacev1.Cluster{Name: "west", Mesh: &keyspacev1.MeshParameters{TunnelPort: 8472}})
		if len(got) != len(c.want) {
			t.Errorf("%s: %v", name, got)
		}
		for _, f := range got {
			if says := c.want[f.GetCheck()]; says == "" || !strings.Contains(f.GetProblem(), says) || f.GetFix() == "" || f.GetObject() != "west" || f.GetBlocking() {
				t.Errorf("%s: %v", name, f)
			}
		}
	}
	if got := (&watchman{}).tunnels(&keyspacev1.Cluster{Name: "west"}); len(got) != 0 {
		t.Errorf("a cluster without nodes: %v", got)
	}
}
