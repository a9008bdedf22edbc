// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// retargetEvery bounds how often it is decided anew whom to probe.
const retargetEvery = 500 * time.Millisecond

// watchman finds out which other nodes can be reached and has the view pass
// over those that cannot: it probes, and takes part in gossip.
type watchman struct {
	self   liveness.NodeID
	log    *slog.Logger
	view   *view
	table  *liveness.Table
	probes *liveness.Probes
	gossip *liveness.Gossip
	tell   func()        // publishes what the probes say
	wake   chan struct{} // the table has changed
	// refutes is the revision of the record that says that this agent does not
	// run; see keyspacev1.NodeStatus.
	refutes atomic.Int64

	mu      sync.Mutex
	told    bool // this run has published something; before, the record is an earlier run's
	targets map[liveness.NodeID]bool
}

// newWatchman makes one that has seen nothing. conn is bound to the tunnel
// address, mtu is the underlay's.
func newWatchman(cfg *Config, view *view, conn *net.UDPConn, mtu int, tell func(), log *slog.Logger) *watchman {
	w := &watchman{
		self: liveness.NodeID{Cluster: cfg.Cluster, Node: cfg.Node}, log: log, view: view, table: view.alive,
		tell: tell, wake: make(chan struct{}, 1), targets: map[liveness.NodeID]bool{},
	}
	w.probes = liveness.NewProbes(liveness.ProbesConfig{
		Self: cfg.NodeAddress, Conn: conn, Port: cfg.TunnelPort, Changed: w.pathsChanged, Log: log,
		Sizer: liveness.SizerConfig{Full: mtu}, Sized: w.sized,
	})
	w.gossip = liveness.NewGossip(liveness.GossipConfig{
		Cluster: cfg.Cluster, Name: cfg.Node, Listen: netip.AddrPortFrom(cfg.NodeAddress, liveness.GossipPort),
		Seeds: w.seeds, Changed: w.signal, Log: log,
	})
	return w
}

func (w *watchman) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watchman) pathsChanged(changed []liveness.PathChange) {
	for _, c := range changed {
		w.table.SetPath(c)
		w.log.Info("path changed", "to", c.NodeID, "path", c.Path)
	}
	w.signal()
}

// sized tells the programs, which cut or refuse what is larger, and the world
// what sizes get through.
func (w *watchman) sized() {
	for _, p := range w.probes.Paths() {
		w.view.ips.SetPathMTU(p.Addr, p.MTU)
	}
	w.signal()
	w.tell()
}

// seeds are the other nodes of the cluster.
func (w *watchman) seeds() (out []netip.AddrPort) {
	for _, t := range w.table.Candidates() {
		if t.Cluster == w.self.Cluster {
			out = append(out, netip.AddrPortFrom(t.Addr, liveness.GossipPort))
		}
	}
	return out
}

// local takes a batch of the local/ reader: the keys of gossip, and what this
// node said of its paths before it was restarted.
func (w *watchman) local(b store.Batch) {
	for _, c := range b.Changes {
		if c.Deleted {
			continue
		}
		switch r := c.Record.(type) {
		case *keyspacev1.Gossip:
			if err := w.gossip.SetKeys(r.GetKeys()); err != nil {
				w.log.Error("gossip keys not usable", "key", c.KV.Key, "error", err)
			}
		case *keyspacev1.NodeStatus:
			if r.GetNode() == w.self.Node {
				w.remember(r)
			}
		}
	}
}

// state takes a batch of the state/ reader: that this agent is said not to run it
// denies at once.
func (w *watchman) state(b store.Batch) {
	for _, c := range b.Changes {
		r, ok := c.Record.(*keyspacev1.NodeHealth)
		if !ok || c.Key.Cluster != w.self.Cluster || c.Key.Names[0] != w.self.Node || liveness.ParseWitness(r.GetProcess()) != liveness.Down {
			continue
		}
		w.refutes.Store(c.KV.ModRevision)
		w.log.Warn("gossip does not hear this agent; say that it runs", "health", liveness.StateName(r.GetState()))
		w.tell()
	}
}

func (w *watchman) remember(r *keyspacev1.NodeStatus) {
	w.mu.Lock()
	told := w.told
	w.told = true
	w.mu.Unlock()
	if told {
		return
	}
	var down []liveness.PathChange
	for _, p := range r.GetPaths() {
		if !p.GetUp() {
			down = append(down, liveness.PathChange{
				NodeID: liveness.NodeID{Cluster: p.GetCluster(), Node: p.GetNode()}, Since: time.Unix(0, p.GetSince()),
			})
		}
	}
	if len(down) > 0 {
		w.probes.Assume(down)
	}
}

// run probes and gossips until the context ends.
func (w *watchman) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { _ = w.gossip.Run(ctx) }) // ends with the context; its errors are in Err
	wg.Go(func() { w.follow(ctx) })
	return w.probes.Run(ctx)
}

// follow brings what has changed to where it matters, and targets up to date.
func (w *watchman) follow(ctx context.Context) {
	tick := time.NewTicker(retargetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.retarget()
		case <-w.wake:
			for name, p := range w.gossip.Members() {
				if !strings.Contains(name, "/") { // a node
					w.table.SetProcess(liveness.NodeID{Cluster: w.self.Cluster, Node: name}, p)
				}
			}
			w.view.flush()
			w.tell()
		}
	}
}

