// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// ownRecordEvery is how often the cluster's record is compared while nobody
// writes it: what a watch cannot tell, as after an error.
const ownRecordEvery = 10 * time.Second

// What a record was that is put back, for the log.
const (
	wasMissing    = "missing"
	wasUnreadable = "unreadable"
	wasChanged    = "changed"
)

// putBacks counts the records that only this API server's cluster writes, and
// that were put back because somebody else had removed or changed them, by kind.
type putBacks struct {
	mu   sync.Mutex
	kind map[kvstore.Kind]uint64
}

// putBackKinds are those that are watched over.
func putBackKinds() []kvstore.Kind {
	return []kvstore.Kind{kvstore.KindCluster, kvstore.KindNodeConfig, kvstore.KindSynced, kvstore.KindPeerView}
}

// counts has an entry of each kind.
func (p *putBacks) counts() map[kvstore.Kind]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[kvstore.Kind]uint64{}
	for _, k := range putBackKinds() {
		out[k] = p.kind[k]
	}
	return out
}

// was says what was wrong with what was found in a record's place.
func was(key kvstore.Key, found *kvstore.KV) string {
	if found == nil {
		return wasMissing
	}
	if _, err := kvstore.Decode(key, found.Value); err != nil {
		return wasUnreadable
	}
	return wasChanged
}

// putBack notes that a record is as it should be again.
func (s *Server) putBack(key kvstore.Key, was string) {
	s.log.Warn("own record put back", "key", key.String(), "was", was)
	s.back.mu.Lock()
	defer s.back.mu.Unlock()
	if s.back.kind == nil {
		s.back.kind = map[kvstore.Kind]uint64{}
	}
	s.back.kind[key.Kind]++
}

// keepClusterRecord compares the cluster's record with what this API server says
// of the cluster whenever somebody writes it, until the context ends. It is for
// the leader: of replicas with different flags one alone may insist.
func (s *Server) keepClusterRecord(ctx context.Context, fence []kvstore.Cmp) error {
	key := kvstore.NewKey(kvstore.State, s.cfg.Cluster, kvstore.KindCluster)
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return s.follow(ctx, key.String(), func(*kvstore.KV) error {
			wake(changed)
			return nil
		})
	})
	g.Go(func() error {
		return s.repeatOr(ctx, "compare the cluster's record", ownRecordEvery, changed, func(ctx context.Context) error {
			return s.compareClusterRecord(ctx, key, fence)
		})
	})
	return g.Wait()
}

func (s *Server) compareClusterRecord(ctx context.Context, key kvstore.Key, fence []kvstore.Cmp) error {
	old, _, err := s.kv.Get(ctx, key.String())
	if err != nil {
		return err
	}
	op, err := put(key, s.cfg.record())
	if err != nil {
		return err
	}
	cmp := kvstore.Absent(key.String())
	if old != nil {
		if kvstore.SameRecord(key, old.Value, op.Value) {
			return nil
		}
		cmp = kvstore.AtRevision(key.String(), old.ModRevision)
	}
	r, err := s.kv.Txn(ctx, append(slices.Clone(fence), cmp), []kvstore.Op{op}, nil)
	if err == nil && r.Succeeded {
		s.putBack(key, was(key, old))
	}
	return err // lost to another write: that wakes us again
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake
	}
}

// decisions are what the cluster decided for its nodes, as the leader last read
// it: what a record that somebody removes or damages said. What was so before it
// came to office it cannot know.
type decisions struct {
	changed chan struct{} // capacity 1: some record is to be looked at

	mu         sync.Mutex
	last       map[string]*keyspacev1.NodeConfig
	unreadable map[string]bool
}

func newDecisions() *decisions {
	return &decisions{changed: make(chan struct{}, 1), last: map[string]*keyspacev1.NodeConfig{}, unreadable: map[string]bool{}}
}

