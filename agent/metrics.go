// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/agent/dns"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/metrics"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// forwarded is the reason under which the datapath counts what it let pass.
const forwarded = "forwarded"

// mapsEvery is how often the entries of maps are counted: large ones take long.
const mapsEvery = time.Minute

// Metrics documents what an agent serves on --metrics-listen.
func Metrics() []metrics.Def {
	flow := []string{"direction", "program"}
	drop := []string{"reason", "direction", "program"}
	path := []string{"target_cluster", "target_node"}
	return slices.Concat([]metrics.Def{
		{Name: "hawser_build_info", Help: "Always 1; the label says which version runs.", Kind: metrics.Gauge, Labels: []string{"version"}},
		{Name: "hawser_start_timestamp_seconds", Help: "When the agent started.", Kind: metrics.Gauge},
		{Name: "hawser_tunnel_info", Help: "Always 1; the labels say which tunnel the node has and who makes its headers: netdev, ebpf.", Kind: metrics.Gauge, Labels: []string{"protocol", "datapath"}},
		{Name: "hawser_forward_packets_total", Help: "Packets that the datapath let pass. Datapath counters outlive the agent.", Kind: metrics.Counter, Labels: flow},
		{Name: "hawser_forward_bytes_total", Help: "Bytes of packets that the datapath let pass.", Kind: metrics.Counter, Labels: flow},
		{Name: "hawser_drop_packets_total", Help: "Packets that the datapath dropped, by reason (see drop-reasons.md).", Kind: metrics.Counter, Labels: drop},
		{Name: "hawser_drop_bytes_total", Help: "Bytes of packets that the datapath dropped.", Kind: metrics.Counter, Labels: drop},
		{Name: "hawser_map_entries", Help: "Entries of an eBPF map, counted once a minute.", Kind: metrics.Gauge, Labels: []string{"map"}},
		{Name: "hawser_map_max_entries", Help: "Entries that an eBPF map has room for.", Kind: metrics.Gauge, Labels: []string{"map"}},
		{Name: "hawser_map_pressure_ratio", Help: "How full an eBPF map is, 0 to 1; not of arrays, which always are.", Kind: metrics.Gauge, Labels: []string{"map"}},
		{Name: "hawser_map_memory_bytes", Help: "Memory of an eBPF map.", Kind: metrics.Gauge, Labels: []string{"map"}},
		{Name: "hawser_table_entries", Help: "Rows of a table of desired state.", Kind: metrics.Gauge, Labels: []string{"table"}},
		{Name: "hawser_table_lag_revisions", Help: "Changes of a table that the kernel does not show yet.", Kind: metrics.Gauge, Labels: []string{"table"}},
		{Name: "hawser_table_failing", Help: "1 while bringing a table into the kernel fails; it is tried again.", Kind: metrics.Gauge, Labels: []string{"table"}},
		{Name: "hawser_endpoints", Help: "Endpoints of this node, by state.", Kind: metrics.Gauge, Labels: []string{"state"}},
		{Name: "hawser_ipcache_entries", Help: "Addresses that the node knows, by the cluster that they belong to; empty for reserved ones.", Kind: metrics.Gauge, Labels: []string{"target_cluster"}},
		{Name: "hawser_keyspace_connected", Help: "1 while the node follows its cluster's etcd; otherwise it goes on with what it knew.", Kind: metrics.Gauge},
		{Name: "hawser_keyspace_since_timestamp_seconds", Help: "When the connection to etcd was made or lost.", Kind: metrics.Gauge},
		{Name: "hawser_keyspace_revision", Help: "Revision of etcd that the node has reached.", Kind: metrics.Gauge},
		{Name: "hawser_mesh_complete", Help: "1 when everything of every cluster is known and stale state is being removed.", Kind: metrics.Gauge},
		{Name: "hawser_ipam_addresses", Help: "Addresses of this node for its pods, by pool and state: used, free.", Kind: metrics.Gauge, Labels: []string{"pool", "state"}},
		{Name: "hawser_path_up", Help: "1 while a node answers this node's path probes; 0 also while one that returns is held back.", Kind: metrics.Gauge, Labels: path},
		{Name: "hawser_path_rtt_seconds", Help: "Round trip of the newest answer to a path probe.", Kind: metrics.Gauge, Labels: path},
		{Name: "hawser_path_mtu_bytes", Help: "Largest packets, tunnel headers included, that get through to a node and back whole; absent while it is not known.", Kind: metrics.Gauge, Labels: path},
		{Name: "hawser_path_probes_total", Help: "Path probes sent to a node.", Kind: metrics.Counter, Labels: path},
		{Name: "hawser_path_answers_total", Help: "Path probes that a node answered.", Kind: metrics.Counter, Labels: path},
		{Name: "hawser_path_refused_total", Help: "Packets that came as an answer to a path probe and were none: forged, or very late.", Kind: metrics.Counter},
		{Name: "hawser_path_paused_seconds_total", Help: "Time in which the agent did not run although it was to probe; nobody is blamed for it.", Kind: metrics.Counter},
		{Name: "hawser_nodes_passed_over", Help: "Nodes whose backends get no new connections of this node, by why.", Kind: metrics.Gauge, Labels: []string{"target_cluster", "why"}},
		{Name: "hawser_gossip_refused_total", Help: "Gossip messages refused: a wrong key, none, or another cluster's.", Kind: metrics.Counter},
		{Name: "hawser_problems", Help: "Problems that `hawser status` shows for this node.", Kind: metrics.Gauge},
		{Name: "hawser_dns_listening", Help: "1 while the node's name server answers; absent when it is off.", Kind: metrics.Gauge},
		{Name: "hawser_dns_answers_total", Help: "Answers of the name server by who knew: mesh (names), reverse (addresses), forwarded (the host's resolvers), none.", Kind: metrics.Counter, Labels: []string{"source", "rcode", "transport"}},
		{Name: "hawser_dns_refused_total", Help: "Questions without an answer of substance: source (asked by somebody who may not), malformed, busy (too many wait), loop (asked by a resolver that the node asks).", Kind: metrics.Counter, Labels: []string{"reason"}},
		{Name: "hawser_dns_forwards_total", Help: "Questions that the host's resolvers were asked.", Kind: metrics.Counter},
		{Name: "hawser_dns_forward_failures_total", Help: "Of these, those without any answer.", Kind: metrics.Counter},
		{Name: "hawser_dns_forward_seconds_total", Help: "Time that questions waited for the host's resolvers.", Kind: metrics.Counter},
		{Name: "hawser_certificate_expiry_timestamp_seconds", Help: "When a certificate ends: the node's (node) or the cluster's CA (ca).", Kind: metrics.Gauge, Labels: []string{"certificate"}},
		{Name: refusedRecords, Help: "Records of the keyspace that the node did not believe, by reason: what is malformed (key, decode, mismatch, range, labels, address, size), or outside of its cluster's grant (grant).", Kind: metrics.Counter, Labels: []string{"reason"}},
	}, stages.NodeDefs(), metrics.EtcdDefs())
}

