// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"slices"
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
		wantFindings(t, name, got, c.want)
	}
	if len(Ways(nil)) != 0 {
		t.Error("findings about nothing")
	}
}

// A node that the other cluster's grant leaves out is silent for that reason, and
// the port is not blamed; what has another reason is still told.
func TestWaysOfNodesThatAreNotGranted(t *testing.T) {
	// West-2 probes east, which does not know it; east does not probe it.
	refusedIn := func(from, to string, p *hawserv1.NodePath) {
		switch {
		case from == "west-2" && to[:4] == "east":
			p.Path = "down"
		case from[:4] == "east" && to == "west-2":
			p.Path = ""
		}
	}
	eastIsDown := func(from, to string, p *hawserv1.NodePath) {
		refusedIn(from, to, p)
		switch {
		case from == "east-1":
			p.Path = ""
		case to == "east-1":
			p.Path = "down"
		}
	}
	cut := func(from, to string, p *hawserv1.NodePath) {
		if from[:4] != to[:4] {
			p.Path = "down"
		}
	}
	const all, one, pods = "192.0.2.0/24", "192.0.2.1/32", "10.2.0.0/16,fd00:2::/32"
	for name, c := range map[string]struct {
		set         func(from, to string, p *hawserv1.NodePath)
		nodes, pods string // granted to west
		want        []string
		next        string
	}{
		"its address": {refusedIn, one, pods, []string{"path: node west/west-2 (192.0.2.2): no answer through the tunnel from east: east refuses what west says of it, as it does not grant west address 192.0.2.2"},
			"hawser mesh grant west --add-node-cidr 192.0.2.2/32 --cluster east"},
		"its pods": {refusedIn, all, "10.2.1.0/24,fd00:2::/32", []string{"path: node west/west-2 (192.0.2.2): no answer through the tunnel from east: east refuses what west says of it, as it does not grant west pod CIDR 10.2.2.0/24"},
			"--add-pod-cidr 10.2.2.0/24 --cluster east"},
		"both nodes": {cut, "192.0.9.0/24", pods, []string{"path: nodes west/west-1 (192.0.2.1), west/west-2 (192.0.2.2): no answer"},
			"--add-node-cidr 192.0.2.1/32 --add-node-cidr 192.0.2.2/32 --cluster east"},
		"a part of its pods is granted": {refusedIn, all, "10.2.1.0/24,10.2.2.128/25,fd00:2::/32", []string{"path: node west/west-2 → east/east-1 (192.0.1.1), east/east-2 (192.0.1.2): no answer"}, "8472/udp"},
		"all is granted":                {cut, all, pods, []string{"path: east ↔ west: nothing gets through"}, "8472/udp"},
		"another node is off": {eastIsDown, one, pods, []string{
			"path: node west/west-2 (192.0.2.2): no answer through the tunnel from east", "path: node east/east-1 (192.0.1.1): no node reaches it"}, ""},
		"nothing is down": {func(_, _ string, _ *hawserv1.NodePath) {}, one, pods, nil, ""},
	} {
		snapshots := grid(2, c.set)
		for i := range snapshots {
			snapshots[i].Status = &hawserv1.ClusterStatusReport{}
		}
		snapshots[0].Grants = []*hawserv1.PeerGrant{{Peer: "west", NodeCidrs: strings.Split(c.nodes, ","), PodCidrs: strings.Split(c.pods, ",")}}
		for j := 1; j <= 2; j++ {
			addr := fmt.Sprintf("192.0.2.%d", j)
			snapshots[1].Members = append(snapshots[1].Members, &hawserv1.NodeInfo{
				Cluster: "west", Name: fmt.Sprintf("west-%d", j), TunnelAddress: addr, Addresses: []string{addr, fmt.Sprintf("fd00:2:%d::1", j)}, PodCidrs: []string{fmt.Sprintf("10.2.%d.0/24", j)},
			})
		}
		var got []string
		for _, f := range Ways(snapshots) {
			if f.Severity == OK {
				continue
			}
			if !strings.Contains(f.Next, c.next) || f.Severity != Problem || !strings.Contains(c.next, "8472") && strings.Contains(f.Next, "8472") && c.next != "" {
				t.Errorf("%s: %+v", name, f)
			}
			got = append(got, f.Check+": "+f.Object+": "+f.Cause)
		}
		wantFindings(t, name, got, c.want)
	}

	// Who cannot ask the other cluster cannot know, and says so.
	alone := grid(2, refusedIn)[1:]
	n := 0
	for _, f := range Ways(alone) {
		if f.Check == "path" && f.Severity == Problem {
			n++
			if !strings.Contains(f.Next, "a grant of east that leaves the node out") {
				t.Errorf("not told of grants: %+v", f)
			}
		}
	}
	if n == 0 {
		t.Error("nothing is found by west alone")
	}
}

// wantFindings compares findings with what each of them begins with.
func wantFindings(t *testing.T, name string, got, want []string) {
	t.Helper()
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("%s: %q, want %q", name, got, want)
	}
}
