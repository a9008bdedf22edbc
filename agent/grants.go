// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// grants judges what other clusters write to a shared etcd, where no API server
// of ours stands between: a record is passed on only when its cluster was
// admitted (there is a PeerView of it) and its grant allows the record. What came
// too early, or is refused, is held: another grant may allow it.
type grants struct {
	own   string
	space identity.Space
	log   *slog.Logger
	use   func(store.Batch)
	count func(reason ...string)

	mu     sync.Mutex // held while use runs, so that it sees one batch at a time
	guards map[string]*peering.Guard
	views  map[string]*keyspacev1.PeerView
	held   map[string]map[string]store.Change // by cluster and key
	passed map[string]map[string]store.Change // what a narrower grant may take back
}

// refusedGrant is the reason under which a record outside of its cluster's grant
// is counted.
const refusedGrant = "grant"

func newGrants(own string, space identity.Space, log *slog.Logger, use func(store.Batch), count func(reason ...string)) *grants {
	return &grants{
		own: own, space: space, log: log, use: use, count: count,
		guards: map[string]*peering.Guard{}, views: map[string]*keyspacev1.PeerView{}, held: map[string]map[string]store.Change{},
		passed: map[string]map[string]store.Change{},
	}
}

// state takes a batch of the state/ reader.
func (g *grants) state(b store.Batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pass := make([]store.Change, 0, len(b.Changes))
	for _, c := range b.Changes {
		if g.allows(c) {
			pass = append(pass, c)
		}
	}
	b.Changes = pass
	g.use(b)
}

// allows says whether a change may pass, and holds it if not. The caller holds
// mu.
func (g *grants) allows(c store.Change) bool {
	if c.Key.Cluster == g.own {
		return true
	}
	held := g.held[c.Key.Cluster]
	if c.Deleted {
		delete(held, c.KV.Key)
		delete(g.passed[c.Key.Cluster], c.KV.Key)
		return true // of what never passed it means nothing
	}
	guard := g.guards[c.Key.Cluster]
	if guard != nil {
		err := guard.Check(c.Key, c.Record)
		if err == nil {
			delete(held, c.KV.Key)
			remember(g.passed, c)
			return true
		}
		g.count(refusedGrant)
		g.log.Warn("record refused", "key", c.KV.Key, "error", err)
	}
	remember(g.held, c)
	return false
}

func remember(in map[string]map[string]store.Change, c store.Change) {
	if in[c.Key.Cluster] == nil {
		in[c.Key.Cluster] = map[string]store.Change{}
	}
	in[c.Key.Cluster][c.KV.Key] = c
}

// retract are the ends of what has passed and is granted no more; it is held
// from now on. The caller holds mu.
func (g *grants) retract(cluster string) []store.Change {
	var out []store.Change
	for key, c := range g.passed[cluster] {
		if err := g.guards[cluster].Check(c.Key, c.Record); err == nil {
			continue
		}
		delete(g.passed[cluster], key)
		remember(g.held, c)
		gone := c
		gone.Deleted, gone.Record = true, nil
		gone.KV.Value = nil
		out = append(out, gone)
	}
	return out
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
			continue
		}
		delete(g.guards, c.Key.Names[0])
		delete(g.views, c.Key.Names[0])
	}
}

// admit takes a grant, passes on what it allows of what was held, and takes back
// what it does not allow of what has passed. The caller holds mu.
func (g *grants) admit(v *keyspacev1.PeerView) {
	name := v.GetPeer()
	if old := g.views[name]; old != nil && old.GetClusterId() == v.GetClusterId() &&
		slices.Equal(old.GetPodCidrs(), v.GetPodCidrs()) && slices.Equal(old.GetNodeCidrs(), v.GetNodeCidrs()) {
		return
	}
	grant, err := peering.GrantFor(&keyspacev1.Cluster{
		Name: name, Id: v.GetClusterId(), PodCidrs: v.GetPodCidrs(), NodeCidrs: v.GetNodeCidrs(),
		Mesh: &keyspacev1.MeshParameters{ClusterBits: g.space.ClusterBits()},
	})
	if err != nil {
		g.log.Error("cluster not admitted", "peer", name, "error", err)
		return
	}
	guard, err := peering.NewGuard(&keyspacev1.Peer{Name: name, ClusterId: v.GetClusterId(), Grant: grant}, nil)
	if err != nil {
		g.log.Warn("grant narrowed", "peer", name, "error", err)
	}
	g.guards[name], g.views[name] = guard, proto.CloneOf(v)
	held := g.held[name]
	delete(g.held, name)
	b := store.Batch{Changes: g.retract(name)}
	for _, c := range held {
		if g.allows(c) {
			b.Changes = append(b.Changes, c)
		}
	}
	if len(b.Changes) == 0 {
		return
	}
	slices.SortFunc(b.Changes, func(a, b store.Change) int { return strings.Compare(a.KV.Key, b.KV.Key) })
	g.use(b)
}
