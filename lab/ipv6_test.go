// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// With IPv6 every cluster, node and program has ranges of both families; without,
// nothing of a lab is different from before.
func TestPlanOfTwoFamilies(t *testing.T) {
	s := NewSpec("six", 2, 2)
	s.IPv6 = true
	s.Clusters[1].ID = 511
	s.Clusters[1].PodCIDR6 = netip.MustParsePrefix("fd00:77::/56")
	s, err := s.Complete()
	if err == nil || !strings.Contains(err.Error(), "cluster bits") {
		t.Fatalf("an id of 9 bits with 8: %v", err)
	}
	s.ClusterBits = 9
	if s, err = s.Complete(); err != nil {
		t.Fatal(err)
	}
	l := &Lab{names: names{"six"}, state: State{Spec: s, Clusters: plan(s)}}
	b := &builder{Lab: l}
	for i, want := range []struct{ pods, services, second string }{
		{"10.1.0.0/16,fd00:10:1::/48", "172.31.1.0/24,fd00:172:1::/112", "10.1.2.0/24,fd00:10:1:2::/64"},
		{"10.255.0.0/16,fd00:77::/56", "172.31.255.0/24,fd00:172:1ff::/112", "10.255.2.0/24,fd00:77:0:2::/64"},
	} {
		c := l.state.Clusters[i]
		api, agent := b.apiServer(c).Argv, b.agent(c, c.Members[1]).Argv
		for flag, value := range map[string]string{"--pod-cidr": want.pods, "--service-cidr": want.services} {
			if at := slices.Index(api, flag); at < 0 || api[at+1] != value {
				t.Errorf("API server of %s: %v, want %s %s", c.Name, api, flag, value)
			}
		}
		if at := slices.Index(agent, "--pod-cidr"); at < 0 || agent[at+1] != want.second {
			t.Errorf("agent %s: %v, want --pod-cidr %s", c.Members[1].Name, agent, want.second)
		}
	}
	s, err = NewSpec("four", 1, 1).Complete()
	if err != nil {
		t.Fatal(err)
	}
	l.state = State{Spec: s, Clusters: plan(s)}
	c := l.state.Clusters[0]
	for _, arg := range slices.Concat(b.apiServer(c).Argv, b.agent(c, c.Members[0]).Argv) {
		if strings.Contains(arg, "fd00") || strings.Contains(arg, "invalid") {
			t.Errorf("without IPv6 a program is told %s", arg)
		}
	}
}

func TestIPv6RangesOfALab(t *testing.T) {
	for _, c := range []struct {
		ipv6           bool
		pods, services string
		want           string
	}{
		{false, "fd00:1::/48", "", "the lab has no IPv6; say ipv6: true"},
		{true, "fd00:1::/57", "", "at least a /56 is needed"},
		{true, "10.9.0.0/16", "", "an IPv6 range"},
		{true, "fd00:1::5/48", "", "fd00:1::/48 has none"},
		{true, "fd00:1::/48", "fd00:1:0:7::/112", "overlaps"},
		{true, "fd00:1::/48", "fd00:2::/127", "at least a /126 is needed"},
		{true, "fd00:1::/48", "fd00:2::/112", ""},
	} {
		s := NewSpec("six", 1, 1)
		s.IPv6 = c.ipv6
		s.Clusters[0].PodCIDR6 = netip.MustParsePrefix(c.pods)
		if c.services != "" {
			s.Clusters[0].ServiceCIDR6 = netip.MustParsePrefix(c.services)
		}
		if _, err := s.Complete(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("ipv6 %v, pods %s, services %s: %v; want %q", c.ipv6, c.pods, c.services, err, c.want)
		}
	}
}