const refusedRecords = "hawser_keyspace_refused_total"

// timers are what no API tells.
type timers struct {
	propagation *metrics.Timer
	etcd        *metrics.Etcd
	refused     *metrics.Tally
}

func newTimers() *timers {
	t := &timers{metrics.NewTimer(stages.NodeDefs(), stages.Name), metrics.NewEtcd(), metrics.NewTally(Metrics(), refusedRecords)}
	for _, reason := range append(kvstore.Reasons(), refusedGrant) {
		t.refused.Begin(reason)
	}
	return t
}

func (t *timers) stage(cluster string, s stages.Stage, took time.Duration) {
	t.propagation.Observe(took, cluster, string(s))
}

func (t *timers) kept() []metrics.Kept { return append(t.etcd.Kept(), t.propagation, t.refused) }

// counted remembers the maps of the last count.
type counted struct {
	mu   sync.Mutex
	maps *hawserv1.ListMapsResponse
	when time.Time
}

func (c *counted) get(ctx context.Context, s *service) (*hawserv1.ListMapsResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.maps != nil && time.Since(c.when) < mapsEvery {
		return c.maps, nil
	}
	r, err := s.ListMaps(ctx, &hawserv1.ListMapsRequest{})
	if err == nil {
		c.maps, c.when = r, time.Now()
	}
	return r, err
}

