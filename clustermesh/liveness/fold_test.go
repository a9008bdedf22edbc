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

// foldWorld is a cluster as its Folder is told of it.
type foldWorld struct {
	f       *Folder
	now     time.Time
	process map[string]Witness
	present map[string]bool
	reports map[string]map[string]bool
	health  map[string]Health
}

func newFoldWorld(n int) *foldWorld {
	w := &foldWorld{
		f: NewFolder(FolderConfig{}), now: time.Unix(1000, 0), health: map[string]Health{},
		process: map[string]Witness{}, present: map[string]bool{}, reports: map[string]map[string]bool{},
	}
	for i := range n {
		name := fmt.Sprint(i)
		w.process[name], w.present[name], w.reports[name] = Up, true, map[string]bool{}
		for j := range n {
			if i != j {
				w.reports[name][fmt.Sprint(j)] = true
			}
		}
	}
	return w
}

// run steps every 100 ms for so long, and returns all verdicts.
func (w *foldWorld) run(d time.Duration) map[string]Health {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(100 * time.Millisecond)
		for name, p := range w.process {
			w.f.SetProcess(name, p)
			w.f.SetPresent(name, w.present[name])
		}
		for prober, said := range w.reports {
			w.f.SetReport(prober, maps.Clone(said))
		}
		maps.Copy(w.health, w.f.Step(w.now))
	}
	return w.health
}

// off powers nodes off: what they said and their leases stay as they were.
func (w *foldWorld) off(names ...string) {
	gone := map[string]bool{}
	for _, n := range names {
		gone[n] = true
		w.process[n] = Down
	}
	for prober, said := range w.reports {
		for n := range said {
			if gone[n] && !gone[prober] {
				said[n] = false
			}
		}
	}
}

func TestFold(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*foldWorld)
		want map[string]keyspacev1.NodeHealth_State
	}{
		"all is well":  {func(*foldWorld) {}, map[string]keyspacev1.NodeHealth_State{"0": alive, "3": alive}},
		"agent killed": {func(w *foldWorld) { w.process["0"] = Down }, map[string]keyspacev1.NodeHealth_State{"0": agentDown, "1": alive}},
		"powered off":  {func(w *foldWorld) { w.off("0") }, map[string]keyspacev1.NodeHealth_State{"0": dead, "1": alive}},
		"its datapath alone": {func(w *foldWorld) {
			for _, said := range w.reports {
				delete(said, "0")
			}
			w.reports["1"]["0"] = false
		}, map[string]keyspacev1.NodeHealth_State{"0": suspect, "1": alive}},
		"one prober alone reaches it": {func(w *foldWorld) {
			w.off("0")
			w.reports["2"]["0"] = true
		}, map[string]keyspacev1.NodeHealth_State{"0": agentDown}},
		"only the dead reach it": {func(w *foldWorld) { w.off("0", "1") },
			map[string]keyspacev1.NodeHealth_State{"0": dead, "1": dead, "2": alive}},
		"nobody looks at it": {func(w *foldWorld) {
			w.process["0"] = Down
			for _, said := range w.reports {
				delete(said, "0")
			}
		}, map[string]keyspacev1.NodeHealth_State{"0": suspect}},
		"three of four at once, each of whom said that it reaches the others": {func(w *foldWorld) { w.off("0", "1", "2") },
			map[string]keyspacev1.NodeHealth_State{"0": dead, "1": dead, "2": dead, "3": alive}},
		"gossip lost all, or all died: nobody is left to look": {func(w *foldWorld) { w.off("0", "1", "2", "3") },
			map[string]keyspacev1.NodeHealth_State{"0": suspect, "3": suspect}},
		"a node that forgot its reports": {func(w *foldWorld) { w.off("0"); w.f.SetReport("1", nil); delete(w.reports, "1") },
			map[string]keyspacev1.NodeHealth_State{"0": dead, "1": alive}},
	} {
		w := newFoldWorld(4)
		w.run(time.Second)
		c.do(w)
		got := w.run(4 * time.Second)
		for n, want := range c.want {
			if got[n].State != want {
				t.Errorf("%s: node %s is %s (process %s, path %s by %v), want %s", name, n, got[n].State, got[n].Process, got[n].Path, got[n].Witnesses, want)
			}
		}
	}
}

