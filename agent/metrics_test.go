// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/agent/dns"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/observe/metrics"
	"github.com/hawser-mesh/hawser/observe/metrics/metricstest"
	"github.com/hawser-mesh/hawser/observe/stages"
)

func TestEveryDocumentedMetricExists(t *testing.T) {
	s := nodeState{
		status: &hawserv1.NodeStatusReport{
			Version: "v1", StartedAt: int64(3 * time.Second), Keyspace: &hawserv1.KeyspaceStatus{Connected: true, Revision: 77},
			Pools:  []*hawserv1.AddressPool{{Prefix: "10.1.1.0/24", Used: 3, Free: 250}},
			Tables: []*hawserv1.TableStatus{{Name: "ipcache", Entries: 4, Revision: 9, Reconciled: 7}, {Name: "nodes", LastError: "full"}},
		},
		drops: &hawserv1.ListDropsResponse{Drops: []*hawserv1.DropCounter{
			{Reason: "forwarded", Direction: "ingress", Program: "from_pod", Packets: 10, Bytes: 1000},
			{Reason: "policy denied", Direction: "egress", Program: "from_pod", Packets: 3, Bytes: 300},
		}},
		maps:      &hawserv1.ListMapsResponse{Maps: []*hawserv1.Map{{Name: "ct", Entries: 25, MaxEntries: 100}, {Name: "nodes", Type: "Array", Entries: 4, MaxEntries: 4}}},
		endpoints: &hawserv1.ListEndpointsResponse{Endpoints: []*hawserv1.Endpoint{{State: stateReady}, {State: stateReady}}},
		ipcache:   &hawserv1.ListIPCacheResponse{Entries: []*hawserv1.IPCacheEntry{{Cluster: "west"}, {}}},
		dns: &dns.Status{
			Listening: "10.0.0.1:53", Answers: map[dns.AnswerKey]uint64{{Kind: dns.KindMesh, Rcode: "NOERROR", Transport: "udp"}: 6},
			Refused: map[string]uint64{"source": 2}, Forwards: 3, ForwardFailed: 1, ForwardTime: 1500 * time.Millisecond,
		},
		paths: []*hawserv1.NodePath{
			{Cluster: "west", Node: "w1", Path: "up", RttSeconds: 0.001, Sent: 9, Answered: 8, Chosen: true, Mtu: 1400, FullMtu: 1500},
			{Cluster: "west", Node: "w2", Path: "returning", Why: "path down"}, {Cluster: "west", Node: "w3", Why: "dead"},
		},
		watch:    watchCounters{forged: 4, gossipRefused: 6, paused: time.Second},
		complete: true, certs: map[string]time.Time{"node": time.Unix(5, 0)},
	}
	kept := newTimers()
	kept.etcd.Observe("list", "denied", time.Millisecond)
	kept.refused.Add("range")
	kept.stage("west", stages.Total, 20*time.Millisecond)
	source := func(_ context.Context, emit metrics.Emit) error { s.emit(emit); return nil }
	got := metricstest.Gather(t, Metrics(), metrics.NewCollector(Metrics(), source, slog.New(slog.DiscardHandler), kept.kept()...))
	if _, there := got[`hawser_map_pressure_ratio{map="nodes"}`]; there {
		t.Error("an array has a pressure")
	}
	for _, reason := range []string{"key", "decode", "mismatch", "labels", "address", "size", "grant"} {
		sample := fmt.Sprintf(`hawser_keyspace_refused_total{reason=%q}`, reason)
		if n, there := got[sample]; !there || n != 0 {
			t.Errorf("%s is %v, there: %v; want 0 before the first refusal", sample, n, there)
		}
	}
	for sample, want := range map[string]float64{
		`hawser_build_info{version="v1"}`: 1, `hawser_start_timestamp_seconds`: 3, `hawser_keyspace_connected`: 1, `hawser_keyspace_revision`: 77,
		`hawser_table_lag_revisions{table="ipcache"}`: 2, `hawser_table_failing{table="nodes"}`: 1, `hawser_table_failing{table="ipcache"}`: 0,
		`hawser_forward_packets_total{direction="ingress",program="from_pod"}`:                    10,
		`hawser_drop_packets_total{direction="egress",program="from_pod",reason="policy denied"}`: 3,
		`hawser_map_pressure_ratio{map="ct"}`:                                                     0.25, `hawser_endpoints{state="ready"}`: 2, `hawser_ipcache_entries{target_cluster="west"}`: 1,
		`hawser_dns_listening`: 1, `hawser_dns_answers_total{rcode="NOERROR",source="mesh",transport="udp"}`: 6,
		`hawser_dns_refused_total{reason="source"}`: 2, `hawser_dns_forwards_total`: 3, `hawser_dns_forward_failures_total`: 1, `hawser_dns_forward_seconds_total`: 1.5,
		`hawser_path_up{target_cluster="west",target_node="w1"}`: 1, `hawser_path_up{target_cluster="west",target_node="w2"}`: 0,
		`hawser_path_mtu_bytes{target_cluster="west",target_node="w1"}`: 1400, `hawser_ipam_addresses{pool="10.1.1.0/24",state="free"}`: 250,
		`hawser_path_answers_total{target_cluster="west",target_node="w1"}`: 8, `hawser_path_refused_total`: 4, `hawser_gossip_refused_total`: 6,
		`hawser_path_paused_seconds_total`: 1, `hawser_nodes_passed_over{target_cluster="west",why="dead"}`: 1,
		`hawser_etcd_operations_total{operation="list",result="denied"}`: 1, `hawser_etcd_operation_seconds_count{operation="list"}`: 1,
		`hawser_keyspace_refused_total{reason="range"}`:                       1,
		`hawser_propagation_seconds_sum{stage="total",target_cluster="west"}`: 0.02,
		`hawser_mesh_complete`: 1, `hawser_certificate_expiry_timestamp_seconds{certificate="node"}`: 5,
	} {
		if got[sample] != want {
			t.Errorf("%s is %v, want %v", sample, got[sample], want)
		}
	}
}
