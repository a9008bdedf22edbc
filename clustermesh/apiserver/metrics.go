// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/metrics"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// healthTimeout bounds a question to etcd about its health.
const healthTimeout = 3 * time.Second

// Metrics documents what an API server serves on --metrics-listen.
func Metrics() []metrics.Def {
	peer := []string{"target_cluster"}
	way := []string{"target_cluster", "direction"}
	g, c := metrics.Gauge, metrics.Counter
	return slices.Concat([]metrics.Def{
		{Name: "hawser_build_info", Help: "Always 1; the label says which version runs.", Kind: g, Labels: []string{"version"}},
		{Name: "hawser_start_timestamp_seconds", Help: "When the API server started.", Kind: g},
		{Name: "hawser_etcd_keys", Help: "Keys of the keyspace.", Kind: g},
		{Name: "hawser_etcd_database_bytes", Help: "Size of etcd's database on disk.", Kind: g},
		{Name: "hawser_etcd_quota_bytes", Help: "Size of the database at which etcd stops taking writes.", Kind: g},
		{Name: "hawser_etcd_revision", Help: "Revision of etcd.", Kind: g},
		{Name: "hawser_nodes", Help: "Nodes by cluster and state: present, absent, remote, unreadable.", Kind: g, Labels: []string{"target_cluster", "state"}},
		{Name: "hawser_node_health", Help: "Nodes by cluster and health, as their own cluster judges: alive, agent down, suspect, dead, unknown.", Kind: g, Labels: []string{"target_cluster", "health"}},
		{Name: "hawser_nodes_unreachable", Help: "Nodes of a peer that some node of this cluster probes and none reaches.", Kind: g, Labels: peer},
		{Name: "hawser_gossip_members", Help: "Agents and API servers of this cluster that gossip has met, by what it says of them now: up, down.", Kind: g, Labels: []string{"process"}},
		{Name: "hawser_gossip_refused_total", Help: "Gossip messages refused: a wrong key, none, or another cluster's.", Kind: c},
		{Name: "hawser_pod_ranges", Help: "Ranges of a pool of pod addresses: used (nodes that have one), free (that can still be handed out).", Kind: g, Labels: []string{"pool", "state"}},
		{Name: "hawser_node_health_changes_total", Help: "Verdicts on nodes of this cluster that this API server wrote, by the health that they gave.", Kind: c, Labels: []string{"health"}},
		{Name: "hawser_records_put_back_total", Help: "Records that only the API server writes (cluster, nodeconfig, synced; peers: the view of a peer) and that it put back, as the leader or the one that has the peer's stream, because somebody else had removed or changed them.", Kind: c, Labels: []string{"kind"}},
		{Name: "hawser_problems", Help: "Problems that `hawser status` shows for this cluster.", Kind: g},
		{Name: "hawser_certificate_expiry_timestamp_seconds", Help: "When a certificate ends: the API server's (apiserver) or the CA (ca).", Kind: g, Labels: []string{"certificate"}},
		{Name: "hawser_federation_connected", Help: "1 while the peer's stream is up.", Kind: g, Labels: peer},
		{Name: "hawser_federation_since_timestamp_seconds", Help: "When the peer's state last changed.", Kind: g, Labels: peer},
		{Name: "hawser_federation_synced", Help: "1 while all kinds of the peer's records are copied.", Kind: g, Labels: peer},
		{Name: "hawser_federation_stale", Help: "1 while the peer's data is not fresh.", Kind: g, Labels: peer},
		{Name: "hawser_federation_clock_offset_seconds", Help: "The peer's clock minus ours, by the quickest of the last heartbeats.", Kind: g, Labels: peer},
		{Name: "hawser_federation_unacknowledged_seconds", Help: "How long the peer has not acknowledged what was sent to it; 0 when nothing is due.", Kind: g, Labels: peer},
		{Name: "hawser_federation_keys", Help: "Keys of the peer held here, by kind.", Kind: g, Labels: []string{"target_cluster", "kind"}},
		{Name: "hawser_federation_lag_events", Help: "Changes of the peer that are not applied here yet.", Kind: g, Labels: peer},
		{Name: "hawser_federation_lag_seconds", Help: "How far the copy of the peer is behind now.", Kind: g, Labels: peer},
		{Name: "hawser_federation_apply_seconds", Help: "From a change at the peer to its being applied here, over the last five minutes, by quantile.", Kind: g, Labels: []string{"target_cluster", "quantile"}},
		{Name: "hawser_federation_changes_total", Help: "Changes received from or sent to the peer.", Kind: c, Labels: way},
		{Name: "hawser_federation_snapshots_total", Help: "Full copies received from or sent to the peer.", Kind: c, Labels: way},
		{Name: "hawser_federation_resumes_total", Help: "Streams that went on where an earlier one ended, received or sent.", Kind: c, Labels: way},
		{Name: "hawser_federation_repairs_total", Help: "Copies of the peer that were made again because somebody else had changed them here.", Kind: c, Labels: peer},
		{Name: "hawser_federation_refused_total", Help: "Records of the peer that were refused, by reason.", Kind: c, Labels: []string{"target_cluster", "reason"}},
		{Name: "hawser_federation_certificate_expiry_timestamp_seconds", Help: "When the certificate that the peer shows ends.", Kind: g, Labels: peer},
		{Name: "hawser_federation_handshakes_refused_total", Help: "Connections to the federation port that were refused: certificate (none of a cluster's), stranger (of no peer), authority (another CA than the peer's), expired, role (no API server's), own (this cluster's), remote (the caller does not believe ours), timeout, tls, closed (the caller hung up, as a check of the port does).", Kind: c, Labels: []string{"reason"}},
		{Name: "hawser_api_refused_total", Help: "Calls on the API port that were refused for the caller's certificate.", Kind: c},
		{Name: "hawser_etcd_no_space", Help: "1 while etcd refuses writes because its database or its disk is full.", Kind: g},
		{Name: "hawser_identities_free", Help: "Identity numbers of this cluster that can still be given.", Kind: g},
		{Name: "hawser_identities_max", Help: "Identity numbers that this cluster has.", Kind: g},
	}, stages.APIServerDefs(), metrics.EtcdDefs())
}

