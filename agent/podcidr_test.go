// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"net/netip"
	"os"
	"testing"

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
	if got, err := cfg.rememberedPodCIDR(mine); err != nil || got.IsValid() {
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
		if got, err := cfg.rememberedPodCIDR(other); err != nil || got.IsValid() {
			t.Errorf("%+v has %v, %v", other, got, err)
		}
	}
	for _, bad := range []string{"", "{", `{"cidr":"10.1.2.0"}`} {
		if err := os.WriteFile(cfg.givenFile(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := cfg.rememberedPodCIDR(mine); err == nil || got.IsValid() {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	told := Config{PodCIDR: cidr}
	if err := told.ownPodCIDR(t.Context(), nil); err != nil || told.PodCIDR != cidr {
		t.Errorf("told: %v, %v", told.PodCIDR, err)
	}
}

// The datapath carries pods' IPv4: of what a node is given, that is used.
func TestPodCIDROfDecisions(t *testing.T) {
	key := kvstore.NewKey(kvstore.Local, "east", kvstore.KindNodeConfig, "n1")
	for want, r := range map[string]*keyspacev1.NodeConfig{
		"10.1.2.0/24":    {Node: "n1", PodCidrs: []string{"fd00::/64", "10.1.2.0/24", "10.1.3.0/24"}},
		"invalid Prefix": {Node: "n1", PodCidrs: []string{"fd00::/64"}, Drained: true},
	} {
		value, err := kvstore.Encode(key, r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := podCIDROf(key, value); err != nil || got.String() != want {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
	}
	other, err := kvstore.Encode(kvstore.NewKey(kvstore.Local, "east", kvstore.KindNodeConfig, "n2"), &keyspacev1.NodeConfig{Node: "n2", PodCidrs: []string{"10.1.2.0/24"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := podCIDROf(key, other); err == nil {
		t.Errorf("another node's record: %v", got)
	}
}
