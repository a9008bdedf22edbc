// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

func dualConfig(t *testing.T) Config {
	cfg := testConfig(t)
	cfg.PodCIDRs = append(cfg.PodCIDRs, netip.MustParsePrefix("fd00:1::/48"))
	cfg.ServiceCIDRs = append(cfg.ServiceCIDRs, netip.MustParsePrefix("fd00:101::/126"))
	return cfg
}

func withSpec(name, spec string) string {
	return strings.Replace(manifest(name), "spec:\n", "spec:\n  "+spec+"\n", 1)
}

func vipsOf(t *testing.T, s *Server, name string) string {
	t.Helper()
	r, _, err := s.storedService(t.Context(), "demo", name)
	if err != nil {
		t.Fatal(err)
	}
	for _, vip := range r.msg.GetVips() {
		owner, found, err := get[*keyspacev1.VIPOwner](t.Context(), s, vipKey(vip))
		if err != nil || !found || owner.msg.GetName() != name {
			t.Errorf("%s of %s is owned by %v, %v", vip, name, owner.msg, err)
		}
	}
	id, _, err := get[*keyspacev1.ServiceID](t.Context(), s, s.serviceIDKey(r.msg))
	if got := strings.Join(r.msg.GetVips(), " "); err != nil || got != strings.Join(id.msg.GetVips(), " ") {
		t.Errorf("%s has %s, and by its number %v, %v", name, got, id.msg.GetVips(), err)
	}
	return strings.Join(r.msg.GetVips(), " ")
}

func TestServiceAddressesOfBothFamilies(t *testing.T) {
	s := start(t, dualConfig(t))
	for _, c := range []struct{ name, spec, want, err string }{
		{"both", "type: ClusterIP", "10.101.0.1 fd00:101::1", ""},
		{"one", "ipFamilyPolicy: SingleStack", "10.101.0.2", ""},
		{"six", "ipFamilies: [IPv6]", "fd00:101::2", ""},
		{"asked", "clusterIPs: ['fd00:101::3', 10.101.0.5]", "fd00:101::3 10.101.0.5", ""},
		{"taken", "clusterIP: 'fd00:101::3'", "", "belongs to service demo/asked"},
		{"outside", "clusterIP: 'fd00:102::3'", "", "not in the cluster's service ranges"},
		{"full", "ipFamilyPolicy: RequireDualStack", "", "all addresses of the service ranges [fd00:101::/126] are in use"},
	} {
		_, err := apply(t, s, withSpec(c.name, c.spec))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
			continue
		}
		if err != nil {
			if service(t, s, c.name) != nil {
				t.Errorf("%s is refused and stored", c.name)
			}
			continue
		}
		if got := vipsOf(t, s, c.name); got != c.want {
			t.Errorf("%s has %q, want %q", c.name, got, c.want)
		}
	}
	// An address goes with the family, and comes back with it; the other stays.
	if _, err := apply(t, s, withSpec("both", "ipFamilyPolicy: SingleStack")); err != nil || vipsOf(t, s, "both") != "10.101.0.1" {
		t.Errorf("made single: %q, %v", vipsOf(t, s, "both"), err)
	}
	if _, found, _ := get[*keyspacev1.VIPOwner](t.Context(), s, vipKey("fd00:101::1")); found {
		t.Error("the address that it gave back is still owned")
	}
	if a, err := apply(t, s, manifest("both")); err != nil || a.GetAction() != actionConfigured || vipsOf(t, s, "both") != "10.101.0.1 fd00:101::1" {
		t.Errorf("made dual: %q, %v, %v", vipsOf(t, s, "both"), a, err)
	}
	if a, err := apply(t, s, manifest("both")); err != nil || a.GetAction() != actionUnchanged {
		t.Errorf("again: %v, %v", a, err)
	}
	if _, err := apply(t, s, withSpec("both", "clusterIP: 'fd00:101::2'")); err == nil || !strings.Contains(err.Error(), "its address is fd00:101::1 and cannot change") {
		t.Errorf("another IPv6 address: %v", err)
	}
}

func TestFamiliesThatTheClusterHasNot(t *testing.T) {
	s := start(t, testConfig(t))
	for _, spec := range []string{"ipFamilies: [IPv6]", "ipFamilyPolicy: RequireDualStack"} {
		if _, err := apply(t, s, withSpec("a", spec)); err == nil || !strings.Contains(err.Error(), "--service-cidr") || service(t, s, "a") != nil {
			t.Errorf("%s: %v", spec, err)
		}
	}
	if _, err := apply(t, s, withSpec("a", "ipFamilyPolicy: PreferDualStack")); err != nil || vipsOf(t, s, "a") != "10.101.0.1" {
		t.Errorf("preferred: %q, %v", vipsOf(t, s, "a"), err)
	}
}