// timers are what no API tells.
type timers struct {
	propagation *metrics.Timer
	etcd        *metrics.Etcd
}

func newTimers() *timers {
	return &timers{metrics.NewTimer(stages.APIServerDefs(), stages.Name), metrics.NewEtcd()}
}

func (t *timers) stage(peer string, s stages.Stage, took time.Duration) {
	t.propagation.Observe(took, peer, string(s))
}

func (t *timers) kept() []metrics.Kept { return append(t.etcd.Kept(), t.propagation) }

// clusterState is all that the metrics are made of.
type clusterState struct {
	status     *hawserv1.ClusterStatusReport
	mesh       *hawserv1.MeshStatusResponse
	nodes      *hawserv1.ListNodesResponse
	certs      map[string]time.Time
	refused    uint64
	handshakes map[string]uint64 // refused, by reason

	members       map[liveness.Witness]int
	gossipRefused uint64
	verdicts      map[string]uint64
	putBacks      map[kvstore.Kind]uint64
}

// metricsSource reads the cluster's state as its API shows it.
func (s *Server) metricsSource() metrics.Source {
	return func(ctx context.Context, emit metrics.Emit) error {
		c := clusterState{
			refused:    s.refused.Load(),
			handshakes: s.mesh.RefusedHandshakes(),
			certs:      map[string]time.Time{"apiserver": s.creds.expires(), "ca": s.creds.authority().Certificate().NotAfter},
		}
		c.members, c.gossipRefused = s.watchman.gossipState()
		c.verdicts = s.watchman.verdictCounts()
		c.putBacks = s.back.counts()
		var errs [3]error
		c.status, errs[0] = s.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
		c.mesh, errs[1] = s.MeshStatus(ctx, &hawserv1.MeshStatusRequest{})
		c.nodes, errs[2] = s.ListNodes(ctx, &hawserv1.ListNodesRequest{})
		c.emit(emit)
		return errors.Join(errs[:]...)
	}
}