// Most of a cluster's nodes vanish. Those that died are dead within the doubt, no
// sooner; those that live, and only gossip and the survivors' tunnels have lost,
// object and are never called dead.
func TestCrowd(t *testing.T) {
	for _, objecting := range []int{0, 1, 3} {
		w := newFoldWorld(5)
		w.run(time.Second)
		w.off("0", "1", "2")
		if got := w.run(time.Second); got["0"].State != suspect || got["2"].State != suspect || got["3"].State != alive {
			t.Errorf("after a second: %v", got)
		}
		for i := range objecting {
			w.f.Refute(fmt.Sprint(i))
		}
		got := w.run(2 * time.Second)
		for i := range 3 {
			want := dead
			if objecting > 0 { // its word counts, and it reaches the others
				want = agentDown
			}
			if i < objecting { // nor does it matter whom it reaches: it was heard
				want = map[bool]keyspacev1.NodeHealth_State{false: suspect, true: alive}[objecting > 1]
			}
			if got[fmt.Sprint(i)].State != want {
				t.Errorf("%d objected: node %d is %v, want %s", objecting, i, got[fmt.Sprint(i)], want)
			}
		}
		// One that dies after it has objected is present for a minute more.
		for i := range 3 {
			w.present[fmt.Sprint(i)] = false
		}
		if got := w.run(3 * time.Second); got["0"].State != dead || got["2"].State != dead || got["4"].State != alive {
			t.Errorf("%d objected, and are present no more: %v", objecting, got)
		}
	}
}

// An objection holds until gossip has heard the node; after that it must object
// anew.
func TestObjectionEnds(t *testing.T) {
	w := newFoldWorld(4)
	w.run(time.Second)
	w.off("0")
	w.run(time.Second)
	w.f.Refute("0")
	if got := w.run(time.Second); got["0"].State != suspect || got["0"].Process != Up {
		t.Fatalf("it objected: %v", got["0"])
	}
	w.process["0"] = Up
	w.run(time.Second)
	w.process["0"] = Down
	if got := w.run(2 * time.Second); got["0"].State != dead {
		t.Errorf("lost again: %v", got["0"])
	}
	// A denial that gossip does not confirm must be repeated.
	w.f.Refute("0")
	if got := w.run(4 * time.Second); got["0"].State != suspect || got["0"].Process != Up {
		t.Errorf("it denied it 4 s ago: %v", got["0"])
	}
	if got := w.run(2 * time.Second); got["0"].State != suspect || got["0"].Process != Down {
		t.Errorf("it denied it 6 s ago, and may do so again: %v", got["0"])
	}
	w.f.Refute("0")
	if got := w.run(9 * time.Second); got["0"].State != suspect || got["0"].Process != Up {
		t.Errorf("it denied it again 9 s ago: %v", got["0"])
	}
	if got := w.run(4 * time.Second); got["0"].State != dead {
		t.Errorf("it denies nothing any more: %v", got["0"])
	}
	w.f.Refute("nobody")
	w.f.Forget("0")
	if w.f.Knows("0") || len(w.f.Step(w.now.Add(time.Second))) != 0 {
		t.Error("a forgotten node is judged")
	}
}

// Verdicts are told when they change, whoever the witnesses are.
func TestOnlyChangesAreTold(t *testing.T) {
	w := newFoldWorld(4)
	w.run(time.Second)
	delete(w.reports["1"], "0")
	w.now = w.now.Add(time.Second)
	w.f.SetReport("1", w.reports["1"])
	if got := w.f.Step(w.now); len(got) != 0 {
		t.Errorf("another witness: %v", got)
	}
	w.process["0"] = Down
	w.f.SetProcess("0", Down)
	if got := w.f.Step(w.now); len(got) != 1 || got["0"].Process != Down || got["0"].State != alive {
		t.Errorf("its agent is down: %v", got)
	}
}

