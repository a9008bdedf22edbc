// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/seldom"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// grants judges the records of other clusters by what those were granted, as the
// PeerViews say. Where clusters share an etcd nobody else stands between; where
// an API server imports, it has judged before, and this holds when it is mistaken.
//
// A record passes when its cluster is admitted (there is a PeerView of it) and its
// grant allows the record. Of those that passed it knows the keys, of the others
// why not; the records are in the store, and are read from there when a grant
// changes (reread.go).
type grants struct {
	own   string
	space identity.Space
	log   *slog.Logger
	now   func() time.Time
	use   func(store.Batch)
	count func(reason ...string)
	// told is closed when local/ was listed once: before it is not known who is
	// admitted.
	told chan struct{}
	// ended is closed when nobody reads any more.
	ended chan struct{}
	wake  chan struct{}

	mu       sync.Mutex // held while use runs, so that it sees one batch at a time
	listed   bool       // told is closed
	clusters map[string]*granted
}

// granted is what is known of one other cluster.
type granted struct {
	view  *keyspacev1.PeerView
	guard *peering.Guard // nil: not admitted
	// early: records came before the cluster was admitted.
	early  bool
	passed map[kvstore.Kind]map[string]uint64 // key → how much of the grant it uses
	used   map[kvstore.Kind]uint64
	// refused are the keys that do not pass as they are now, or not with all that
	// they say, and why.
	refused map[string]string
	limited bool // one of them only because there are too many
	due     bool // to be read again
	// touched are the keys that the reader brought since a reading began; nil
	// when there is none.
	touched map[string]struct{}

	told seldom.Gate // refusals
}

const (
	// refusedGrant is the reason under which a record outside of its cluster's
	// grant is counted.
	refusedGrant = "grant"
	// Within refusalsLogged at most refusalsTold refusals of a cluster are logged.
	refusalsLogged = time.Minute
	refusalsTold   = 3
)

func newGrants(own string, space identity.Space, log *slog.Logger, use func(store.Batch), count func(reason ...string)) *grants {
	return &grants{
		own: own, space: space, log: log, now: time.Now, use: use, count: count,
		told: make(chan struct{}), ended: make(chan struct{}), wake: make(chan struct{}, 1), clusters: map[string]*granted{},
	}
}

// of is what is known of a cluster. The caller holds mu.
func (g *grants) of(cluster string) *granted {
	c := g.clusters[cluster]
	if c == nil {
		c = &granted{passed: map[kvstore.Kind]map[string]uint64{}, used: map[kvstore.Kind]uint64{}, refused: map[string]string{},
			told: seldom.Gate{Window: refusalsLogged, Most: refusalsTold, Now: func() time.Time { return g.now() }}}
		g.clusters[cluster] = c
	}
	return c
}

