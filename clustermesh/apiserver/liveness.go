// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// keysEvery is how often the age of the gossip keys is looked at.
const keysEvery = time.Second

// watchman is what an API server knows of its cluster's nodes.
type watchman struct {
	s      *Server
	gossip *liveness.Gossip // nil without --listen-gossip

	came chan struct{} // a node came, or one went; capacity 1

	mu      sync.Mutex
	nodes   map[string]netip.Addr // that take part; invalid without an address
	present map[string]bool
	reports map[string]report // by prober
	// verdicts counts changes of a node's health, by what it became.
	verdicts map[string]uint64
}

// report is what a node said last.
type report struct {
	paths   []*keyspacev1.PathReport
	refutes int64 // keyspacev1.NodeStatus
	rev     int64 // of the record
	former  bool  // said before its presence ended: of what it found then
}

func newWatchman(s *Server) *watchman {
	w := &watchman{s: s, came: make(chan struct{}, 1), nodes: map[string]netip.Addr{}, present: map[string]bool{}, reports: map[string]report{}, verdicts: map[string]uint64{}}
	if s.cfg.ListenGossip.IsValid() {
		w.gossip = liveness.NewGossip(liveness.GossipConfig{
			Cluster: s.cfg.Cluster, Name: liveness.APIServerName(s.cfg.Replica), Listen: s.cfg.ListenGossip,
			Seeds: w.seeds, Log: s.log,
		})
	}
	return w
}

func (w *watchman) seeds() (out []netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.nodes {
		if a.IsValid() {
			out = append(out, netip.AddrPortFrom(a, liveness.GossipPort))
		}
	}
	return out
}

// run follows the cluster's nodes and takes part in their gossip until the
// context ends.
func (w *watchman) run(ctx context.Context) error {
	own := w.s.cfg.Cluster
	g, ctx := errgroup.WithContext(ctx)
	for _, prefix := range []string{
		kvstore.KindPrefix(kvstore.State, own, kvstore.KindNode),
		kvstore.KindPrefix(kvstore.Local, own, kvstore.KindPresence),
		kvstore.KindPrefix(kvstore.Local, own, kvstore.KindStatus),
	} {
		r, err := store.NewReader(store.ReaderConfig{
			Client: w.s.kv, Prefix: prefix, Apply: w.apply, Log: w.s.log,
			OnBad: func(b *kvstore.BadRecord) { w.s.log.Warn("skip record", "key", b.Key, "reason", b.Reason) },
		})
		if err != nil {
			return err
		}
		g.Go(func() error { return r.Run(ctx) })
	}
	if w.gossip != nil {
		g.Go(func() error { return w.gossip.Run(ctx) })
		g.Go(func() error { return w.followKeys(ctx) })
	}
	return g.Wait()
}

func (w *watchman) apply(b store.Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range b.Changes {
		name := c.Key.Names[0]
		if c.Key.Kind != kvstore.KindStatus {
			select {
			case w.came <- struct{}{}:
			default:
			}
		}
		switch r := c.Record.(type) {
		case *keyspacev1.Node:
			delete(w.nodes, name)
			if slices.Contains(r.GetCapabilities(), liveness.Capability) {
				w.nodes[name], _ = netip.ParseAddr(r.GetTunnelAddress())
			}
		case *keyspacev1.Presence:
			w.present[name] = true
		case *keyspacev1.NodeStatus:
			w.reports[name] = report{paths: r.GetPaths(), refutes: r.GetRefutes(), rev: c.KV.ModRevision}
		case nil:
			switch c.Key.Kind {
			case kvstore.KindNode:
				delete(w.nodes, name)
			case kvstore.KindPresence:
				delete(w.present, name)
				if r, said := w.reports[name]; said {
					r.former = true
					w.reports[name] = r
				}
			case kvstore.KindStatus:
				delete(w.reports, name)
			}
		}
	}
}

// followKeys gives gossip its keys as they change.
func (w *watchman) followKeys(ctx context.Context) error {
	key := kvstore.NewKey(kvstore.Local, w.s.cfg.Cluster, kvstore.KindGossip)
	return w.s.follow(ctx, key.String(), func(kv *kvstore.KV) error {
		if kv == nil {
			return nil // the leader will make some
		}
		r, err := decode[*keyspacev1.Gossip](*kv)
		if err == nil {
			err = w.gossip.SetKeys(r.msg.GetKeys())
		}
		if err != nil {
			w.s.log.Error("gossip keys not usable", "error", err)
		}
		return nil
	})
}