// One after the other may die, also most of them.
func TestSlowDeathIsBelieved(t *testing.T) {
	w := newFoldWorld(4)
	for _, n := range []string{"0", "1", "2"} {
		w.off(n)
		if got := w.run(1500 * time.Millisecond); got[n].State != dead {
			t.Errorf("node %s: %v", n, got[n])
		}
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
	for n := range w.process {
		w.process[n] = Unknown
	}
	w.health["0"], w.health["1"] = Health{State: dead}, Health{State: alive}
	w.f.Assume("0", w.health["0"])
	w.f.Assume("1", w.health["1"])
	got := w.run(5 * time.Second)
	if got["0"].State != dead || got["1"].State != alive || got["2"].State != unknown {
		t.Errorf("after the start: %v", got)
	}
	w.process["0"], w.process["1"] = Up, Up
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
	w.process["0"] = Down
	for range 8 {
		if got := w.run(100 * time.Millisecond); got["0"].State != alive {
			t.Fatalf("%v", got["0"])
		}
	}
	w.process["0"] = Up
	if got := w.run(time.Second); got["0"].State != alive {
		t.Errorf("%v", got["0"])
	}
}

// mesh is a cluster as it really is: what a Folder is told follows from it, as
// late as in life.
type mesh struct {
	*foldWorld
	r        *rand.Rand
	dead     map[string]bool
	deafened map[string]bool // gossip does not hear it, though it runs
	island   map[string]int  // tunnels work within an island only
	since    map[string]time.Time
}

func newMesh(seed uint64, n int) *mesh {
	m := &mesh{
		foldWorld: newFoldWorld(n), r: rand.New(rand.NewPCG(seed, 3)), dead: map[string]bool{}, deafened: map[string]bool{},
		island: map[string]int{}, since: map[string]time.Time{},
	}
	for name := range m.process {
		m.since[name] = m.now
	}
	return m
}

// reached reports whether a living node that its API server hears, by gossip or
// by etcd, reaches a node.
func (m *mesh) reached(name string) bool {
	for prober, said := range m.reports {
		if _, probes := said[name]; probes && prober != name && !m.dead[prober] && m.island[prober] == m.island[name] {
			return true
		}
	}
	return false
}

func (m *mesh) looked(name string) bool {
	for prober, said := range m.reports {
		if _, probes := said[name]; probes && prober != name && !m.dead[prober] {
			return true
		}
	}
	return false
}

// live passes 100 ms: gossip and probes find out what is, one now, one later; who
// reads that it is down and is not says so.
func (m *mesh) live() {
	for name := range m.process {
		const late = 4 // on average
		if m.r.IntN(late) == 0 {
			m.process[name] = Up
			if m.dead[name] || m.deafened[name] {
				m.process[name] = Down
			}
		}
		if m.dead[name] {
			continue
		}
		for target := range m.reports[name] {
			if m.r.IntN(late) == 0 {
				m.reports[name][target] = !m.dead[target] && m.island[name] == m.island[target]
			}
		}
		if m.health[name].Process == Down {
			m.f.Refute(name)
		}
	}
	m.run(100 * time.Millisecond)
}

// Whatever happens: of a cluster most of whose nodes seem to die at once no living
// one is called dead, and who has really died is, soon, if anybody looks.
func TestFolderModel(t *testing.T) {
	const n = 9
	for seed := range uint64(60) {
		m := newMesh(seed, n)
		for range 30 {
			m.live()
		}
		// Some part of the cluster is struck, by one of three faults.
		struck, fault := m.r.Perm(n)[:1+m.r.IntN(n)], m.r.IntN(3)
		for _, i := range struck {
			name := fmt.Sprint(i)
			switch fault {
			case 0:
				m.dead[name] = true
			case 1:
				m.deafened[name], m.island[name] = true, 1 // UDP is cut, etcd is reached
			case 2:
				m.deafened[name] = true
			}
		}
		falsely := 0
		for range 300 {
			m.live()
			for name, h := range m.health {
				if h.State == dead && !m.dead[name] {
					falsely++
				}
			}
		}
		if 2*len(struck) > n && falsely > 0 {
			// Those that were lost before most were may be called dead for the
			// moment until their objection is read; never for longer.
			const moment = n
			if falsely > moment {
				t.Errorf("seed %d, fault %d, %d struck: the living were called dead for %d steps", seed, fault, len(struck), falsely)
			}
		}
		for name, h := range m.health {
			switch {
			case m.dead[name] && m.looked(name) && h.State != dead:
				t.Errorf("seed %d: node %s died, others look, and it is %v", seed, name, h)
			case m.dead[name] && !m.looked(name) && h.State != suspect:
				t.Errorf("seed %d: node %s died, nobody looks, and it is %v", seed, name, h)
			case !m.dead[name] && h.State == dead:
				t.Errorf("seed %d: node %s lives and is %v", seed, name, h)
			case !m.dead[name] && m.reached(name) && h.State != alive:
				t.Errorf("seed %d: node %s lives, is reached, and is %v", seed, name, h)
			}
		}
	}
}

// BenchmarkFolder is a step of a cluster in which each node probes so many others
// and one of them changes its mind.
func BenchmarkFolder(b *testing.B) {
	for _, c := range []struct{ nodes, targets int }{{255, 254}, {1000, MaxTargets}} {
		f, now := NewFolder(FolderConfig{}), time.Unix(1000, 0)
		reports := make([]map[string]bool, c.nodes)
		for i := range c.nodes {
			name := fmt.Sprint(i)
			f.SetProcess(name, Up)
			f.SetPresent(name, true)
			reports[i] = map[string]bool{}
			for j := range c.targets {
				reports[i][fmt.Sprint((i+j+1)%c.nodes)] = true
			}
			f.SetReport(name, maps.Clone(reports[i]))
		}
		f.Step(now)
		step := func() { now = now.Add(100 * time.Millisecond); f.Step(now) }
		name := fmt.Sprintf("%d nodes by %d probers", c.nodes, c.targets)
		b.Run(name+", nothing new", func(b *testing.B) {
			for b.Loop() {
				step()
			}
		})
		b.Run(name+", a path changes", func(b *testing.B) {
			n := 0
			for b.Loop() {
				i := n % c.nodes
				target := fmt.Sprint((i + 1) % c.nodes)
				reports[i][target] = !reports[i][target]
				f.SetReport(fmt.Sprint(i), maps.Clone(reports[i]))
				step()
				n++
			}
		})
		b.Run(name+", half die", func(b *testing.B) {
			for b.Loop() {
				for _, p := range []Witness{Down, Up} {
					for i := range c.nodes / 2 {
						f.SetProcess(fmt.Sprint(i), p)
					}
					step()
				}
			}
		})
	}
}
