// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"slices"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	foldEvery = 100 * time.Millisecond
	// healthOps is how many verdicts are written at a time.
	healthOps = 64
)

var errOfficeLost = errors.New("another API server leads the cluster")

// commitAs writes while the office is held, and returns the revision.
func (s *Server) commitAs(ctx context.Context, t *election.Term, ops ...kvstore.Op) (int64, error) {
	res, err := s.kv.Txn(ctx, t.Fence(), ops, nil)
	if err == nil && !res.Succeeded {
		err = errOfficeLost
	}
	return res.Revision, err
}

// coroner writes the verdict on each node of the cluster, when it changes, during
// one term of office. It is for one goroutine.
type coroner struct {
	w      *watchman
	term   *election.Term
	folder *liveness.Folder
	have   map[string]*keyspacev1.NodeHealth // as stored
	// down are the revisions of the records that say that a node's agent is down,
	// until gossip hears it. A node that knows its record denies it, if it can.
	down     map[string]int64
	nodes    map[string]bool
	taken    map[string]int64 // revisions of the reports that the folder has
	unstored map[string]liveness.Health
}

// keepHealth judges the cluster's nodes while it leads.
func (w *watchman) keepHealth(ctx context.Context, t *election.Term) error {
	c := &coroner{
		w: w, term: t, folder: liveness.NewFolder(liveness.FolderConfig{}), have: map[string]*keyspacev1.NodeHealth{}, down: map[string]int64{},
		nodes: map[string]bool{}, taken: map[string]int64{}, unstored: map[string]liveness.Health{},
	}
	stored, err := list[*keyspacev1.NodeHealth](ctx, w.s, kvstore.State, w.s.cfg.Cluster, kvstore.KindHealth)
	if err != nil {
		return err
	}
	for _, r := range stored {
		c.have[r.msg.GetNode()], c.nodes[r.msg.GetNode()] = r.msg, true
		process := liveness.ParseWitness(r.msg.GetProcess())
		c.folder.Assume(r.msg.GetNode(), liveness.Health{State: r.msg.GetState(), Process: process, Path: liveness.ParseWitness(r.msg.GetPath())})
		if process == liveness.Down {
			c.down[r.msg.GetNode()] = r.kv.ModRevision
		}
	}
	tick := time.NewTicker(foldEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.step(ctx); errors.Is(err, errOfficeLost) {
			return err
		} else if err != nil {
			w.s.log.Warn("write the nodes' health", "error", err)
		}
	}
}

func (c *coroner) step(ctx context.Context) error {
	if !c.feed() {
		return nil
	}
	for name, h := range c.folder.Step(time.Now()) {
		c.unstored[name] = h
	}
	return c.write(ctx)
}

// feed tells the folder what has changed; not ready before there are nodes.
func (c *coroner) feed() (ready bool) {
	heard := c.w.gossip.Members()
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if len(c.w.nodes) == 0 && len(c.taken) == 0 {
		return false
	}
	for name := range c.w.nodes {
		c.nodes[name] = true
		c.folder.SetProcess(name, heard[name])
		c.folder.SetPresent(name, c.w.present[name])
		switch rev := c.down[name]; {
		case heard[name] == liveness.Up:
			delete(c.down, name)
		case rev != 0 && c.w.reports[name].refutes >= rev:
			c.folder.Refute(name)
		}
	}
	for prober, r := range c.w.reports {
		if c.taken[prober] == r.rev {
			continue
		}
		c.taken[prober] = r.rev
		said := map[string]bool{}
		for _, p := range r.paths {
			if p.GetCluster() == c.w.s.cfg.Cluster {
				said[p.GetNode()] = p.GetUp()
			}
		}
		c.folder.SetReport(prober, said)
	}
	for prober := range c.taken {
		if _, there := c.w.reports[prober]; !there {
			delete(c.taken, prober)
			c.folder.SetReport(prober, nil)
		}
	}
	for name := range c.nodes {
		if _, there := c.w.nodes[name]; !there {
			c.folder.Forget(name)
			delete(c.unstored, name)
			delete(c.down, name)
			if delete(c.nodes, name); c.have[name] != nil {
				c.nodes[name] = true // until its record is gone, too
			}
		}
	}
	return true
}

// write stores verdicts, and withdraws those on nodes that are none any more.
// What cannot be written is tried again in the next step.
func (c *coroner) write(ctx context.Context) error {
	var batch []*keyspacev1.NodeHealth
	for name, h := range c.unstored {
		if r := c.record(name, h); r != nil {
			batch = append(batch, r)
		}
	}
	var errs []error
	for part := range slices.Chunk(batch, healthOps) {
		errs = append(errs, c.store(ctx, part))
	}
	own := c.w.s.cfg.Cluster
	for name := range c.have {
		if c.folder.Knows(name) {
			continue
		}
		_, err := c.w.s.commitAs(ctx, c.term, kvstore.Delete(kvstore.NewKey(kvstore.State, own, kvstore.KindHealth, name).String()))
		if errs = append(errs, err); err == nil {
			delete(c.have, name)
		}
	}
	return errors.Join(errs...)
}

// record is the record of a verdict; nil when there is none to write.
func (c *coroner) record(name string, h liveness.Health) *keyspacev1.NodeHealth {
	old := c.have[name]
	same := old != nil && old.GetState() == h.State && old.GetProcess() == h.Process.String() && old.GetPath() == h.Path.String()
	if h.State == keyspacev1.NodeHealth_STATE_UNKNOWN || same {
		delete(c.unstored, name)
		return nil
	}
	r := &keyspacev1.NodeHealth{
		Node: name, Cluster: c.w.s.cfg.Cluster, State: h.State, Process: h.Process.String(), Path: h.Path.String(), Witnesses: h.Witnesses,
		Since: old.GetSince(),
	}
	if old.GetState() != h.State {
		r.Since = time.Now().UnixNano()
	}
	return r
}

func (c *coroner) store(ctx context.Context, batch []*keyspacev1.NodeHealth) error {
	var ops []kvstore.Op
	for _, r := range batch {
		op, err := put(kvstore.NewKey(kvstore.State, r.GetCluster(), kvstore.KindHealth, r.GetNode()), r)
		if err != nil {
			return err
		}
		ops = append(ops, op)
	}
	rev, err := c.w.s.commitAs(ctx, c.term, ops...)
	if err != nil {
		return err
	}
	for _, r := range batch {
		name, old := r.GetNode(), c.have[r.GetNode()]
		down := liveness.Down.String()
		if r.GetProcess() == down && old.GetProcess() != down {
			c.down[name] = rev
		}
		c.have[name] = r
		delete(c.unstored, name)
		if old.GetState() != r.GetState() {
			c.w.countVerdict(liveness.StateName(r.GetState()))
			c.w.s.log.Info("node's health", "node", name, "health", liveness.StateName(r.GetState()), "process", r.GetProcess(), "path", r.GetPath(), "witnesses", r.GetWitnesses())
		}
	}
	return nil
}