// keepKeys makes, renews and hands out the gossip keys while it leads.
func (w *watchman) keepKeys(ctx context.Context, t *election.Term) error {
	tick := time.NewTicker(keysEvery)
	defer tick.Stop()
	for {
		if err := w.nextKeys(ctx, t); err != nil && ctx.Err() == nil {
			w.s.log.Warn("gossip keys", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (w *watchman) nextKeys(ctx context.Context, t *election.Term) error {
	own := w.s.cfg.Cluster
	private := kvstore.NewKey(kvstore.Private, own, kvstore.KindGossipKeys)
	local := kvstore.NewKey(kvstore.Local, own, kvstore.KindGossip)
	old, stored, err := get[*keyspacev1.GossipKeys](ctx, w.s, private)
	if err != nil {
		return err
	}
	as := kvstore.Absent(private.String()) // somebody may have asked for new ones meanwhile
	if stored {
		as = kvstore.AtRevision(private.String(), old.kv.ModRevision)
	}
	now, changed := liveness.NextKeys(time.Now(), w.s.cfg.GossipKeyLifetime, old.msg, func(b []byte) { _, _ = rand.Read(b) }) // never fails
	shared, found, err := get[*keyspacev1.Gossip](ctx, w.s, local)
	if err != nil {
		return err
	}
	told := proto.CloneOf(shared.msg)
	if told != nil {
		told.UpdatedAt = 0
	}
	if !changed && found && proto.Equal(told, liveness.SharedKeys(now)) {
		return nil
	}
	op1, err1 := put(private, now)
	op2, err2 := put(local, liveness.SharedKeys(now))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	res, err := w.s.kv.Txn(ctx, append(t.Fence(), as), []kvstore.Op{op1, op2}, nil)
	switch {
	case err != nil:
		return err
	case !res.Succeeded:
		return nil // seen anew in a second
	}
	w.s.log.Info("gossip keys", "keys", len(now.GetKeys()))
	return nil
}

// replaceGossipKeys has the leader replace all keys that there are: somebody knows
// them who is no member any more. It takes about half a minute, in which everybody
// understands everybody.
func (s *Server) replaceGossipKeys(ctx context.Context) error {
	key := kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindGossipKeys).String()
	return cas.Retry(ctx, func() error {
		r, err := cas.Get(ctx, s.kv, key, &keyspacev1.GossipKeys{})
		if err != nil || r.Rev == 0 {
			return err
		}
		r.Msg.ReplaceBefore = time.Now().UnixNano()
		return cas.Commit(ctx, s.kv, cas.Write{Key: key, Rev: r.Rev, Msg: r.Msg})
	})
}

// gossipState counts members by what gossip says of them, and what it refused.
func (w *watchman) gossipState() (members map[liveness.Witness]int, refused uint64) {
	members = map[liveness.Witness]int{}
	if w.gossip == nil {
		return members, 0
	}
	for _, p := range w.gossip.Members() {
		members[p]++
	}
	return members, w.gossip.Refused()
}

// verdictCounts are how often nodes' health became what; all states are in it.
func (w *watchman) verdictCounts() map[string]uint64 {
	out := map[string]uint64{}
	for state := range keyspacev1.NodeHealth_State_name {
		if name := liveness.StateName(keyspacev1.NodeHealth_State(state)); name != "" {
			out[name] = 0
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.Copy(out, w.verdicts)
	return out
}

func (w *watchman) countVerdict(health string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verdicts[health]++
}

// problems are what keeps the API server from hearing its nodes.
func (w *watchman) problems() (out []*hawserv1.Problem) {
	if w.gossip == nil {
		return nil
	}
	if err := w.gossip.Err(); err != nil {
		out = append(out, &hawserv1.Problem{
			Object: "gossip", Problem: err.Error() + "; which agents run is not known",
			Fix: "free the port, or give another by --listen-gossip",
		})
	}
	return out
}

// witnesses tells of each of our nodes whether anything shows that it is there:
// its presence, gossip, or a neighbour's path probe.
func (w *watchman) witnesses() func(node string) bool {
	reached := w.reached()
	return func(node string) bool {
		w.mu.Lock()
		present := w.present[node]
		w.mu.Unlock()
		return present || w.gossip != nil && w.gossip.Process(node) == liveness.Up ||
			reached[liveness.NodeID{Cluster: w.s.cfg.Cluster, Node: node}]
	}
}

// reached are the nodes that some of our agents probe, and whether any reaches
// them. What a node said before it was lost does not count when it is back, until
// it says something anew.
func (w *watchman) reached() map[liveness.NodeID]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[liveness.NodeID]bool{}
	for prober, r := range w.reports {
		for _, p := range r.paths {
			if id := (liveness.NodeID{Cluster: p.GetCluster(), Node: p.GetNode()}); w.present[prober] && !r.former {
				out[id] = out[id] || p.GetUp()
			}
		}
	}
	return out
}