// run follows the records until the context ends.
func (d *decisions) run(ctx context.Context, s *Server) error {
	r, err := store.NewReader(store.ReaderConfig{
		Client: s.kv, Prefix: kvstore.KindPrefix(kvstore.Local, s.cfg.Cluster, kvstore.KindNodeConfig), Apply: d.apply, Log: s.log,
	})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

func (d *decisions) apply(b store.Batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	look := false
	for _, c := range b.Changes {
		rec, ok := c.Record.(*keyspacev1.NodeConfig)
		if !ok {
			look = true // it was deleted; what it said stays
			continue
		}
		was, known := d.last[rec.GetNode()]
		look = look || known && !slices.Equal(was.GetPodCidrs(), rec.GetPodCidrs())
		d.last[rec.GetNode()] = rec
	}
	// An unreadable key is in every batch until it is mended: once is enough.
	now := map[string]bool{}
	for _, k := range b.Unreadable {
		now[k.String()] = true
		look = look || !d.unreadable[k.String()]
	}
	if d.unreadable = now; look {
		wake(d.changed)
	}
}

// of is what was decided for a node, and whether that is known.
func (d *decisions) of(node string) (*keyspacev1.NodeConfig, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, known := d.last[node]
	if !known {
		return &keyspacev1.NodeConfig{Node: node}, false
	}
	return proto.CloneOf(rec), true
}

func (d *decisions) nodes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.last))
}

func (d *decisions) forget(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.last, node)
}

// tell puts back what nodes were told, where somebody else removed or changed it.
func (r *registrar) tell(ctx context.Context, own owners) error {
	told, bad, err := listBad[*keyspacev1.NodeConfig](ctx, r.s, kvstore.Local, r.s.cfg.Cluster, kvstore.KindNodeConfig)
	if err != nil {
		return err
	}
	have := map[string]stored[*keyspacev1.NodeConfig]{}
	for _, c := range told {
		have[c.msg.GetNode()] = c
	}
	for _, b := range bad {
		if key, err := kvstore.ParseKey(b.kv.Key); err == nil {
			have[key.Names[0]] = stored[*keyspacev1.NodeConfig]{key: key, kv: b.kv}
		}
	}
	nodes := append(slices.Collect(maps.Values(own)), r.decided.nodes()...)
	slices.Sort(nodes)
	var errs []error
	for _, node := range slices.Compact(nodes) {
		if node == externalOwner { // is told nothing
			continue
		}
		errs = append(errs, r.tellNode(ctx, own, node, have[node]))
	}
	return errors.Join(errs...)
}

// tellNode puts a node's record back, unless it says what it should. is has no
// message when it cannot be read, and no revision when there is none.
func (r *registrar) tellNode(ctx context.Context, own owners, node string, is stored[*keyspacev1.NodeConfig]) error {
	key, want := r.s.nodeConfigKey(node), own.of(node)
	rec, known := r.decided.of(node)
	cmps := []kvstore.Cmp{kvstore.AtRevision(key.String(), is.kv.ModRevision)}
	was := wasUnreadable
	switch {
	case is.msg != nil && (len(want) == 0 || slices.Equal(is.msg.GetPodCidrs(), want)):
		return nil
	case is.msg != nil:
		was, rec = wasChanged, proto.CloneOf(is.msg)
	case is.kv.ModRevision == 0:
		// A node that is forgotten loses all of these in one transaction.
		was, cmps = wasMissing, []kvstore.Cmp{kvstore.Absent(key.String()), r.remains(node, want)}
		if len(want) > 0 {
			break
		}
		if is, err := r.isNode(ctx, node); err != nil || !is || !known {
			if err == nil && !is {
				r.decided.forget(node)
			}
			return err
		}
	}
	if len(want) > 0 {
		rec.PodCidrs = want
	}
	op, err := put(key, rec)
	if err != nil {
		return err
	}
	res, err := r.s.kv.Txn(ctx, append(cmps, r.fence...), []kvstore.Op{op}, nil)
	if err == nil && res.Succeeded {
		r.s.putBack(key, was)
	}
	return err // lost to another write: the next step
}

// remains holds while a node has its ranges, or its record.
func (r *registrar) remains(node string, ranges []string) kvstore.Cmp {
	if len(ranges) > 0 {
		key := kvstore.NewKey(kvstore.Private, r.s.cfg.Cluster, kvstore.KindPodCIDR, ranges[0])
		return kvstore.Cmp{Key: key.String(), Target: kvstore.CmpValue, Value: []byte(node)}
	}
	return kvstore.Cmp{Key: r.s.nodeKey(node).String(), Target: kvstore.CmpExists}
}

func (r *registrar) isNode(ctx context.Context, node string) (bool, error) {
	kv, _, err := r.s.kv.Get(ctx, r.s.nodeKey(node).String())
	return kv != nil, err
}
