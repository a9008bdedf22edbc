// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/metrics"
	"github.com/hawser-mesh/hawser/observe/metrics/metricstest"
	"github.com/hawser-mesh/hawser/observe/stages"
)

func TestEveryDocumentedMetricExists(t *testing.T) {
	var kinds []string
	for _, k := range kvstore.PublicKinds {
		kinds = append(kinds, string(k))
	}
	c := clusterState{
		status: &hawserv1.ClusterStatusReport{EtcdNoSpace: true, IdentityMin: 256, IdentityMax: 511, IdentitiesFree: 12, QuotaBytes: 8 << 30, Version: "v1", Keys: 12, DatabaseBytes: 4096, Revision: 9,
			PodRanges: []*hawserv1.PodRange{{Pool: "10.1.0.0/16", Nodes: 2, Free: 254}}},
		mesh: &hawserv1.MeshStatusResponse{Peers: []*hawserv1.PeerStatus{
			{
				SyncedKinds: kinds, NodesUnreachable: 1, Name: "west", State: "connected", Data: "fresh", LagEvents: 2, LagSeconds: 0.5, LagP50Seconds: 0.001, LagP99Seconds: 0.009,
				KeysByKind: map[string]uint64{"ips": 7}, Refused: map[string]uint64{"range": 3}, ChangesReceived: 11, SnapshotsSent: 1,
				ResumesReceived: 4, CertificateExpiresAt: int64(8 * time.Second),
			},
			{Name: "north", State: "lost", Data: "stale", SyncedKinds: kinds[1:]},
		}},
		nodes:   &hawserv1.ListNodesResponse{Nodes: []*hawserv1.NodeInfo{{Cluster: "east", State: nodePresent, Health: "alive"}, {Cluster: "east", State: nodePresent, Health: "dead"}}},
		members: map[liveness.Witness]int{liveness.Up: 3, liveness.Down: 1}, gossipRefused: 2,
		verdicts: map[string]uint64{"dead": 1}, putBacks: map[kvstore.Kind]uint64{kvstore.KindCluster: 1},
		certs: map[string]time.Time{"ca": time.Unix(6, 0)}, refused: 5, handshakes: map[string]uint64{"authority": 4},
	}
	kept := newTimers()
	kept.etcd.Observe("get", "ok", time.Millisecond)
	kept.etcd.Observe("watch", "compacted", time.Hour)
	kept.stage("west", stages.Apply, 3*time.Millisecond)
	source := func(_ context.Context, emit metrics.Emit) error { c.emit(emit); return nil }
	got := metricstest.Gather(t, Metrics(), metrics.NewCollector(Metrics(), source, testConfig(t).Log, kept.kept()...))
	for _, reason := range federation.Reasons() {
		sample := fmt.Sprintf(`hawser_federation_refused_total{reason=%q,target_cluster="north"}`, reason)
		if n, there := got[sample]; !there || n != 0 {
			t.Errorf("%s is %v, there: %v; want 0 before the first refusal", sample, n, there)
		}
	}
	for sample, want := range map[string]float64{
		`hawser_etcd_database_bytes`: 4096, `hawser_etcd_quota_bytes`: 8 << 30, `hawser_nodes{state="present",target_cluster="east"}`: 2,
		`hawser_node_health{health="dead",target_cluster="east"}`: 1, `hawser_gossip_members{process="up"}`: 3, `hawser_gossip_refused_total`: 2,
		`hawser_pod_ranges{pool="10.1.0.0/16",state="free"}`: 254, `hawser_node_health_changes_total{health="dead"}`: 1,
		`hawser_federation_connected{target_cluster="west"}`: 1, `hawser_federation_connected{target_cluster="north"}`: 0,
		`hawser_federation_stale{target_cluster="north"}`: 1, `hawser_federation_stale{target_cluster="west"}`: 0,
		`hawser_federation_refused_total{reason="range",target_cluster="west"}`:         3,
		`hawser_federation_changes_total{direction="received",target_cluster="west"}`:   11,
		`hawser_federation_snapshots_total{direction="sent",target_cluster="west"}`:     1,
		`hawser_federation_resumes_total{direction="received",target_cluster="west"}`:   4,
		`hawser_federation_apply_seconds{quantile="0.99",target_cluster="west"}`:        0.009,
		`hawser_federation_certificate_expiry_timestamp_seconds{target_cluster="west"}`: 8,
		`hawser_certificate_expiry_timestamp_seconds{certificate="ca"}`:                 6, `hawser_api_refused_total`: 5,
		`hawser_federation_keys{kind="ips",target_cluster="west"}`: 7,
		`hawser_federation_synced{target_cluster="west"}`:          1, `hawser_federation_synced{target_cluster="north"}`: 0,
		`hawser_federation_handshakes_refused_total{reason="authority"}`: 4,
		`hawser_etcd_no_space`: 1, `hawser_identities_free`: 12, `hawser_identities_max`: 255,
		`hawser_etcd_operations_total{operation="get",result="ok"}`: 1, `hawser_etcd_operations_total{operation="watch",result="compacted"}`: 1,
		`hawser_etcd_operation_seconds_count{operation="get"}`: 1, `hawser_etcd_operation_seconds_count{operation="watch"}`: 0,
		`hawser_propagation_seconds_count{stage="apply",target_cluster="west"}`: 1, `hawser_propagation_seconds_sum{stage="apply",target_cluster="west"}`: 0.003,
	} {
		if got[sample] != want {
			t.Errorf("%s is %v, want %v", sample, got[sample], want)
		}
	}
}

func TestScrape(t *testing.T) {
	s := startPort(t)
	h := metrics.Handler(metrics.NewCollector(Metrics(), s.metricsSource(), s.log, s.timers.kept()...), s.healthy)
	fetch := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
		return w.Code, w.Body.String()
	}
	code, text := fetch("/metrics")
	for _, want := range []string{"hawser_etcd_keys ", `hawser_certificate_expiry_timestamp_seconds{certificate="apiserver"}`, "go_goroutines ", "process_resident_memory_bytes "} {
		if code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("scrape: %d, without %q", code, want)
		}
	}
	if code, text := fetch("/healthz"); code != http.StatusOK || text != "ok\n" {
		t.Errorf("health: %d %q", code, text)
	}
	s.etcd.Close()
	if code, text := fetch("/healthz"); code != http.StatusServiceUnavailable || len(text) < 5 {
		t.Errorf("health without etcd: %d %q", code, text)
	}
}
