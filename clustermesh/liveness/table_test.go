// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

const (
	alive     = keyspacev1.NodeHealth_STATE_ALIVE
	agentDown = keyspacev1.NodeHealth_STATE_AGENT_DOWN
	suspect   = keyspacev1.NodeHealth_STATE_SUSPECT
	dead      = keyspacev1.NodeHealth_STATE_DEAD
	unknown   = keyspacev1.NodeHealth_STATE_UNKNOWN
)

func health(s keyspacev1.NodeHealth_State) *keyspacev1.NodeHealth {
	process := Up
	if s == agentDown || s == dead {
		process = Down
	}
	return &keyspacev1.NodeHealth{State: s, Process: process.String()}
}

// The table of process and path, for nodes of the own cluster and of a peer.
func TestWhoIsChosen(t *testing.T) {
	for name, c := range map[string]struct {
		path      Path
		process   Witness // own cluster: gossip
		health    keyspacev1.NodeHealth_State
		connected bool // peer: stream
		own, peer string
	}{
		"both up":                       {PathUp, Up, alive, true, "", ""},
		"process down":                  {PathUp, Down, agentDown, true, "", ""},
		"stream lost":                   {PathUp, Up, alive, false, "", ""},
		"called dead, but it answers":   {PathUp, Down, dead, true, "", ""},
		"path down":                     {PathDown, Up, alive, true, WhyPath, WhyPath},
		"path returning":                {PathReturning, Up, alive, true, WhyPath, WhyPath},
		"both down":                     {PathDown, Down, dead, true, WhyUnreachable, WhyUnreachable},
		"path down, stream lost":        {PathDown, Up, alive, false, WhyPath, WhyUnreachable},
		"path down, nothing else known": {PathDown, Unknown, unknown, true, WhyPath, WhyPath},
		"not probed, alive":             {PathUnknown, Up, alive, true, "", ""},
		"not probed, agent down":        {PathUnknown, Down, agentDown, true, "", ""},
		"not probed, suspect":           {PathUnknown, Down, suspect, true, "", ""},
		"not probed, dead":              {PathUnknown, Down, dead, true, WhyDead, WhyDead},
		"not probed, stream lost":       {PathUnknown, Up, alive, false, "", ""},
		"not probed, unknown":           {PathUnknown, Unknown, unknown, true, "", ""},
	} {
		for cluster, want := range map[string]string{"east": c.own, "west": c.peer} {
			table := NewTable(NodeID{"east", "east-9"})
			table.SetPeer("west", c.connected)
			x, other := node(cluster, 1), node(cluster, 2)
			for _, n := range []Target{x, other} {
				table.SetNode(n.NodeID, n.Addr, true)
			}
			table.SetPath(PathChange{other.NodeID, PathUp, time.Now()})
			table.SetPath(PathChange{x.NodeID, c.path, time.Now()})
			table.SetHealth(x.NodeID, health(c.health))
			if cluster == "east" {
				table.SetProcess(x.NodeID, c.process)
			}
			row := table.Rows()[0]
			if row.Why != want || row.Chosen != (want == "") {
				t.Errorf("%s, node of %s: %q, want %q", name, cluster, row.Why, want)
			}
			changes := table.Changes()
			if changes[x.NodeID] != want || len(changes) > 1 {
				t.Errorf("%s, node of %s: changes %v", name, cluster, changes)
			}
			if again := table.Changes(); len(again) != 0 {
				t.Errorf("%s: said twice: %v", name, again)
			}
		}
	}
}

// Of a cluster that nobody reaches, by stream or probe, also those nodes leave
// that are not probed; they return with the first sign of life.
func TestWholeClusterGone(t *testing.T) {
	table := NewTable(NodeID{"east", "east-9"})
	table.SetPeer("west", true)
	for i := range 20 {
		n := node("west", i)
		table.SetNode(n.NodeID, n.Addr, true)
	}
	set := func(p Path, nodes ...int) {
		for _, i := range nodes {
			table.SetPath(PathChange{node("west", i).NodeID, p, time.Now()})
		}
	}
	want := func(what string, n int) {
		t.Helper()
		out := 0
		for _, r := range table.Rows() {
			if !r.Chosen {
				out++
			}
		}
		if out != n {
			t.Errorf("%s: %d are not chosen, want %d", what, out, n)
		}
	}
	set(PathUp, 0, 1, 2)
	want("all is well", 0)
	table.SetPeer("west", false)
	want("stream lost", 0)
	set(PathDown, 0, 1)
	want("two of three do not answer", 2)
	set(PathDown, 2)
	want("nobody answers", 20)
	table.SetPeer("west", true)
	want("the stream is back", 3)
	table.SetPeer("west", false)
	set(PathUp, 1)
	want("one answers", 2)
}

