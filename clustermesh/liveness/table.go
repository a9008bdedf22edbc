// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// Row is another node as this one sees it.
type Row struct {
	NodeID
	Addr      netip.Addr
	Path      Path
	PathSince time.Time
	// Process is what is known of its agent: by gossip, or what its cluster
	// says while the stream to it is up.
	Process Witness
	Health  keyspacev1.NodeHealth_State
	// Chosen says whether backends on it take new connections of this node;
	// Why it is not.
	Chosen bool
	Why    string
	// PassedOver is how often it ceased to be chosen.
	PassedOver uint64
}

// Reasons why backends of a node are not chosen.
const (
	WhyPath        = "path down"                  // by our own probes; its agent is up
	WhyUnreachable = "unreachable"                // neither answers
	WhyDead        = "dead"                       // its own cluster says so, and we do not know better
	WhyCluster     = "its cluster is unreachable" // not heard of, or hears no node of its own; no probed one answers
)

// Table is what a node knows of all others, and the decision that follows: own
// probes count most, then what the node's own cluster says, then the stream to
// that cluster. It is safe for concurrent use.
type Table struct {
	self NodeID

	mu    sync.Mutex
	nodes map[NodeID]*row
	// peers are the clusters with a PeerView: whether their stream is up.
	peers map[string]bool
	dirty bool
	out   map[NodeID]string // as last returned by Changes
}

type row struct {
	Row
	known   bool // there is a Node record
	probed  bool // it answers probes
	process Witness
	claimed Witness // process, as its own cluster says
}

// NewTable makes an empty table for a node.
func NewTable(self NodeID) *Table {
	return &Table{self: self, nodes: map[NodeID]*row{}, peers: map[string]bool{}, out: map[NodeID]string{}}
}

// edit changes a row and drops it when nothing is known of the node any more.
func (t *Table) edit(id NodeID, fn func(*row)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.nodes[id]
	if !ok {
		r = &row{Row: Row{NodeID: id}}
		t.nodes[id] = r
	}
	before := *r
	fn(r)
	if *r != before {
		t.dirty = true
	}
	if !r.known && r.Health == 0 && r.process == Unknown && r.Path == PathUnknown {
		delete(t.nodes, id)
	}
}

// SetNode takes a Node record: its address, and whether it answers probes.
func (t *Table) SetNode(id NodeID, addr netip.Addr, probed bool) {
	t.edit(id, func(r *row) { r.known, r.Addr, r.probed = true, addr, probed })
}

// DeleteNode withdraws SetNode.
func (t *Table) DeleteNode(id NodeID) {
	t.edit(id, func(r *row) { r.known, r.Addr, r.probed = false, netip.Addr{}, false })
}

// SetHealth takes the verdict of the node's own cluster; nil withdraws it.
func (t *Table) SetHealth(id NodeID, h *keyspacev1.NodeHealth) {
	t.edit(id, func(r *row) { r.Health, r.claimed = h.GetState(), ParseWitness(h.GetProcess()) })
}

// SetPath takes what our probes say; PathUnknown: they are not sent any more.
func (t *Table) SetPath(c PathChange) {
	t.edit(c.NodeID, func(r *row) { r.Path, r.PathSince = c.Path, c.Since })
}

// SetProcess takes what gossip says of an agent of our own cluster.
func (t *Table) SetProcess(id NodeID, w Witness) { t.edit(id, func(r *row) { r.process = w }) }

// SetPeer says whether the stream to a cluster is up.
func (t *Table) SetPeer(cluster string, connected bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers[cluster], t.dirty = connected, true
}

// DeletePeer withdraws SetPeer.
func (t *Table) DeletePeer(cluster string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, cluster)
	t.dirty = true
}

// Candidates are the nodes that can be probed.
func (t *Table) Candidates() (out []Target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, r := range t.nodes {
		if r.known && r.probed && r.Addr.IsValid() && id != t.self {
			out = append(out, Target{id, r.Addr})
		}
	}
	return out
}

