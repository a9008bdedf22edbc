// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/kvstore"
)

// What a node was given it has after a restart without asking; what another
// enrolment, node or cluster was given it has not.
func TestPodCIDRIsRemembered(t *testing.T) {
	cidr := netip.MustParsePrefix("10.1.2.0/24")
	cfg := Config{Cluster: "east", Node: "n1", StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	mine := given{Cluster: "east", Node: "n1", Enrolment: "a"}
	if got, err := cfg.rememberedPodCIDR(mine); err != nil || got.CIDR.IsValid() {
		t.Errorf("without a file: %v, %v", got, err)
	}
	kept := mine
	kept.CIDR = cidr
	if err := cfg.rememberPodCIDR(kept); err != nil {
		t.Fatal(err)
	}
	again := cfg
	if err := again.ownPodCIDR(t.Context(), &enrol.State{TokenID: "a"}); err != nil || again.PodCIDR != cidr {
		t.Errorf("after a restart: %v, %v", again.PodCIDR, err)
	}
	for _, other := range []given{{Cluster: "west", Node: "n1", Enrolment: "a"}, {Cluster: "east", Node: "n2", Enrolment: "a"}, {Cluster: "east", Node: "n1", Enrolment: "b"}} {
		if got, err := cfg.rememberedPodCIDR(other); err != nil || got.CIDR.IsValid() {
			t.Errorf("%+v has %v, %v", other, got, err)
		}
	}
	for _, bad := range []string{"", "{", `{"cidr":"10.1.2.0"}`} {
		if err := os.WriteFile(cfg.givenFile(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := cfg.rememberedPodCIDR(mine); err == nil || got.CIDR.IsValid() {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	told := Config{PodCIDR: cidr}
	if err := told.ownPodCIDR(t.Context(), nil); err != nil || told.PodCIDR != cidr {
		t.Errorf("told: %v, %v", told.PodCIDR, err)
	}
}

// keys are an etcd with these values.
type keys map[string][]byte

func (k keys) Get(_ context.Context, key string) (*kvstore.KV, int64, error) {
	if v, ok := k[key]; ok {
		return &kvstore.KV{Key: key, Value: v}, 1, nil
	}
	return nil, 1, nil
}

func (k keys) put(t *testing.T, key kvstore.Key, m proto.Message) {
	t.Helper()
	v, err := kvstore.Encode(key, m)
	if err != nil {
		t.Fatal(err)
	}
	k[key.String()] = v
}

// A node waits until it has a range of each family that its cluster has.
func TestPodCIDROfDecisions(t *testing.T) {
	c := Config{Cluster: "east", Node: "n1"}
	key := kvstore.NewKey(kvstore.Local, "east", kvstore.KindNodeConfig, "n1")
	both, v4 := []string{"10.1.0.0/16", "fd00:1::/48"}, []string{"10.1.0.0/16"}
	for _, x := range []struct{ cluster, node, want []string }{
		{v4, nil, nil},
		{v4, []string{"10.1.2.0/24", "10.1.3.0/24"}, []string{"10.1.2.0/24"}},
		{v4, []string{"fd00::/64"}, nil},
		{v4, []string{"10.1.2.0/24", "fd00:1::/64"}, []string{"10.1.2.0/24"}}, // it had IPv6 once
		{both, []string{"10.1.2.0/24"}, nil},
		{both, []string{"fd00:1::/64", "10.1.2.0/24"}, []string{"10.1.2.0/24", "fd00:1::/64"}},
		{nil, []string{"10.1.2.0/24"}, nil}, // what the cluster has is not known
	} {
		store := keys{}
		if x.cluster != nil {
			store.put(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster), &keyspacev1.Cluster{
				Name: "east", Id: 1, PodCidrs: x.cluster, Mesh: &keyspacev1.MeshParameters{ClusterBits: 8},
			})
		}
		if x.node != nil {
			store.put(t, key, &keyspacev1.NodeConfig{Node: "n1", PodCidrs: x.node})
		}
		four, six, err := c.decided(t.Context(), store, key)
		var got []string
		for _, p := range []netip.Prefix{four, six} {
			if p.IsValid() {
				got = append(got, p.String())
			}
		}
		if err != nil || !slices.Equal(got, x.want) {
			t.Errorf("cluster %v, node %v: %v, %v; want %v", x.cluster, x.node, got, err, x.want)
		}
	}
	other := kvstore.NewKey(kvstore.Local, "east", kvstore.KindNodeConfig, "n2")
	store := keys{}
	store.put(t, other, &keyspacev1.NodeConfig{Node: "n2", PodCidrs: v4})
	store[key.String()] = store[other.String()]
	if got, err := recordAt[*keyspacev1.NodeConfig](t.Context(), store, key); err == nil {
		t.Errorf("another node's record: %v", got)
	}
}

// An IPv6 range that comes later is kept for the next start; a node that was told
// its ranges takes no other.
func TestIPv6RangeThatComesLater(t *testing.T) {
	cidr := netip.MustParsePrefix("10.1.2.0/24")
	for name, told := range map[string]bool{"given": false, "told": true} {
		cfg := Config{Cluster: "east", Node: "n1", StateDir: t.TempDir(), PodCIDR: cidr, Log: slog.New(slog.DiscardHandler)}
		if !told {
			cfg.given = given{Cluster: "east", Node: "n1", CIDR: cidr}
		}
		p := &publisher{cfg: &cfg, log: cfg.Log}
		p.noteRange([]string{"10.1.2.0/24"})
		if len(p.problems()) != 0 {
			t.Errorf("%s, no IPv6: %v", name, p.problems())
		}
		p.noteRange([]string{"10.1.2.0/24", "fd00:1:0:2::/64"})
		if got := len(p.problems()); (got == 1) == told {
			t.Errorf("%s: %d problems", name, got)
		}
		next := Config{Cluster: "east", Node: "n1", StateDir: cfg.StateDir, Log: cfg.Log}
		if told {
			next.PodCIDR = cidr
		}
		if err := next.ownPodCIDR(t.Context(), nil); err != nil || next.PodCIDR != cidr || next.PodCIDR6.IsValid() == told {
			t.Errorf("%s, next start: %s and %s, %v", name, next.PodCIDR, next.PodCIDR6, err)
		}
		if a := next.nodeAddress6(); !told && a != netip.MustParseAddr("fd00:1:0:2::1") || told && a.IsValid() {
			t.Errorf("%s: the node's own IPv6 address is %s", name, a)
		}
	}
}
