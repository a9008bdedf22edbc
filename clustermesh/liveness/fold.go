// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"cmp"
	"slices"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// FolderConfig are the times of Folder. Zero values mean the default in
// brackets.
type FolderConfig struct {
	Settle time.Duration // how long an agent is down before that is shown [1 s]
	Grace  time.Duration // how long gossip may take to find a node [15 s]
	Window time.Duration // of the guard against a cluster that dies at once [5 s]
	Step   time.Duration // longest pause between two steps that counts [500 ms]
}

func (c FolderConfig) withDefaults() FolderConfig {
	c.Settle = cmp.Or(c.Settle, time.Second)
	c.Grace = cmp.Or(c.Grace, 15*time.Second)
	c.Window = cmp.Or(c.Window, 5*time.Second)
	c.Step = cmp.Or(c.Step, 500*time.Millisecond)
	return c
}

// Observation is all that a cluster's API server sees of its nodes.
type Observation struct {
	// Process is what gossip says of each node that takes part; of one that it
	// has not met it is Unknown.
	Process map[string]Witness
	// Present are the nodes that hold their presence lease, up to a minute old.
	Present map[string]bool
	// Reports are what nodes say of the paths to others of the cluster: by
	// prober, then by target, whether it is up.
	Reports map[string]map[string]bool
}

// Health is the verdict on a node.
type Health struct {
	State     keyspacev1.NodeHealth_State
	Process   Witness
	Path      Witness
	Witnesses []string // probers that count in Path, sorted
}

// Folder makes one verdict of the witnesses on each node of a cluster. It is for
// one goroutine.
type Folder struct {
	cfg   FolderConfig
	clock clock
	nodes map[string]*folded
}

type folded struct {
	met     bool // by gossip, ever
	first   time.Duration
	down    time.Duration // process down since; valid while isDown
	isDown  bool
	both    time.Duration // neither answers since; valid while neither
	neither bool
	last    Health
}

// NewFolder makes a Folder that has seen nothing.
func NewFolder(cfg FolderConfig) *Folder {
	cfg = cfg.withDefaults()
	return &Folder{cfg: cfg, clock: clock{step: cfg.Step}, nodes: map[string]*folded{}}
}

// Assume says what an earlier Folder found; until gossip has met the node, it
// stays.
func (f *Folder) Assume(node string, h Health) { f.nodes[node] = &folded{last: h, first: f.clock.now} }

// Step takes what is seen and returns the verdict on every node. One with state
// UNKNOWN is none yet.
func (f *Folder) Step(at time.Time, o Observation) map[string]Health {
	f.clock.tick(at)
	for name := range f.nodes {
		if _, ok := o.Process[name]; !ok {
			delete(f.nodes, name)
		}
	}
	now := make(map[string]Health, len(o.Process))
	for name := range o.Process {
		n := f.nodes[name]
		if n == nil {
			n = &folded{first: f.clock.now}
			f.nodes[name] = n
		}
		h := Health{Process: f.process(n, o.Process[name])}
		h.Path, h.Witnesses = path(name, o)
		f.note(n, h)
		h.State = f.state(n, h)
		now[name] = h
	}
	for name := range f.crowd(now, o) {
		h := now[name]
		h.State = keyspacev1.NodeHealth_STATE_SUSPECT
		now[name] = h
	}
	for name, h := range now {
		f.nodes[name].last = h
	}
	return now
}

// process is gossip's witness; a node that gossip does not meet within the grace
// is down.
func (f *Folder) process(n *folded, w Witness) Witness {
	if w != Unknown {
		n.met = true
		return w
	}
	if n.met || f.clock.now-n.first >= f.cfg.Grace {
		return Down
	}
	return Unknown
}

// path is what those probers say whose own agent is up: one that reaches the
// node is enough.
func path(name string, o Observation) (w Witness, by []string) {
	for prober, said := range o.Reports {
		up, probes := said[name]
		if !probes || prober == name || o.Process[prober] != Up {
			continue
		}
		if by = append(by, prober); up {
			w = Up
		} else if w != Up {
			w = Down
		}
	}
	slices.Sort(by)
	return w, by
}

// note keeps since when the witnesses are silent.
func (f *Folder) note(n *folded, h Health) {
	if down := h.Process == Down; down != n.isDown {
		n.isDown, n.down = down, f.clock.now
	}
	if neither := h.Process == Down && h.Path == Down; neither != n.neither {
		n.neither, n.both = neither, f.clock.now
	}
}

func (f *Folder) state(n *folded, h Health) keyspacev1.NodeHealth_State {
	switch {
	case h.Process == Unknown:
		return n.last.State // too early to tell
	case h.Process == Up && h.Path == Down:
		return keyspacev1.NodeHealth_STATE_SUSPECT // nobody withdraws for it
	case h.Process == Up:
		return keyspacev1.NodeHealth_STATE_ALIVE
	case h.Path == Down:
		return keyspacev1.NodeHealth_STATE_DEAD
	case f.clock.now-n.down < f.cfg.Settle:
		return n.last.State
	case h.Path == Up:
		return keyspacev1.NodeHealth_STATE_AGENT_DOWN
	}
	return keyspacev1.NodeHealth_STATE_SUSPECT // nobody looks at its path
}

// crowd are the nodes that are not believed to be dead: more than half of the
// cluster's would be within the window, and somebody who is present still
// reaches one of them, though gossip does not hear him.
func (f *Folder) crowd(now map[string]Health, o Observation) map[string]bool {
	type dead struct {
		name  string
		since time.Duration
	}
	var all []dead
	for name, h := range now {
		if h.State == keyspacev1.NodeHealth_STATE_DEAD {
			all = append(all, dead{name, f.nodes[name].both})
		}
	}
	slices.SortFunc(all, func(a, b dead) int { return cmp.Compare(a.since, b.since) })
	out := map[string]bool{}
	for i, first := range all {
		end := i
		for end < len(all) && all[end].since-first.since <= f.cfg.Window {
			end++
		}
		if 2*(end-i) <= len(now) {
			continue
		}
		for _, d := range all[i:end] {
			out[d.name] = true
		}
	}
	for prober, said := range o.Reports {
		for name := range out {
			if o.Present[prober] && prober != name && said[name] {
				return out
			}
		}
	}
	return nil
}