// Questioned are the nodes of the own cluster whose agents it does not hear and
// that this node should look at: so many of those that run do that some prober of
// a node is left, whoever of its neighbours died with it.
func (t *Table) Questioned() map[NodeID]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var unheard []NodeID
	running := 1
	for id, r := range t.nodes {
		switch {
		case id.Cluster != t.self.Cluster || id == t.self || !r.known:
		case r.claimed == Down:
			unheard = append(unheard, id)
		default:
			running++
		}
	}
	out := map[NodeID]bool{}
	for _, id := range unheard {
		if rank(t.self, id)%uint64(running) < lookers {
			out[id] = true
		}
	}
	return out
}

// cluster sums up what is known of the nodes of a cluster.
type cluster struct {
	known, dead int
	up, down    int  // by our probes
	refuted     bool // one that its cluster calls dead answers us
	lost        bool // it is a peer and its stream is down
	// By its own word, how many of its nodes run their agents.
	running, silent int
}

// deserted reports whether no node of a cluster shows a sign of life: of those
// that we probe none answers, and its API server is not heard or hears none.
func (c *cluster) deserted() bool {
	return c.down > 0 && c.up == 0 && (c.lost || c.silent > 0 && c.running == 0)
}

// buriesTheLiving reports whether a cluster calls most of its nodes dead while
// one of them answers us: then its word is not enough.
func (c *cluster) buriesTheLiving() bool { return c.refuted && 2*c.dead > c.known }

func (t *Table) clusters() map[string]*cluster {
	out := map[string]*cluster{}
	for id, r := range t.nodes {
		c := out[id.Cluster]
		if c == nil {
			connected, peer := t.peers[id.Cluster]
			c = &cluster{lost: peer && !connected}
			out[id.Cluster] = c
		}
		dead := r.Health == keyspacev1.NodeHealth_STATE_DEAD
		if r.known {
			c.known++
		}
		if dead {
			c.dead++
		}
		switch r.claimed {
		case Up:
			c.running++
		case Down:
			c.silent++
		}
		switch r.Path.Witness() {
		case Up:
			c.up++
			c.refuted = c.refuted || dead
		case Down:
			c.down++
		}
	}
	return out
}

// judge says why backends of a node are not chosen; "" when they are.
func (t *Table) judge(r *row, c *cluster) string {
	switch {
	case r.NodeID == t.self:
		return ""
	case r.Path.Witness() == Up:
		return "" // whatever others say
	case r.Path.Witness() == Down && t.processOf(r, c) == Down:
		return WhyUnreachable
	case r.Path.Witness() == Down:
		return WhyPath
	case r.Health == keyspacev1.NodeHealth_STATE_DEAD && !c.buriesTheLiving():
		return WhyDead
	case c.deserted() && (c.lost || r.claimed == Down):
		return WhyCluster
	}
	return ""
}

func (t *Table) processOf(r *row, c *cluster) Witness {
	switch {
	case r.Cluster == t.self.Cluster:
		return r.process
	case c.lost:
		return Down
	}
	return r.claimed
}

// Rows are all nodes but this one, sorted.
func (t *Table) Rows() []Row {
	t.mu.Lock()
	defer t.mu.Unlock()
	clusters := t.clusters()
	var out []Row
	for id, r := range t.nodes {
		if id == t.self {
			continue
		}
		c := clusters[id.Cluster]
		row := r.Row
		row.Process, row.Why = t.processOf(r, c), t.judge(r, c)
		row.Chosen = row.Why == ""
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b Row) int { return a.Compare(b.NodeID) })
	return out
}

// Changes are the nodes that stand otherwise than at the last call: why their
// backends are not chosen, "" when they are again.
func (t *Table) Changes() map[NodeID]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.dirty {
		return nil
	}
	t.dirty = false
	changes, clusters := map[NodeID]string{}, t.clusters()
	out := map[NodeID]string{}
	for id, r := range t.nodes {
		if why := t.judge(r, clusters[id.Cluster]); why != "" {
			out[id] = why
			if t.out[id] == "" {
				r.PassedOver++
			}
			if t.out[id] != why {
				changes[id] = why
			}
		}
	}
	for id := range t.out {
		if out[id] == "" {
			changes[id] = ""
		}
	}
	t.out = out
	return changes
}
