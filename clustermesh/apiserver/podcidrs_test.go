// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// come makes nodes present, in the store and as the API server knows it.
func (s *Server) come(t *testing.T, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		s.write(t, kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, n), &keyspacev1.Presence{Node: n})
		s.watchman.present[n] = true
	}
}

func (s *Server) rangesOf(t *testing.T, node string) string {
	t.Helper()
	r, _, err := get[*keyspacev1.NodeConfig](t.Context(), s, s.nodeConfigKey(node))
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.podCIDROwners(t.Context())
	if told := r.msg.GetPodCidrs(); err != nil || !slices.Equal(own.of(node), told) {
		t.Errorf("%s owns %v and was told %v, %v", node, own.of(node), told, err)
	}
	return strings.Join(r.msg.GetPodCidrs(), ",")
}

func registrarOf(t *testing.T, size int, pools ...string) (s *Server, step func()) {
	t.Helper()
	cfg := testConfig(t)
	cfg.PodCIDRs, cfg.PodCIDRSize = nil, size
	for _, p := range pools {
		cfg.PodCIDRs = append(cfg.PodCIDRs, netip.MustParsePrefix(p))
	}
	s = start(t, cfg)
	r := &registrar{s: s, decided: newDecisions()}
	return s, func() {
		t.Helper()
		if err := r.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A node that was told its range by its operator is given none while it has not
// announced that one yet.
func TestNoPodCIDRBesideOnesOwn(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/22")
	s.write(t, kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, "n1"), &keyspacev1.Presence{Node: "n1", HasPodCidr: true})
	s.watchman.present["n1"] = true
	s.come(t, "n2")
	step()
	if one, two := s.rangesOf(t, "n1"), s.rangesOf(t, "n2"); one != "" || two != "10.1.0.0/24" {
		t.Errorf("n1 was given %q, n2 %q", one, two)
	}
}

// The same holds for IPv6: a node that brings its own range is given none beside
// it, one that brings an IPv4 range alone is given an IPv6 one.
func TestNoIPv6PodCIDRBesideOnesOwn(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/22", "fd00:10:1::/48")
	for name, brings := range map[string]*keyspacev1.Presence{
		"n1": {Node: "n1", HasPodCidr: true, HasPodCidr6: true},
		"n2": {Node: "n2", HasPodCidr: true},
	} {
		s.write(t, kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, name), brings)
		s.watchman.present[name] = true
	}
	step()
	if one, two := s.rangesOf(t, "n1"), s.rangesOf(t, "n2"); one != "" || two != "fd00:10:1::/64" {
		t.Errorf("n1 was given %q, n2 %q", one, two)
	}
	s.write(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, "n1"),
		&keyspacev1.Node{Name: "n1", Cluster: "east", PodCidrs: []string{"10.1.0.0/24", "fd00:10:1:1::/64"}})
	step()
	if one := s.rangesOf(t, "n1"); one != "10.1.0.0/24,fd00:10:1:1::/64" || len(s.ranges.problems()) != 0 {
		t.Errorf("n1 owns %q, problems %v; want what it announces", one, s.ranges.problems())
	}
}