// state takes a batch of the state/ reader. The first one waits until it is known
// who is admitted.
func (g *grants) state(b store.Batch) {
	select {
	case <-g.told:
	case <-g.ended:
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	pass := make([]store.Change, 0, len(b.Changes))
	for _, c := range b.Changes {
		if g.passes(&c) {
			pass = append(pass, c)
		}
	}
	b.Changes = pass
	g.use(b)
}

// passes says whether a change of the reader may pass, and leaves in it what may.
// The caller holds mu.
func (g *grants) passes(c *store.Change) bool {
	if c.Key.Cluster == g.own {
		return true
	}
	of := g.of(c.Key.Cluster)
	if of.touched != nil {
		of.touched[c.KV.Key] = struct{}{}
	}
	return g.judge(of, c)
}

// judge is passes for what is not brought by the reader, too. The caller holds
// mu.
func (g *grants) judge(of *granted, c *store.Change) bool {
	key := c.KV.Key
	if c.Deleted {
		delete(of.refused, key)
		g.drop(of, c.Key.Kind, key)
		return true // of what never passed it means nothing
	}
	if of.guard == nil {
		of.early = true
		return false
	}
	within, surplus := of.guard.Within(c.Key, c.Record)
	c.Record = within
	weight, old := weightOf(c.Record), of.passed[c.Key.Kind][key]
	err := of.guard.Check(c.Key, c.Record)
	if limit := of.guard.Limit(c.Key.Kind); err == nil && of.used[c.Key.Kind]-old+weight > limit {
		of.limited = true
		err = &kvstore.BadRecord{Key: key, Reason: peering.ReasonLimit, Detail: "there are more than its grant allows"}
	}
	if err != nil {
		g.refuse(of, c.Key.Cluster, key, err)
		return false
	}
	if surplus != nil {
		g.refuse(of, c.Key.Cluster, key, surplus)
	} else {
		delete(of.refused, key)
	}
	if of.passed[c.Key.Kind] == nil {
		of.passed[c.Key.Kind] = map[string]uint64{}
	}
	of.passed[c.Key.Kind][key] = weight
	of.used[c.Key.Kind] += weight - old
	return true
}

// weightOf is how much of a grant a record uses: of slices, the backends.
func weightOf(m proto.Message) uint64 {
	if s, ok := m.(*keyspacev1.BackendSlice); ok {
		return max(1, uint64(len(s.GetBackends())))
	}
	return 1
}

func (g *grants) drop(of *granted, k kvstore.Kind, key string) {
	of.used[k] -= of.passed[k][key]
	delete(of.passed[k], key)
}

// refuse notes, counts and, now and then, logs a refusal. The caller holds mu.
func (g *grants) refuse(of *granted, cluster, key string, why error) {
	if of.refused[key] == why.Error() {
		return // it is known
	}
	of.refused[key] = why.Error()
	g.count(refusedGrant)
	if untold, ok := of.told.Pass(); ok {
		g.log.Warn("record refused", "peer", cluster, "key", key, "error", why, "untold_before", untold)
	}
}

// local takes a batch of the local/ reader: who is admitted, with which grant.
func (g *grants) local(b store.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range b.Changes {
		if c.Key.Kind != kvstore.KindPeerView {
			continue
		}
		if view, ok := c.Record.(*keyspacev1.PeerView); ok && !c.Deleted {
			g.admit(view)
		} else {
			g.expel(c.Key.Names[0])
		}
	}
	if b.Listed && !g.listed {
		g.listed = true
		close(g.told)
	}
}

// admit takes a grant. What it allows of what was turned away, and does not allow
// of what has passed, is settled by reading the records again. The caller holds
// mu.
func (g *grants) admit(v *keyspacev1.PeerView) {
	name := v.GetPeer()
	of := g.of(name)
	if old := of.view; old != nil && old.GetClusterId() == v.GetClusterId() && proto.Equal(old.GetGrant(), v.GetGrant()) &&
		slices.Equal(old.GetPodCidrs(), v.GetPodCidrs()) && slices.Equal(old.GetNodeCidrs(), v.GetNodeCidrs()) {
		return
	}
	grant := v.GetGrant()
	if grant == nil { // an API server of before says the ranges alone
		var err error
		if grant, err = peering.GrantFor(&keyspacev1.Cluster{
			Name: name, Id: v.GetClusterId(), PodCidrs: v.GetPodCidrs(), NodeCidrs: v.GetNodeCidrs(),
			Mesh: &keyspacev1.MeshParameters{ClusterBits: g.space.ClusterBits()},
		}); err != nil {
			g.log.Error("cluster not admitted", "peer", name, "error", err)
			return
		}
		grant.ServiceCidrsPinned = false
	}
	guard, err := peering.NewGuard(&keyspacev1.Peer{Name: name, ClusterId: v.GetClusterId(), Grant: grant}, nil)
	if err != nil {
		g.log.Warn("grant narrowed", "peer", name, "error", err)
	}
	again := of.guard != nil || of.early
	of.guard, of.view, of.early = guard, proto.CloneOf(v), false
	if again {
		g.readAgain(of)
	}
}

// expel withdraws all that has passed of a cluster that is admitted no more. The
// caller holds mu.
func (g *grants) expel(name string) {
	of := g.clusters[name]
	if of == nil || of.guard == nil {
		return
	}
	var b store.Batch
	for _, keys := range of.passed {
		for key := range keys {
			if k, err := kvstore.ParseKey(key); err == nil { // as when it passed
				b.Changes = append(b.Changes, store.Change{Key: k, KV: kvstore.KV{Key: key}, Deleted: true})
			}
		}
	}
	delete(g.clusters, name)
	g.of(name).early = true // what is in the store counts if it comes back
	if len(b.Changes) == 0 {
		return
	}
	g.log.Info("cluster is not admitted any more; its records are withdrawn", "peer", name, "records", len(b.Changes))
	slices.SortFunc(b.Changes, func(a, b store.Change) int { return strings.Compare(a.KV.Key, b.KV.Key) })
	g.use(b)
}
