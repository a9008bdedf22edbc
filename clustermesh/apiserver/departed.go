// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	// minDepartedAfter is for labs: presence itself lasts a minute.
	minDepartedAfter = time.Second
	// departedWindow and departedShare bound it: in any window, one of so many
	// nodes.
	departedWindow = 5 * time.Minute
	departedShare  = 5
	sweepEvery     = 10 * time.Second
	// looksWithin is how often at least is looked within the time that a node has
	// until it has departed.
	looksWithin = 3
)

// grace is since when things have been lost without a break. What a former
// leader saw does not count: a new one waits anew.
type grace struct{ since map[string]time.Time }

// due takes what is lost now, and returns what has been for so long, sorted.
func (g *grace) due(now time.Time, lost []string, after time.Duration) []string {
	since := make(map[string]time.Time, len(lost))
	var out []string
	for _, name := range lost {
		at, known := g.since[name]
		if !known {
			at = now
		}
		if since[name] = at; now.Sub(at) >= after {
			out = append(out, name)
		}
	}
	g.since = since
	slices.Sort(out)
	return out
}

// with is how many were lost together with what is due, within a window: those
// that are due, and those that will be. A node's lease ends up to twenty seconds
// before that of another which fell silent with it.
func (g *grace) with(due []string) (n int) {
	if len(due) == 0 {
		return 0
	}
	var last time.Time
	for _, name := range due {
		if at := g.since[name]; at.After(last) {
			last = at
		}
	}
	for _, at := range g.since {
		if at.Sub(last) < departedWindow {
			n++
		}
	}
	return n
}

// held are the departed nodes whose keys stay, for status.
type held struct {
	mu    sync.Mutex
	nodes []string
}

func (h *held) set(nodes []string) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !slices.Equal(h.nodes, nodes)
	h.nodes = nodes
	return changed
}

func (h *held) problems(after time.Duration) (out []*hawserv1.Problem) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.nodes) == 0 {
		return nil
	}
	return []*hawserv1.Problem{{
		Object:  "nodes " + strings.Join(h.nodes, ", "),
		Problem: fmt.Sprintf("neither presence, gossip nor path probes have shown them for %s; their keys stay, because more than 20 %% of the cluster's nodes were lost within %s", after, departedWindow),
		Fix:     "if one will not come back: hawser node forget NODE --yes",
	}}
}

// undertaker removes the keys of nodes that have departed.
type undertaker struct {
	s       *Server
	fence   []kvstore.Cmp
	now     func() time.Time
	sees    func() func(node string) bool // what is known at one moment
	lost    grace
	removed []time.Time // within the window
}

// step looks at all nodes once. It removes all that are due, or none when too many
// were lost at once: then it is more likely that we do not see them.
func (u *undertaker) step(ctx context.Context) error {
	nodes, err := list[*keyspacev1.Node](ctx, u.s, kvstore.State, u.s.cfg.Cluster, kvstore.KindNode)
	if err != nil {
		return err
	}
	sees, byName := u.sees(), map[string]stored[*keyspacev1.Node]{}
	var lost []string
	for _, n := range nodes {
		if byName[n.msg.GetName()] = n; !sees(n.msg.GetName()) {
			lost = append(lost, n.msg.GetName())
		}
	}
	now := u.now()
	due := u.lost.due(now, lost, u.s.cfg.departedAfter())
	u.removed = slices.DeleteFunc(u.removed, func(t time.Time) bool { return now.Sub(t) >= departedWindow })
	if u.lost.with(due)+len(u.removed) > (len(nodes)+len(u.removed))/departedShare {
		if u.s.held.set(due) && len(due) > 0 {
			u.s.log.Warn("departed nodes keep their keys: too many at once", "nodes", due, "of", len(nodes))
		}
		return nil
	}
	u.s.held.set(nil)
	for _, name := range due {
		if err := u.remove(ctx, byName[name]); err != nil {
			return fmt.Errorf("remove the keys of departed node %s: %w", name, err)
		}
		u.removed = append(u.removed, now)
	}
	return nil
}

// remove deletes what a node published, its node record last, unless it shows up
// meanwhile. What the cluster decided for it and its enrolment stay: it may come
// back.
func (u *undertaker) remove(ctx context.Context, n stored[*keyspacev1.Node]) error {
	name := n.msg.GetName()
	keys, err := u.s.keysOf(ctx, name)
	if err != nil {
		return err
	}
	config := u.s.nodeConfigKey(name).String()
	keys = slices.DeleteFunc(keys, func(k string) bool { return k == config })
	presence := kvstore.NewKey(kvstore.Local, u.s.cfg.Cluster, kvstore.KindPresence, name).String()
	cmps := append(slices.Clone(u.fence), kvstore.Absent(presence), kvstore.AtRevision(n.kv.Key, n.kv.ModRevision))
	for chunk := range slices.Chunk(keys, kvstore.MaxTxnOps) {
		ops := make([]kvstore.Op, len(chunk))
		for i, k := range chunk {
			ops[i] = kvstore.Delete(k)
		}
		r, err := u.s.kv.Txn(ctx, cmps, ops, nil)
		if err != nil {
			return err
		}
		if !r.Succeeded {
			u.s.log.Info("departed node came back", "node", name)
			return nil
		}
	}
	u.s.log.Info("departed node's keys removed", "node", name, "keys", len(keys))
	return nil
}
