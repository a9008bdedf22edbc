// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"cmp"
	"maps"
	"slices"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// FolderConfig are the times of Folder. Zero values mean the default in
// brackets.
type FolderConfig struct {
	Settle time.Duration // how long an agent is down before that is shown [1 s]
	Grace  time.Duration // how long gossip may take to find a node [15 s]
	Window time.Duration // within which most nodes die in a crowd [5 s]
	Doubt  time.Duration // how long a crowd has to object to its death [2 s]
	// Trust is how long a denial holds that gossip does not confirm; each further
	// one holds twice as long, up to MaxTrust. [5 s, 1 min]
	Trust, MaxTrust time.Duration
	Step            time.Duration // longest pause between two steps that counts [500 ms]
}

func (c FolderConfig) withDefaults() FolderConfig {
	c.Settle = cmp.Or(c.Settle, time.Second)
	c.Grace = cmp.Or(c.Grace, 15*time.Second)
	c.Window = cmp.Or(c.Window, 5*time.Second)
	c.Doubt = cmp.Or(c.Doubt, 2*time.Second)
	c.Trust = cmp.Or(c.Trust, 5*time.Second)
	c.MaxTrust = cmp.Or(c.MaxTrust, time.Minute)
	c.Step = cmp.Or(c.Step, 500*time.Millisecond)
	return c
}

// Health is the verdict on a node.
type Health struct {
	State     keyspacev1.NodeHealth_State
	Process   Witness
	Path      Witness
	Witnesses []string // probers that count in Path, sorted
}

// Same reports whether two verdicts say the same; by whom does not matter.
func (h Health) Same(o Health) bool {
	return h.State == o.State && h.Process == o.Process && h.Path == o.Path
}

// Folder makes one verdict of the witnesses on each node of a cluster. It is told
// what changes and looks only at that, and at nodes whose verdict hangs on time.
// It is for one goroutine.
type Folder struct {
	cfg   FolderConfig
	clock clock
	nodes map[string]*folded
	// said is what probers say of paths, by is the same by target.
	said, by map[string]map[string]bool
	dirty    map[string]bool // to be judged anew
	waiting  map[string]bool // to be judged with time
}

type folded struct {
	gossip  Witness
	met     bool          // by gossip, ever
	present bool          // holds its presence lease, up to a minute old
	refuted bool          // it wrote that it lives, after gossip had lost it
	trusted time.Duration // until then, if refuted
	trust   time.Duration // for how long, the last time; 0: it denied nothing yet
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
	return &Folder{
		cfg: cfg, clock: clock{step: cfg.Step}, nodes: map[string]*folded{},
		said: map[string]map[string]bool{}, by: map[string]map[string]bool{},
		dirty: map[string]bool{}, waiting: map[string]bool{},
	}
}

func (f *Folder) node(name string) *folded {
	n := f.nodes[name]
	if n == nil {
		n = &folded{first: f.clock.now}
		f.nodes[name], f.dirty[name] = n, true
	}
	return n
}

// Assume says what an earlier Folder found; until gossip has met the node, it
// stays.
func (f *Folder) Assume(name string, h Health) { f.node(name).last = h }

// SetProcess takes what gossip says of a node that takes part; of one that it has
// not met that is Unknown.
func (f *Folder) SetProcess(name string, w Witness) {
	n := f.node(name)
	if w == n.gossip {
		return
	}
	n.gossip, n.met = w, n.met || w != Unknown
	if w == Up {
		n.refuted, n.trust = false, 0
	}
	f.touch(name)
}

// SetPresent says whether a node holds its presence lease.
func (f *Folder) SetPresent(name string, present bool) {
	if n := f.nodes[name]; n != nil && n.present != present {
		n.present = present
		n.refuted = n.refuted && present
		f.touch(name)
	}
}

// Refute says that a node wrote that it lives after it was found to be down. It is
// up for a while, as long as it is present; then it must deny it again, if gossip
// has not heard it meanwhile.
func (f *Folder) Refute(name string) {
	if n := f.nodes[name]; n != nil && n.gossip != Up && n.present && !n.refuted {
		n.refuted, n.trust = true, min(max(f.cfg.Trust, 2*n.trust), f.cfg.MaxTrust)
		n.trusted = f.clock.now + n.trust
		f.touch(name)
	}
}

// Forget drops a node. What it says of others stays, and does not count.
func (f *Folder) Forget(name string) {
	if f.nodes[name] != nil {
		f.touch(name)
		delete(f.nodes, name)
		delete(f.dirty, name)
		delete(f.waiting, name)
	}
}

// Knows reports whether a node is one that is judged.
func (f *Folder) Knows(name string) bool { return f.nodes[name] != nil }