// nodeState is all that the metrics are made of.
type nodeState struct {
	status    *hawserv1.NodeStatusReport
	drops     *hawserv1.ListDropsResponse
	maps      *hawserv1.ListMapsResponse
	endpoints *hawserv1.ListEndpointsResponse
	ipcache   *hawserv1.ListIPCacheResponse
	complete  bool
	certs     map[string]time.Time
	dns       *dns.Status // nil when it is off
	paths     []*hawserv1.NodePath
	watch     watchCounters
}

// metricsSource reads the node's state as its API shows it.
func (a *Agent) metricsSource() metrics.Source {
	api, seen := &service{a: a}, &counted{}
	return func(ctx context.Context, emit metrics.Emit) error {
		var s nodeState
		var errs [5]error
		s.status, errs[0] = api.Status(ctx, &hawserv1.StatusRequest{})
		s.drops, errs[1] = api.ListDrops(ctx, &hawserv1.ListDropsRequest{})
		s.maps, errs[2] = seen.get(ctx, api)
		s.endpoints, errs[3] = api.ListEndpoints(ctx, &hawserv1.ListEndpointsRequest{})
		s.ipcache, errs[4] = api.ListIPCache(ctx, &hawserv1.ListIPCacheRequest{})
		s.paths, s.watch = a.watchman.paths(), a.watchman.counters()
		s.complete, s.certs = isClosed(a.complete), a.cfg.certificates()
		if a.dns != nil {
			st := a.dns.Status()
			s.dns = &st
		}
		s.emit(emit)
		return errors.Join(errs[:]...)
	}
}

// certificates are the ends of those that can be read.
func (c *Config) certificates() map[string]time.Time {
	files, ends := pki.FilesIn(c.TLSDir, "tls"), map[string]time.Time{}
	for name, path := range map[string]string{"node": files.Cert, "ca": files.CA} {
		if cert, err := pki.ReadCertificate(path); err == nil {
			ends[name] = cert.NotAfter
		}
	}
	return ends
}

func (s *nodeState) emit(emit metrics.Emit) {
	if r := s.status; r != nil {
		emit("hawser_build_info", 1, r.GetVersion())
		emit("hawser_tunnel_info", 1, r.GetTunnelProtocol(), r.GetTunnelDatapath())
		emit("hawser_start_timestamp_seconds", metrics.Timestamp(r.GetStartedAt()))
		emit("hawser_keyspace_connected", metrics.Bool(r.GetKeyspace().GetConnected()))
		emit("hawser_keyspace_since_timestamp_seconds", metrics.Timestamp(r.GetKeyspace().GetSince()))
		emit("hawser_keyspace_revision", float64(r.GetKeyspace().GetRevision()))
		emit("hawser_problems", float64(len(r.GetProblems())))
		for _, p := range r.GetPools() {
			emit("hawser_ipam_addresses", float64(p.GetUsed()), p.GetPrefix(), "used")
			emit("hawser_ipam_addresses", float64(p.GetFree()), p.GetPrefix(), "free")
		}
		for _, t := range r.GetTables() {
			emit("hawser_table_entries", float64(t.GetEntries()), t.GetName())
			emit("hawser_table_lag_revisions", max(0, float64(t.GetRevision())-float64(t.GetReconciled())), t.GetName())
			emit("hawser_table_failing", metrics.Bool(t.GetLastError() != ""), t.GetName())
		}
	}
	emit("hawser_mesh_complete", metrics.Bool(s.complete))
	for name, end := range s.certs {
		emit("hawser_certificate_expiry_timestamp_seconds", float64(end.Unix()), name)
	}
	s.emitTraffic(emit)
	s.emitRows(emit)
	if s.dns != nil {
		emitNames(s.dns, emit)
	}
	s.emitPaths(emit)
}