// A cluster that hears none of its nodes, of which none answers us either, is as
// good as gone, also where nobody probes. One that hears one of them is not.
func TestWholeClusterSilent(t *testing.T) {
	table := NewTable(NodeID{"east", "east-9"})
	table.SetPeer("west", true)
	silent := &keyspacev1.NodeHealth{State: suspect, Process: Down.String()}
	for i := range 20 {
		n := node("west", i)
		table.SetNode(n.NodeID, n.Addr, true)
		table.SetHealth(n.NodeID, silent)
	}
	want := func(what string, n int) {
		t.Helper()
		out := 0
		for _, r := range table.Rows() {
			if !r.Chosen {
				out++
			}
		}
		if out != n {
			t.Errorf("%s: %d are not chosen, want %d", what, out, n)
		}
	}
	want("nobody is probed yet", 0)
	table.SetPath(PathChange{node("west", 0).NodeID, PathDown, time.Now()})
	want("the one that is probed does not answer", 20)
	table.SetHealth(node("west", 5).NodeID, health(alive))
	want("its cluster hears one", 1)
	table.SetHealth(node("west", 5).NodeID, silent)
	table.SetPath(PathChange{node("west", 1).NodeID, PathUp, time.Now()})
	want("one answers", 1)
}

// A node that its cluster does not hear is looked at by some of those that run,
// and by all where there are few.
func TestQuestioned(t *testing.T) {
	for _, c := range []struct{ nodes, least, most int }{{8, 7, 7}, {400, 4, 40}} {
		looked := 0
		lost := node("east", 0)
		for i := 1; i < c.nodes; i++ {
			table := NewTable(node("east", i).NodeID)
			for j := range c.nodes {
				n := node("east", j)
				table.SetNode(n.NodeID, n.Addr, true)
				table.SetHealth(n.NodeID, health(alive))
			}
			if len(table.Questioned()) > 0 {
				t.Fatalf("all run: %v", table.Questioned())
			}
			table.SetHealth(lost.NodeID, health(agentDown))
			table.SetNode(node("west", 1).NodeID, lost.Addr, true)
			table.SetHealth(node("west", 1).NodeID, health(agentDown))
			q := table.Questioned()
			if q[lost.NodeID] {
				looked++
				delete(q, lost.NodeID)
			}
			if len(q) > 0 {
				t.Fatalf("others are looked at: %v", q)
			}
		}
		if looked < c.least || looked > c.most {
			t.Errorf("%d of %d nodes look at it", looked, c.nodes)
		}
	}
}

// A cluster that calls most of its nodes dead while one of them answers us is
// not believed, but for those that do not answer us either.
func TestClusterThatBuriesTheLiving(t *testing.T) {
	table := NewTable(NodeID{"east", "east-9"})
	table.SetPeer("west", true)
	for i := range 5 {
		n := node("west", i)
		table.SetNode(n.NodeID, n.Addr, true)
		if i < 3 {
			table.SetHealth(n.NodeID, health(dead))
		}
	}
	if got := len(table.Changes()); got != 3 {
		t.Fatalf("%d left", got)
	}
	table.SetPath(PathChange{node("west", 0).NodeID, PathUp, time.Now()})
	changes := table.Changes()
	if why, said := changes[node("west", 2).NodeID]; len(changes) != 3 || !said || why != "" {
		t.Errorf("one of the dead answers, and changed: %v", changes)
	}
}

// No record of a peer says anything of our nodes, or of another cluster's.
func TestHealthOfAnotherCluster(t *testing.T) {
	table := NewTable(NodeID{"east", "east-9"})
	table.SetPeer("west", true)
	ours := node("east", 1)
	table.SetNode(ours.NodeID, ours.Addr, true)
	table.SetHealth(NodeID{"west", ours.Node}, health(dead))
	if _, said := table.Changes()[ours.NodeID]; said {
		t.Error("a peer changed how our node stands")
	}
	for _, r := range table.Rows() {
		if r.NodeID == ours.NodeID && !r.Chosen {
			t.Error("a peer withdrew our node")
		}
	}
}

// Changes always lead from what was said before to what Rows say; this node
// itself and nodes whose path is up are never in them.
func TestTableProperties(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		self := node("east", 0).NodeID
		table, said := NewTable(self), map[NodeID]string{}
		paths := map[NodeID]Path{}
		for range 300 {
			id := node([]string{"east", "west", "north"}[r.IntN(3)], r.IntN(5))
			switch r.IntN(7) {
			case 0:
				table.SetNode(id.NodeID, id.Addr, r.IntN(2) == 0)
			case 1:
				table.DeleteNode(id.NodeID)
			case 2:
				table.SetHealth(id.NodeID, health(keyspacev1.NodeHealth_State(r.IntN(5))))
			case 3, 4:
				paths[id.NodeID] = Path(r.IntN(4))
				table.SetPath(PathChange{id.NodeID, paths[id.NodeID], time.Time{}})
			case 5:
				table.SetProcess(id.NodeID, Witness(r.IntN(3)))
			case 6:
				table.SetPeer(id.Cluster, r.IntN(2) == 0)
			}
			if r.IntN(3) > 0 {
				continue
			}
			for n, why := range table.Changes() {
				if said[n] == why {
					t.Fatalf("seed %d: %s changed to what it was", seed, n)
				}
				if said[n] = why; why == "" {
					delete(said, n)
				}
			}
			rows := map[NodeID]string{}
			for _, row := range table.Rows() {
				if !row.Chosen {
					rows[row.NodeID] = row.Why
				}
				if paths[row.NodeID] == PathUp && !row.Chosen {
					t.Fatalf("seed %d: %s answers and is not chosen", seed, row.NodeID)
				}
			}
			if said[self] != "" || !maps.Equal(said, rows) {
				t.Fatalf("seed %d: told %v, rows %v", seed, said, rows)
			}
		}
	}
}
