// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// What nodes enforce is what they said of this history's revisions, and no more.
func TestRollouts(t *testing.T) {
	s := start(t, testConfig(t))
	if _, err := s.ApplyPolicy(t.Context(), &hawserv1.ApplyPolicyRequest{Source: rule}); err != nil {
		t.Fatal(err)
	}
	kv, _, err := s.kv.Get(t.Context(), s.policyKey("_", "l3-rule").String())
	if err != nil || kv == nil {
		t.Fatal(kv, err)
	}
	for node, st := range map[string]*keyspacev1.NodeStatus{
		"n1": {Incarnation: s.incarnation, PolicyScope: "mesh", PolicyMode: "always", PolicyAudit: true, PolicyProblems: map[string]string{"_/l3-rule": "in part", "_/gone": "x"}, Enforced: map[string]int64{"policies": kv.ModRevision}},
		"n2": {Incarnation: s.incarnation, Enforced: map[string]int64{"policies": kv.ModRevision - 1}},
		"n3": {Incarnation: "another", Enforced: map[string]int64{"policies": kv.ModRevision + 100}},
		"n4": nil, // has not said anything
	} {
		storeRecord(t, s, kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, node), &keyspacev1.Node{Name: node, Cluster: "east"})
		if st != nil {
			st.Node = node
			storeRecord(t, s, kvstore.NewKey(kvstore.Local, "east", kvstore.KindStatus, node), st)
		}
	}
	r, err := s.ListPolicies(t.Context(), &hawserv1.ListPoliciesRequest{})
	if err != nil || len(r.GetNodes()) != 4 {
		t.Fatal(r, err)
	}
	for i, want := range []string{"", "_/l3-rule", "_/l3-rule", "_/l3-rule"} {
		if n := r.GetNodes()[i]; strings.Join(n.GetMissing(), ",") != want {
			t.Errorf("%s misses %v, want %q", n.GetNode(), n.GetMissing(), want)
		}
	}
	if n := r.GetNodes()[0]; n.GetNode() != "n1" || n.GetScope() != "mesh" || n.GetMode() != "always" || !n.GetAudit() ||
		!maps.Equal(n.GetProblems(), map[string]string{"_/l3-rule": "in part"}) {
		t.Errorf("n1: %v", n)
	}
}

func TestListAddresses(t *testing.T) {
	s := start(t, testConfig(t))
	for cluster, e := range map[string]*keyspacev1.IPEntry{
		"east": {Prefix: "10.1.0.9/32", Identity: 65540, Node: "n1", Namespace: "demo", Workload: "echo"},
		"west": {Prefix: "10.1.0.10/32", Identity: 131080, Node: "w1"},
	} {
		storeRecord(t, s, kvstore.NewKey(kvstore.State, cluster, kvstore.KindIP, e.GetPrefix()), e)
	}
	r, err := s.ListAddresses(t.Context(), &hawserv1.ListAddressesRequest{})
	if err != nil || len(r.GetAddresses()) != 2 {
		t.Fatal(r, err)
	}
	a, b := r.GetAddresses()[0], r.GetAddresses()[1]
	if a.GetPrefix() != "10.1.0.9/32" || a.GetCluster() != "east" || a.GetNode() != "n1" || a.GetWorkload() != "demo/echo" || a.GetIdentity() != 65540 {
		t.Errorf("first %v", a)
	}
	if b.GetCluster() != "west" || b.GetWorkload() != "" {
		t.Errorf("second %v", b)
	}
}

// Who an API server is it says without etcd: the second one has not connected.
func TestDescribe(t *testing.T) {
	cfg := testConfig(t)
	s := start(t, cfg)
	r, err := s.Describe(t.Context(), &hawserv1.DescribeRequest{})
	if err != nil || r.GetCluster() != "east" || r.GetPkiDir() != filepath.Join(cfg.DataDir, "pki") || r.GetEtcdMode() != modeEmbedded ||
		len(r.GetEtcdEndpoints()) != 1 || !strings.HasPrefix(r.GetEtcdEndpoints()[0], "https://127.0.0.1:") {
		t.Errorf("%v, %v", r, err)
	}
	external := testConfig(t)
	external.Etcd = EtcdConfig{Endpoints: []string{"https://192.0.2.1:2379"}, TLSDir: "/etc/hawser/etcd", Shared: true}
	if r, err := newServer(external).Describe(t.Context(), &hawserv1.DescribeRequest{}); err != nil || r.GetEtcdMode() != modeShared || r.GetEtcdTlsDir() != "/etc/hawser/etcd" {
		t.Errorf("%v, %v", r, err)
	}
}