// SetReport takes what a node says of the paths to others of the cluster, by
// target: whether it is up. nil: nothing any more. The map is the Folder's from
// then on.
func (f *Folder) SetReport(prober string, said map[string]bool) {
	old := f.said[prober]
	for target, up := range old {
		if now, ok := said[target]; ok && now == up {
			continue
		}
		f.dirty[target] = true
		if delete(f.by[target], prober); len(f.by[target]) == 0 {
			delete(f.by, target)
		}
	}
	for target, up := range said {
		if was, ok := old[target]; ok && was == up {
			continue
		}
		f.dirty[target] = true
		if f.by[target] == nil {
			f.by[target] = map[string]bool{}
		}
		f.by[target][prober] = up
	}
	if f.said[prober] = said; len(said) == 0 {
		delete(f.said, prober)
	}
}

// touch has a node judged anew, and those of which it says something: whether
// its word counts may have changed.
func (f *Folder) touch(name string) {
	f.dirty[name] = true
	for target := range f.said[name] {
		f.dirty[target] = true
	}
}

// Step returns the verdicts that say something else than before. One with state
// UNKNOWN is none yet.
func (f *Folder) Step(at time.Time) map[string]Health {
	f.clock.tick(at)
	for name := range f.waiting {
		if n := f.nodes[name]; n != nil && n.refuted && f.clock.now >= n.trusted {
			n.refuted = false
			f.touch(name)
		}
	}
	look := make(map[string]Health, len(f.dirty)+len(f.waiting))
	for name := range f.dirty {
		look[name] = Health{}
	}
	for name := range f.waiting {
		look[name] = Health{}
	}
	clear(f.dirty)
	clear(f.waiting)
	var died []string
	for name := range look {
		n := f.nodes[name]
		if n == nil { // reported on, and not one that is judged
			delete(look, name)
			continue
		}
		h := Health{Process: f.process(n)}
		h.Path, h.Witnesses = f.path(name)
		f.note(n, h)
		h.State = f.state(n, h)
		look[name] = h
		if h.State == keyspacev1.NodeHealth_STATE_DEAD && n.last.State != h.State {
			died = append(died, name)
		}
		if h.Process == Unknown || n.refuted || n.isDown && f.clock.now-n.down < max(f.cfg.Settle, f.cfg.Doubt) {
			f.waiting[name] = true
		}
	}
	for _, name := range f.crowd(died) {
		h := look[name]
		h.State = keyspacev1.NodeHealth_STATE_SUSPECT
		look[name], f.waiting[name] = h, true
	}
	maps.DeleteFunc(look, func(name string, h Health) bool {
		was := f.nodes[name].last
		f.nodes[name].last = h
		return h.Same(was)
	})
	return look
}

// process is whether a node's agent runs: gossip hears it, or etcd did since. One
// that gossip does not meet within the grace is down.
func (f *Folder) process(n *folded) Witness {
	switch {
	case n.gossip == Up || n.refuted:
		return Up
	case n.gossip == Down, n.met, f.clock.now-n.first >= f.cfg.Grace:
		return Down
	}
	return Unknown
}

// path is what those probers say whose own agent is up: one that reaches the
// node is enough. What others last said, before they fell silent, is worth
// nothing.
func (f *Folder) path(name string) (w Witness, by []string) {
	for prober, up := range f.by[name] {
		p := f.nodes[prober]
		if prober == name || p == nil || f.process(p) != Up {
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
	case h.Path == Down && n.trust > 0 && f.clock.now-n.down < f.cfg.Doubt:
		return n.last.State // it lived the last time: it may deny it again
	case h.Path == Down:
		return keyspacev1.NodeHealth_STATE_DEAD
	case f.clock.now-n.down < f.cfg.Settle:
		return n.last.State
	case h.Path == Up:
		return keyspacev1.NodeHealth_STATE_AGENT_DOWN
	}
	return keyspacev1.NodeHealth_STATE_SUSPECT // nobody looks at its path
}

// crowd are those of the nodes that died just now with whom more than half of the
// cluster's nodes died within the window: they are held back, as suspects, as
// long as they may still object (Refute). Who lives writes that at once.
func (f *Folder) crowd(died []string) (out []string) {
	if len(died) == 0 {
		return nil
	}
	var since []time.Duration
	for _, n := range f.nodes {
		if n.neither {
			since = append(since, n.both)
		}
	}
	slices.Sort(since)
	for _, name := range died {
		if n := f.nodes[name]; f.clock.now-n.both < f.cfg.Doubt && 2*f.most(since, n.both) > len(f.nodes) {
			out = append(out, name)
		}
	}
	return out
}

// most is how many of the sorted times lie within one window with t.
func (f *Folder) most(since []time.Duration, t time.Duration) (most int) {
	first, _ := slices.BinarySearch(since, t-f.cfg.Window)
	for i := first; i < len(since) && since[i] <= t; i++ {
		end, _ := slices.BinarySearch(since, since[i]+f.cfg.Window+1)
		most = max(most, end-i)
	}
	return most
}