// Each node that comes without a range gets one that is nobody's, which it keeps
// until it is forgotten; what an operator told a node counts as taken.
func TestPodCIDRs(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/22")
	if err := s.openEnrolment(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.come(t, "n1")
	step()
	s.writeNode(t, "n5", "10.1.1.0/25")
	step()
	s.come(t, "n2", "n3", "n4")
	step()
	want := map[string]string{"n1": "10.1.0.0/24", "n5": "10.1.1.0/25", "n2": "10.1.2.0/24", "n3": "10.1.3.0/24", "n4": ""}
	check := func() {
		t.Helper()
		for n, r := range want {
			if got := s.rangesOf(t, n); got != r {
				t.Errorf("%s has %q, want %q", n, got, r)
			}
		}
	}
	check()
	if p := s.ranges.problems(); len(p) != 1 || p[0].GetObject() != "node n4" || !strings.Contains(p[0].GetProblem(), "no free range") {
		t.Errorf("problems %v", p)
	}
	step()
	check()
	// Absence frees nothing; what a node was told is repaired.
	maps.DeleteFunc(s.watchman.present, func(n string, _ bool) bool { return n == "n2" })
	if _, err := s.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Delete(s.nodeConfigKey("n2").String())}, nil); err != nil {
		t.Fatal(err)
	}
	step()
	check()
	if _, err := s.ForgetNode(t.Context(), &hawserv1.ForgetNodeRequest{Node: "n2", Force: true}); err != nil {
		t.Fatal(err)
	}
	step()
	want["n2"], want["n4"] = "", "10.1.2.0/24"
	check()
	if p := s.ranges.problems(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

// With an IPv6 range, each node has a range of it too, also one that came before
// there was one; a family that is full keeps nobody from the other.
func TestPodCIDRsOfBothFamilies(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/16")
	s.come(t, "n1")
	step()
	s.writeNode(t, "n1", "10.1.0.0/24")
	if got := s.rangesOf(t, "n1"); got != "10.1.0.0/24" {
		t.Fatalf("without an IPv6 range n1 has %q", got)
	}
	s.cfg.PodCIDRs = append(s.cfg.PodCIDRs, netip.MustParsePrefix("fd00:1::/63"))
	s.come(t, "n2")
	step()
	s.come(t, "n3")
	step()
	for n, want := range map[string]string{
		"n1": "10.1.0.0/24,fd00:1::/64", "n2": "10.1.1.0/24,fd00:1:0:1::/64", "n3": "10.1.2.0/24",
	} {
		if got := s.rangesOf(t, n); got != want {
			t.Errorf("%s has %q, want %q", n, got, want)
		}
	}
	p := s.ranges.problems()
	if len(p) != 1 || p[0].GetObject() != "node n3" || !strings.Contains(p[0].GetProblem(), "IPv6 pod CIDR") || !strings.Contains(p[0].GetFix(), "--pod-cidr-size-ipv6") {
		t.Errorf("problems %v", p)
	}
	// What another announces is not given.
	s.cfg.PodCIDRs[1] = netip.MustParsePrefix("fd00:1::/62")
	s.writeNode(t, "n9", "fd00:1:0:2::/64")
	step()
	if got := s.rangesOf(t, "n3"); got != "10.1.2.0/24,fd00:1:0:3::/64" {
		t.Errorf("n3 has %q", got)
	}
}

// A range that a node announces but another owns stays the other's, and is said.
func TestPodCIDRClash(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/16")
	s.come(t, "n1")
	step()
	s.writeNode(t, "n2", "10.1.0.128/25")
	step()
	if a, b := s.rangesOf(t, "n1"), s.rangesOf(t, "n2"); a != "10.1.0.0/24" || b != "" {
		t.Errorf("n1 has %q, n2 %q", a, b)
	}
	if p := s.ranges.problems(); len(p) != 1 || p[0].GetObject() != "node n2" || !strings.Contains(p[0].GetProblem(), "belongs to node n1") {
		t.Errorf("problems %v", p)
	}
}

// A node that went while it was being given a range gets none: it may have been
// forgotten.
func TestPodCIDROfNodeThatWent(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/16")
	s.watchman.present["n1"] = true // and not in the store
	step()
	if got := s.rangesOf(t, "n1"); got != "" {
		t.Errorf("n1 has %q", got)
	}
}

// A drained node stays drained when its ranges change.
func TestNodeConfigKeepsTheRest(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/16")
	s.write(t, s.nodeConfigKey("n1"), &keyspacev1.NodeConfig{Node: "n1", Drained: true, DrainedSince: 1})
	s.come(t, "n1")
	step()
	r, _, err := get[*keyspacev1.NodeConfig](t.Context(), s, s.nodeConfigKey("n1"))
	if err != nil || !r.msg.GetDrained() || len(r.msg.GetPodCidrs()) != 1 {
		t.Errorf("%v, %v", r.msg, err)
	}
}

// The leader serves nodes that come by themselves.
func TestLeaderGivesPodCIDRs(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenEtcd = port(t)
	api, _ := serve(t, cfg)
	answers(t, api)
	kv := agentOf(t, cfg, "n1", cfg.ListenEtcd.String())
	key := kvstore.NewKey(kvstore.Local, "east", kvstore.KindPresence, "n1")
	value, err := kvstore.Encode(key, &keyspacev1.Presence{Node: "n1"})
	if err == nil {
		_, err = kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(key.String(), value)}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, patience, "n1 has a range", func() bool {
		v, _, err := kv.Get(context.Background(), kvstore.NewKey(kvstore.Local, "east", kvstore.KindNodeConfig, "n1").String())
		if err != nil || v == nil {
			return false
		}
		r, err := decode[*keyspacev1.NodeConfig](*v)
		return err == nil && slices.Equal(r.msg.GetPodCidrs(), []string{"10.1.0.0/24"})
	})
}

// A node keeps what it announces only inside the cluster's pools, and not most of
// one; what is left is counted.
func TestAnnouncedRangesStayInside(t *testing.T) {
	s, step := registrarOf(t, 24, "fd00::/48", "10.1.0.0/16")
	for node, p := range map[string]string{
		"n1": "10.1.0.0/24", "n2": "10.1.16.0/20", "n3": "fd00:0:0:1::/64",
		"n5": "10.9.0.0/24", "n6": "10.1.128.0/17", "n7": "fd00::/50", "n8": "10.0.0.0/8",
	} {
		s.writeNode(t, node, p)
	}
	step()
	for node, want := range map[string]string{
		"n1": "10.1.0.0/24", "n2": "10.1.16.0/20", "n3": "fd00:0:0:1::/64", "n5": "", "n6": "", "n7": "", "n8": "",
	} {
		if got := s.rangesOf(t, node); got != want {
			t.Errorf("%s has %q, want %q", node, got, want)
		}
	}
	problems := map[string]string{}
	for _, p := range s.ranges.problems() {
		if problems[p.GetObject()] = p.GetProblem(); p.GetFix() == "" {
			t.Errorf("no next step: %v", p)
		}
	}
	for node, says := range map[string]string{
		"node n5": "not of the cluster's ranges", "node n6": "too large: a node has at most a /20",
		"node n7": "too large: a node has at most a /56", "node n8": "not of the cluster's ranges",
	} {
		if !strings.Contains(problems[node], says) {
			t.Errorf("%s: %q, want %q", node, problems[node], says)
		}
	}
	if len(problems) != 4 {
		t.Errorf("problems %v", problems)
	}
	left, err := s.podRanges(t.Context())
	if err != nil || len(left) != 2 || left[1].GetNodes() != 2 || left[1].GetFree() != 256-1-16 || left[1].GetNodeBits() != 24 {
		t.Errorf("%v %v", left, err)
	} else if left[0].GetNodes() != 1 || left[0].GetFree() != 65536-1 || left[0].GetNodeBits() != 64 {
		t.Errorf("IPv6: %v", left[0])
	}
}