// A cluster that gets an IPv6 range gives its services addresses of it, but for
// those that want none.
func TestServicesGetTheFurtherFamily(t *testing.T) {
	s := start(t, testConfig(t))
	for name, spec := range map[string]string{"open": "type: ClusterIP", "single": "ipFamilyPolicy: SingleStack", "none": "clusterIP: None"} {
		if _, err := apply(t, s, withSpec(name, spec)); err != nil {
			t.Fatal(err)
		}
	}
	v := &vipKeeper{s: s, now: time.Now}
	before, single := vipsOf(t, s, "open"), vipsOf(t, s, "single")
	step := func() {
		t.Helper()
		if err := v.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	step()
	if got := vipsOf(t, s, "open"); got != before {
		t.Errorf("without a range: %q, was %q", got, before)
	}
	s.cfg.ServiceCIDRs = append(s.cfg.ServiceCIDRs, netip.MustParsePrefix("fd00:101::/126"))
	step()
	step()
	if got := vipsOf(t, s, "open"); got != before+" fd00:101::1" {
		t.Errorf("with a range: %q, was %q", got, before)
	}
	if got := vipsOf(t, s, "single"); got != single {
		t.Errorf("a service of one family: %q, was %q", got, single)
	}
	if got := vipsOf(t, s, "none"); got != "" {
		t.Errorf("a headless service has %q", got)
	}
}

func TestRangesOfTwoFamilies(t *testing.T) {
	p := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for _, c := range []struct {
		pods, services []netip.Prefix
		size           int
		want           string
	}{
		{p("10.1.0.0/16", "fd00:1::/48"), p("10.101.0.0/24", "fd00:101::/112"), 0, ""},
		{p("10.1.0.0/16", "fd00:1::/48"), p("10.101.0.0/24"), 0, ""},
		{p("fd00:1::/48"), p("10.101.0.0/24"), 0, "--pod-cidr: an IPv4 range is needed too"},
		{p("10.1.0.0/16"), p("fd00:101::/112"), 0, "--service-cidr: an IPv4 range is needed too"},
		{p("10.1.0.0/16"), p("10.101.0.0/24", "fd00:101::/112"), 0, "--service-cidr: an IPv6 range needs one of --pod-cidr"},
		{p("10.1.0.0/16", "fd00:1::/72"), p("10.101.0.0/24"), 0, "too small for one node's /64"},
		{p("10.1.0.0/16", "fd00:1::/72"), p("10.101.0.0/24"), 80, ""},
		{p("10.1.0.0/16", "fd00:1::/48"), p("10.101.0.0/24"), 127, "--pod-cidr-size-ipv6 127"},
		{p("10.1.0.0/16", "fe80::/64"), p("10.101.0.0/24"), 0, "not a range of addresses that every node can reach"},
		{p("10.1.0.0/16", "::ffff:10.9.0.0/112"), p("10.101.0.0/24"), 0, "not a range of addresses"},
		{p("10.1.0.0/16", "::/0"), p("10.101.0.0/24"), 0, "a default route"},
		{p("10.1.0.0/16", "fd00:1::5/48"), p("10.101.0.0/24"), 0, "did you mean fd00:1::/48?"},
		{p("10.1.0.0/16", "fd00:1::/48"), p("10.101.0.0/24", "fd00:1:0:7::/112"), 0, "overlaps"},
	} {
		cfg := testConfig(t)
		cfg.PodCIDRs, cfg.ServiceCIDRs, cfg.PodCIDRSize6 = c.pods, c.services, c.size
		if err := cfg.Validate(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("pods %v, services %v, size %d: %v; want %q", c.pods, c.services, c.size, err, c.want)
		}
	}
	// What peers are told holds both, and IPv4 alone is told as ever.
	cfg := dualConfig(t)
	if r := cfg.record(); len(r.GetPodCidrs()) != 2 || len(r.GetServiceCidrs()) != 2 || kvstore.Limits.Check(kvstore.Limits{}, kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster), r) != nil {
		t.Errorf("record %v", r)
	}
}

// A workload with an address of each family is one.
func TestWorkloadsAreCountedOnce(t *testing.T) {
	row := func(ip, node, name string) stored[*keyspacev1.IPEntry] {
		return stored[*keyspacev1.IPEntry]{
			key: kvstore.NewKey(kvstore.State, "east", kvstore.KindIP, ip),
			msg: &keyspacev1.IPEntry{Prefix: ip, Node: node, Namespace: "demo", Workload: name},
		}
	}
	got := countWorkloads([]stored[*keyspacev1.IPEntry]{
		row("10.1.1.2/32", "n1", "a"), row("fd00:1::2/128", "n1", "a"), row("10.1.1.3/32", "n1", "b"),
		row("10.1.2.2/32", "n2", "a"), row("10.1.2.3/32", "n2", ""), row("10.1.2.4/32", "n2", ""),
	})
	if got[[2]string{"east", "n1"}] != 2 || got[[2]string{"east", "n2"}] != 3 {
		t.Errorf("counted %v", got)
	}
}