func (c *clusterState) emit(emit metrics.Emit) {
	if r := c.status; r != nil {
		emit("hawser_build_info", 1, r.GetVersion())
		emit("hawser_start_timestamp_seconds", metrics.Timestamp(r.GetStartedAt()))
		emit("hawser_etcd_keys", float64(r.GetKeys()))
		emit("hawser_etcd_database_bytes", float64(r.GetDatabaseBytes()))
		emit("hawser_etcd_revision", float64(r.GetRevision()))
		emit("hawser_etcd_quota_bytes", float64(r.GetQuotaBytes()))
		emit("hawser_etcd_no_space", metrics.Bool(r.GetEtcdNoSpace()))
		emit("hawser_identities_free", float64(r.GetIdentitiesFree()))
		emit("hawser_identities_max", float64(r.GetIdentityMax()-r.GetIdentityMin()))
		emit("hawser_problems", float64(len(r.GetProblems())))
		for _, p := range r.GetPodRanges() {
			emit("hawser_pod_ranges", float64(p.GetNodes()), p.GetPool(), "used")
			emit("hawser_pod_ranges", float64(p.GetFree()), p.GetPool(), "free")
		}
	}
	emit("hawser_api_refused_total", float64(c.refused))
	for reason, n := range c.handshakes {
		emit("hawser_federation_handshakes_refused_total", float64(n), reason)
	}
	for name, end := range c.certs {
		emit("hawser_certificate_expiry_timestamp_seconds", float64(end.Unix()), name)
	}
	nodes := map[[2]string]int{}
	for _, n := range c.nodes.GetNodes() {
		nodes[[2]string{n.GetCluster(), n.GetState()}]++
	}
	for k, n := range nodes {
		emit("hawser_nodes", float64(n), k[0], k[1])
	}
	health := map[[2]string]int{}
	for _, n := range c.nodes.GetNodes() {
		health[[2]string{n.GetCluster(), cmp.Or(n.GetHealth(), "unknown")}]++
	}
	for k, n := range health {
		emit("hawser_node_health", float64(n), k[0], k[1])
	}
	for process, n := range c.members {
		emit("hawser_gossip_members", float64(n), process.String())
	}
	for health, n := range c.verdicts {
		emit("hawser_node_health_changes_total", float64(n), health)
	}
	for kind, n := range c.putBacks {
		emit("hawser_records_put_back_total", float64(n), string(kind))
	}
	emit("hawser_gossip_refused_total", float64(c.gossipRefused))
	for _, p := range c.mesh.GetPeers() {
		emitPeer(emit, p)
	}
}

func emitPeer(emit metrics.Emit, p *hawserv1.PeerStatus) {
	name := p.GetName()
	emit("hawser_nodes_unreachable", float64(p.GetNodesUnreachable()), name)
	emit("hawser_federation_connected", metrics.Bool(p.GetState() == peerConnected), name)
	emit("hawser_federation_since_timestamp_seconds", metrics.Timestamp(p.GetSince()), name)
	emit("hawser_federation_synced", metrics.Bool(len(p.GetSyncedKinds()) >= len(kvstore.PublicKinds)), name)
	emit("hawser_federation_stale", metrics.Bool(p.GetData() != "" && p.GetData() != dataFresh), name)
	emit("hawser_federation_clock_offset_seconds", p.GetClockOffsetSeconds(), name)
	emit("hawser_federation_unacknowledged_seconds", p.GetUnacknowledgedSeconds(), name)
	for kind, n := range p.GetKeysByKind() {
		emit("hawser_federation_keys", float64(n), name, kind)
	}
	emit("hawser_federation_lag_events", float64(p.GetLagEvents()), name)
	emit("hawser_federation_lag_seconds", p.GetLagSeconds(), name)
	emit("hawser_federation_apply_seconds", p.GetLagP50Seconds(), name, "0.5")
	emit("hawser_federation_apply_seconds", p.GetLagP99Seconds(), name, "0.99")
	for _, w := range []struct {
		direction                   string
		changes, snapshots, resumes uint64
	}{
		{"received", p.GetChangesReceived(), p.GetSnapshotsReceived(), p.GetResumesReceived()},
		{"sent", p.GetChangesSent(), p.GetSnapshotsSent(), p.GetResumesSent()},
	} {
		emit("hawser_federation_changes_total", float64(w.changes), name, w.direction)
		emit("hawser_federation_snapshots_total", float64(w.snapshots), name, w.direction)
		emit("hawser_federation_resumes_total", float64(w.resumes), name, w.direction)
	}
	emit("hawser_federation_repairs_total", float64(p.GetRepairs()), name)
	// From 0 on: what begins with its first refusal has no rate for that.
	refused := map[string]uint64{}
	for _, reason := range federation.Reasons() {
		refused[reason] = 0
	}
	maps.Copy(refused, p.GetRefused())
	for reason, n := range refused {
		emit("hawser_federation_refused_total", float64(n), name, reason)
	}
	if end := p.GetCertificateExpiresAt(); end != 0 {
		emit("hawser_federation_certificate_expiry_timestamp_seconds", metrics.Timestamp(end), name)
	}
}

// healthy asks etcd.
func (s *Server) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	if _, err := s.stats(ctx); err != nil {
		return err
	}
	return nil
}

// ReadMetrics implements hawserv1.MeshServer.
func (s *Server) ReadMetrics(context.Context, *hawserv1.ReadClusterMetricsRequest) (*hawserv1.ClusterMetricsText, error) {
	text, err := metrics.Text(metrics.NewCollector(Metrics(), s.metricsSource(), s.log, s.timers.kept()...))
	if err != nil {
		return nil, apiError(err)
	}
	return &hawserv1.ClusterMetricsText{Text: text}, nil
}
