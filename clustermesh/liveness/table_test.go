// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"fmt"
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

// world is a cluster as its Folder sees it.
type world struct {
	f   *Folder
	now time.Time
	o   Observation
}

func newFoldWorld(n int) *world {
	w := &world{f: NewFolder(FolderConfig{}), now: time.Unix(1000, 0), o: Observation{
		Process: map[string]Witness{}, Present: map[string]bool{}, Reports: map[string]map[string]bool{},
	}}
	for i := range n {
		name := fmt.Sprint(i)
		w.o.Process[name], w.o.Present[name], w.o.Reports[name] = Up, true, map[string]bool{}
		for j := range n {
			if i != j {
				w.o.Reports[name][fmt.Sprint(j)] = true
			}
		}
	}
	return w
}

func (w *world) run(d time.Duration) (h map[string]Health) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(100 * time.Millisecond)
		h = w.f.Step(w.now, w.o)
	}
	return h
}

// off powers nodes off: their reports stay as they were.
func (w *world) off(names ...string) {
	gone := map[string]bool{}
	for _, n := range names {
		gone[n] = true
		w.o.Process[n] = Down
	}
	for prober, said := range w.o.Reports {
		for n := range said {
			if gone[n] && !gone[prober] {
				said[n] = false
			}
		}
	}
}

func TestFold(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*world)
		want map[string]keyspacev1.NodeHealth_State
	}{
		"all is well":  {func(*world) {}, map[string]keyspacev1.NodeHealth_State{"0": alive, "3": alive}},
		"agent killed": {func(w *world) { w.o.Process["0"] = Down }, map[string]keyspacev1.NodeHealth_State{"0": agentDown, "1": alive}},
		"powered off":  {func(w *world) { w.off("0") }, map[string]keyspacev1.NodeHealth_State{"0": dead, "1": alive}},
		"its datapath alone": {func(w *world) {
			for _, said := range w.o.Reports {
				delete(said, "0")
			}
			w.o.Reports["1"]["0"] = false
		}, map[string]keyspacev1.NodeHealth_State{"0": suspect, "1": alive}},
		"one prober alone reaches it": {func(w *world) {
			w.off("0")
			w.o.Reports["2"]["0"] = true
		}, map[string]keyspacev1.NodeHealth_State{"0": agentDown}},
		"only the dead reach it": {func(w *world) { w.off("0", "1") },
			map[string]keyspacev1.NodeHealth_State{"0": dead, "1": dead, "2": alive}},
		"nobody looks at it": {func(w *world) {
			w.o.Process["0"] = Down
			for _, said := range w.o.Reports {
				delete(said, "0")
			}
		}, map[string]keyspacev1.NodeHealth_State{"0": suspect}},
		"three of four at once, and they hear each other": {func(w *world) { w.off("0", "1", "2") },
			map[string]keyspacev1.NodeHealth_State{"0": suspect, "1": suspect, "2": suspect, "3": alive}},
		"three of four at once, and nobody is there": {func(w *world) {
			w.off("0", "1", "2")
			w.o.Present = map[string]bool{"3": true}
		}, map[string]keyspacev1.NodeHealth_State{"0": dead, "1": dead, "2": dead, "3": alive}},
		"gossip lost all": {func(w *world) {
			for n := range w.o.Process {
				w.o.Process[n] = Down
			}
		}, map[string]keyspacev1.NodeHealth_State{"0": suspect, "3": suspect}},
	} {
		w := newFoldWorld(4)
		w.run(time.Second)
		c.do(w)
		got := w.run(3 * time.Second)
		for n, want := range c.want {
			if got[n].State != want {
				t.Errorf("%s: node %s is %s (process %s, path %s by %v), want %s", name, n, got[n].State, got[n].Process, got[n].Path, got[n].Witnesses, want)
			}
		}
	}
}

// One after the other may die, also most of them.
func TestSlowDeathIsBelieved(t *testing.T) {
	w := newFoldWorld(4)
	for _, n := range []string{"0", "1", "2"} {
		w.off(n)
		w.run(10 * time.Second)
	}
	if got := w.run(time.Second); got["0"].State != dead || got["2"].State != dead {
		t.Errorf("%v", got)
	}
}

// A new API server keeps what the last one found until gossip has met the node
// or had time to.
func TestFoldAfterRestart(t *testing.T) {
	w := newFoldWorld(4)
	for n := range w.o.Process {
		w.o.Process[n] = Unknown
	}
	w.f.Assume("0", Health{State: dead})
	w.f.Assume("1", Health{State: alive})
	got := w.run(5 * time.Second)
	if got["0"].State != dead || got["1"].State != alive || got["2"].State != unknown {
		t.Errorf("after the start: %v", got)
	}
	w.o.Process["0"], w.o.Process["1"] = Up, Up
	got = w.run(time.Second)
	if got["0"].State != alive || got["1"].State != alive {
		t.Errorf("gossip met them: %v", got)
	}
	if got = w.run(20 * time.Second); got["2"].State != agentDown {
		t.Errorf("gossip never met it, others reach it: %v", got["2"])
	}
}

// An agent that restarts quickly is not even shown.
func TestQuickRestartIsNotShown(t *testing.T) {
	w := newFoldWorld(4)
	w.run(time.Second)
	w.o.Process["0"] = Down
	for range 8 {
		if got := w.run(100 * time.Millisecond); got["0"].State != alive {
			t.Fatalf("%v", got["0"])
		}
	}
	w.o.Process["0"] = Up
	if got := w.run(time.Second); got["0"].State != alive {
		t.Errorf("%v", got["0"])
	}
}