func emitNames(s *dns.Status, emit metrics.Emit) {
	emit("hawser_dns_listening", metrics.Bool(s.Listening != ""))
	for k, n := range s.Answers {
		emit("hawser_dns_answers_total", float64(n), string(k.Kind), k.Rcode, k.Transport)
	}
	for reason, n := range s.Refused {
		emit("hawser_dns_refused_total", float64(n), reason)
	}
	emit("hawser_dns_forwards_total", float64(s.Forwards))
	emit("hawser_dns_forward_failures_total", float64(s.ForwardFailed))
	emit("hawser_dns_forward_seconds_total", s.ForwardTime.Seconds())
}

func (s *nodeState) emitPaths(emit metrics.Emit) {
	over := map[[2]string]int{}
	for _, p := range s.paths {
		if !p.GetChosen() {
			over[[2]string{p.GetCluster(), p.GetWhy()}]++
		}
		if p.GetPath() == "" {
			continue
		}
		emit("hawser_path_up", metrics.Bool(p.GetPath() == "up"), p.GetCluster(), p.GetNode())
		emit("hawser_path_rtt_seconds", p.GetRttSeconds(), p.GetCluster(), p.GetNode())
		if p.GetMtu() > 0 {
			emit("hawser_path_mtu_bytes", float64(p.GetMtu()), p.GetCluster(), p.GetNode())
		}
		emit("hawser_path_probes_total", float64(p.GetSent()), p.GetCluster(), p.GetNode())
		emit("hawser_path_answers_total", float64(p.GetAnswered()), p.GetCluster(), p.GetNode())
	}
	for k, n := range over {
		emit("hawser_nodes_passed_over", float64(n), k[0], k[1])
	}
	emit("hawser_path_refused_total", float64(s.watch.forged))
	emit("hawser_path_paused_seconds_total", s.watch.paused.Seconds())
	emit("hawser_gossip_refused_total", float64(s.watch.gossipRefused))
}

func (s *nodeState) emitTraffic(emit metrics.Emit) {
	for _, d := range s.drops.GetDrops() {
		if d.GetReason() == forwarded {
			emit("hawser_forward_packets_total", float64(d.GetPackets()), d.GetDirection(), d.GetProgram())
			emit("hawser_forward_bytes_total", float64(d.GetBytes()), d.GetDirection(), d.GetProgram())
			continue
		}
		emit("hawser_drop_packets_total", float64(d.GetPackets()), d.GetReason(), d.GetDirection(), d.GetProgram())
		emit("hawser_drop_bytes_total", float64(d.GetBytes()), d.GetReason(), d.GetDirection(), d.GetProgram())
	}
	for _, m := range s.maps.GetMaps() {
		emit("hawser_map_entries", float64(m.GetEntries()), m.GetName())
		emit("hawser_map_max_entries", float64(m.GetMaxEntries()), m.GetName())
		emit("hawser_map_memory_bytes", float64(m.GetMemoryBytes()), m.GetName())
		if fills(m) {
			emit("hawser_map_pressure_ratio", float64(m.GetEntries())/float64(m.GetMaxEntries()), m.GetName())
		}
	}
}

// fills reports whether a map can run full: arrays always are, and a ring buffer
// has no entries.
func fills(m *hawserv1.Map) bool {
	return m.GetMaxEntries() > 0 && !strings.HasSuffix(m.GetType(), "Array") && m.GetType() != "RingBuf"
}

func (s *nodeState) emitRows(emit metrics.Emit) {
	states := map[string]int{stateReady: 0}
	for _, e := range s.endpoints.GetEndpoints() {
		states[e.GetState()]++
	}
	for state, n := range states {
		emit("hawser_endpoints", float64(n), state)
	}
	clusters := map[string]int{}
	for _, e := range s.ipcache.GetEntries() {
		clusters[e.GetCluster()]++
	}
	for cluster, n := range clusters {
		emit("hawser_ipcache_entries", float64(n), cluster)
	}
}

// healthy says why the node does not take new workloads yet. Losing the keyspace
// is no reason: the node goes on with what it knows.
func (a *Agent) healthy(context.Context) error {
	if !isClosed(a.ready) {
		return errors.New("the cluster's policies and identities are not known yet")
	}
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