// retarget decides whom to probe, when nodes or backends have changed.
func (w *watchman) retarget() {
	if !w.view.takeMoved() {
		return
	}
	serving, matters := w.view.lb.Serving(), w.table.Questioned()
	candidates := w.table.Candidates()
	for _, t := range candidates {
		if w.view.ips.PathAssumed(t.Addr) { // or it would never be measured again
			matters[t.NodeID] = true
		}
	}
	chosen := liveness.Targets(w.self, candidates, func(n liveness.NodeID) bool {
		return serving[[2]string{n.Cluster, n.Node}] || matters[n]
	})
	now := make(map[liveness.NodeID]bool, len(chosen))
	for _, t := range chosen {
		now[t.NodeID] = true
	}
	w.probes.SetTargets(chosen)
	for id := range w.targets {
		if !now[id] {
			w.table.SetPath(liveness.PathChange{NodeID: id, Path: liveness.PathUnknown})
		}
	}
	w.targets = now
	w.signal()
}

// reports are the paths as the status record has them.
func (w *watchman) reports() (out []*keyspacev1.PathReport) {
	w.mu.Lock()
	w.told = true
	w.mu.Unlock()
	for _, p := range w.probes.Paths() {
		if said := p.Path.Witness(); said != liveness.Unknown {
			out = append(out, &keyspacev1.PathReport{
				Cluster: p.Cluster, Node: p.Node, Up: said == liveness.Up, Since: p.Since.UnixNano(),
				Mtu: uint32(p.MTU), FullMtu: uint32(p.FullMTU),
			})
		}
	}
	return out
}

// paths are all other nodes as the API shows them.
func (w *watchman) paths() (out []*hawserv1.NodePath) {
	probed := map[liveness.NodeID]liveness.PathStatus{}
	for _, p := range w.probes.Paths() {
		probed[p.NodeID] = p
	}
	for _, r := range w.table.Rows() {
		row := &hawserv1.NodePath{
			Cluster: r.Cluster, Node: r.Node, Process: r.Process.String(), Health: liveness.StateName(r.Health),
			Chosen: r.Chosen, Why: r.Why, PassedOver: r.PassedOver,
		}
		if r.Addr.IsValid() {
			row.Address = r.Addr.String()
		}
		if p, ok := probed[r.NodeID]; ok {
			row.Mtu, row.FullMtu = uint32(p.MTU), uint32(p.FullMTU)
			row.Path, row.RttSeconds, row.Sent, row.Answered = p.Path.String(), p.RTT.Seconds(), p.Sent, p.Answered
			if !p.Since.IsZero() {
				row.Since = p.Since.UnixNano()
			}
		}
		out = append(out, row)
	}
	return out
}

// watchCounters are counts for metrics.
type watchCounters struct {
	forged, gossipRefused uint64
	paused                time.Duration
}

func (w *watchman) counters() watchCounters {
	return watchCounters{forged: w.probes.Refused(), gossipRefused: w.gossip.Refused(), paused: w.probes.Paused()}
}

// problems are what keeps witnesses from speaking.
func (w *watchman) problems() (out []*hawserv1.Problem) {
	if err := w.gossip.Err(); err != nil {
		out = append(out, &hawserv1.Problem{
			Object: "gossip", Problem: err.Error() + "; its cluster cannot tell whether this agent runs",
			Fix: "free the port (see: ss -lntup); API servers take another by --listen-gossip",
		})
	}
	return out
}

// liveness takes records of nodes, health and peers.
func (v *view) liveness(c store.Change) {
	switch c.Key.Kind {
	case kvstore.KindNode, kvstore.KindSlice, kvstore.KindService, kvstore.KindHealth:
		v.moved = true
	}
	id := func() liveness.NodeID { return liveness.NodeID{Cluster: c.Key.Cluster, Node: c.Key.Names[0]} }
	switch r := c.Record.(type) {
	case *keyspacev1.Node:
		addr, _ := netip.ParseAddr(r.GetTunnelAddress()) // validated; an absent one is not probed
		v.alive.SetNode(id(), addr, slices.Contains(r.GetCapabilities(), liveness.Capability))
	case *keyspacev1.NodeHealth:
		v.alive.SetHealth(id(), r)
	case *keyspacev1.PeerView:
		v.alive.SetPeer(r.GetPeer(), r.GetConnected())
	case nil:
		switch c.Key.Kind {
		case kvstore.KindNode:
			v.alive.DeleteNode(id())
		case kvstore.KindHealth:
			v.alive.SetHealth(id(), nil)
		case kvstore.KindPeerView:
			v.alive.DeletePeer(c.Key.Names[0])
		}
	}
}

// standing is what it means for a node's backends why they are not chosen. Where
// only the path is down, the flows that are there may live on: it may return.
func standing(why string) loadbalancer.Standing {
	switch why {
	case "":
		return loadbalancer.Reached
	case liveness.WhyPath:
		return loadbalancer.Away
	}
	return loadbalancer.Gone
}

// takeMoved reports whether nodes or backends have changed since the last call.
func (v *view) takeMoved() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.moved
	v.moved = false
	return was
}
