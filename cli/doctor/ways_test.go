// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// grid is two clusters of so many nodes each that all probe each other; set says
// how a way is.
func grid(nodes int, set func(from, to string, p *hawserv1.NodePath)) (out []Snapshot) {
	clusters := []string{"east", "west"}
	for _, from := range clusters {
		s := Snapshot{Cluster: from}
		for i := 1; i <= nodes; i++ {
			n := Node{Name: fmt.Sprintf("%s-%d", from, i), Status: &hawserv1.NodeStatusReport{TunnelPort: 8472}}
			for c, to := range clusters {
				for j := 1; j <= nodes; j++ {
					p := &hawserv1.NodePath{Cluster: to, Node: fmt.Sprintf("%s-%d", to, j), Address: fmt.Sprintf("192.0.%d.%d", c+1, j), Path: "up", Mtu: 1500, FullMtu: 1500}
					if p.GetNode() == n.Name {
						continue
					}
					set(n.Name, p.GetNode(), p)
					n.Paths = append(n.Paths, p)
				}
			}
			s.Nodes = append(s.Nodes, n)
		}
		out = append(out, s)
	}
	return out
}

// One cause is one finding, and it names what is at fault.
func TestWays(t *testing.T) {
	between := func(from, to string) bool { return from[:4] != to[:4] }
	for name, c := range map[string]struct {
		nodes int
		set   func(from, to string, p *hawserv1.NodePath)
		want  []string // check: object, cause
	}{
		"all is well": {3, func(_, _ string, _ *hawserv1.NodePath) {}, nil},
		"a node is off, and cannot be asked": {2, func(from, to string, p *hawserv1.NodePath) {
			if from == "west-2" {
				p.Path = ""
			} else if to == "west-2" {
				p.Path = "down"
			}
		}, []string{"path: node west/west-2 (192.0.2.2): no node reaches it"}},
		"a node is cut off, and says so itself": {3, func(from, to string, p *hawserv1.NodePath) {
			if from == "west-2" || to == "west-2" {
				p.Path = "down"
			}
		}, []string{"path: node west/west-2 (192.0.2.2): no node reaches it"}},
		"two nodes are off": {3, func(from, to string, p *hawserv1.NodePath) {
			if from == "west-2" || from == "east-1" {
				p.Path = ""
			} else if to == "west-2" || to == "east-1" {
				p.Path = "down"
			}
		}, []string{"path: node east/east-1 (192.0.1.1): no node reaches it", "path: node west/west-2 (192.0.2.2): no node reaches it"}},
		"the tunnel between the clusters is cut": {2, func(from, to string, p *hawserv1.NodePath) {
			if between(from, to) {
				p.Path = "down"
			}
		}, []string{"path: east ↔ west: nothing gets through"}},
		"a single way": {3, func(from, to string, p *hawserv1.NodePath) {
			if from == "east-1" && to == "west-3" {
				p.Path = "down"
			}
		}, []string{"path: node east/east-1 → west/west-3 (192.0.2.3): no answer"}},
		"a node behind a small MTU": {2, func(from, to string, p *hawserv1.NodePath) {
			if from == "west-2" || to == "west-2" {
				p.Mtu = 1400
			}
		}, []string{"path MTU: node west/west-2 (192.0.2.2): on every way to and from it packets of more than 1400 bytes are lost, nodes send up to 1500"}},
		"a small MTU between the clusters": {2, func(from, to string, p *hawserv1.NodePath) {
			if between(from, to) {
				p.Mtu = 1392
			}
		}, []string{"path MTU: east ↔ west: between these clusters packets of more than 1392"}},
		"a small MTU and a node that is off": {3, func(from, to string, p *hawserv1.NodePath) {
			switch {
			case from == "west-2":
				p.Path = ""
			case to == "west-2":
				p.Path, p.Mtu = "down", 0
			case from == "east-1" && to == "east-2":
				p.Mtu = 1400
			}
		}, []string{"path: node west/west-2 (192.0.2.2): no node reaches it", "path MTU: node east/east-1 → east/east-2 (192.0.1.2): packets of more"}},
		"one node each":           {1, func(_, _ string, p *hawserv1.NodePath) { p.Path = "down" }, []string{"path: east ↔ west: nothing"}},
		"sizes are not known yet": {2, func(_, _ string, p *hawserv1.NodePath) { p.Mtu = 0 }, nil},
	} {
		var got []string
		for _, f := range Ways(grid(c.nodes, c.set)) {
			if f.Severity == OK {
				continue
			}
			if f.Severity != Problem || f.Next == "" {
				t.Errorf("%s: %+v", name, f)
			}
			got = append(got, f.Check+": "+f.Object+": "+f.Cause)
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
			continue
		}
		for i, w := range c.want {
			if !strings.HasPrefix(got[i], w) {
				t.Errorf("%s: %q, want %q", name, got[i], w)
			}
		}
	}
	if len(Ways(nil)) != 0 {
		t.Error("findings about nothing")
	}
}
