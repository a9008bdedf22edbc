// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"math"
	"strings"
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// Our own ranges and those of other peers are granted to nobody under any name;
// service ranges alone may be those of other services.
func TestServiceRangesAreOfServicesOnly(t *testing.T) {
	p := westPeer(t)
	own := &keyspacev1.Cluster{Name: "east", PodCidrs: []string{"10.1.0.0/16", "fd00:1::/48"}, NodeCidrs: []string{"192.168.1.0/24"}, ServiceCidrs: []string{"10.101.0.0/16"}}
	north := &keyspacev1.Peer{Name: "north", Grant: &keyspacev1.Grant{
		PodCidrs: []string{"10.3.0.0/16"}, NodeCidrs: []string{"192.168.3.0/24"}, ServiceCidrs: []string{"10.103.0.0/16"},
	}}
	taken := Taken(own, []*keyspacev1.Peer{p, north}, "west")
	for cidr, overlaps := range map[string]string{
		"10.1.0.0/16": "10.1.0.0/16", "10.1.128.0/17": "10.1.0.0/16", "10.0.0.0/8": "10.1.0.0/16", "fd00:1:0:5::/64": "fd00:1::/48", // our pods
		"192.168.1.0/24": "192.168.1.0/24", "192.168.1.8/32": "192.168.1.0/24", // our nodes
		"10.3.7.0/24": "10.3.0.0/16", "192.168.0.0/16": "192.168.1.0/24", "192.168.3.0/25": "192.168.3.0/24", // north's
		"10.101.0.0/16": "", "10.103.0.0/16": "", "10.102.0.0/16": "", // services
	} {
		g, err := GrantChange{AddServices: []string{cidr}}.Apply("west", p.GetGrant(), taken)
		if overlaps == "" && (err != nil || len(g.GetServiceCidrs()) != 1) {
			t.Errorf("grant %s: %v, %v", cidr, g, err)
		}
		if overlaps != "" && (err == nil || !strings.Contains(err.Error(), "service CIDR "+cidr+" overlaps "+overlaps)) {
			t.Errorf("grant %s: %v, want that it overlaps %s", cidr, err, overlaps)
		}
		had := westPeer(t)
		had.Grant.ServiceCidrs = []string{cidr, "10.99.0.0/16"}
		guard, err := NewGuard(had, taken)
		if inForce := len(guard.InForce().GetServiceCidrs()); (err == nil) != (overlaps == "") || (inForce == 2) != (overlaps == "") || inForce == 0 {
			t.Errorf("granted before, %s: in force %v, %v", cidr, guard.InForce().GetServiceCidrs(), err)
		}
	}
}

func TestGrantsThatAreNone(t *testing.T) {
	old := westPeer(t).GetGrant()
	for want, c := range map[string]GrantChange{
		`namespace "a/b" `:              {Namespaces: []string{"shop", "a/b", "../x"}},
		`namespace "../x" `:             {Namespaces: []string{"shop", "a/b", "../x"}},
		`namespace "" `:                 {Namespaces: []string{""}},
		`namespace "Shop" `:             {Namespaces: []string{"Shop"}},
		`namespace "-a" `:               {Namespaces: []string{"-a"}},
		`namespace "a-" `:               {Namespaces: []string{"a-"}},
		strings.Repeat("a", 64):         {Namespaces: []string{strings.Repeat("a", 64)}},
		"6to4 addresses (2002::/16)":    {AddPods: []string{"2002::/16"}},
		"6to4 addresses (2002::/16), ":  {AddNodes: []string{"2002:a01::/32"}},
		"NAT64 addresses (64:ff9b::/96": {AddPods: []string{"64:ff9b::/96"}},
		"NAT64 addresses":               {AddServices: []string{"64:ff9b::/32"}},
		"NAT64 addresses (64:ff9b:1::":  {AddPods: []string{"64:ff9b:1:2::/64"}},
		"18446744073709551615 services": {MaxServices: new(uint64(math.MaxUint64))},
		"at most 65535 services":        {MaxServices: new(uint64(65_536))},
		"at most 65536 identities":      {MaxIdentities: new(uint64(65_537))},
		"at most 1000000 nodes":         {MaxNodes: new(uint64(1_000_001))},
		"at most 16777216 addresses":    {MaxIPs: new(uint64(1<<24 + 1))},
		"at most 16777216 backends":     {MaxBackends: new(uint64(math.MaxUint64))},
		`"" must be ADDRESS/BITS`:       {AddPods: []string{""}},
	} {
		if g, err := c.Apply("west", old, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, %v, want %q", c, g, err, want)
		}
	}
	for _, c := range []GrantChange{
		{Namespaces: []string{"shop", "kube-system", "0", strings.Repeat("a", 63)}}, {Namespaces: []string{}},
		{AddPods: []string{"2001:db8::/48"}}, {AddPods: []string{"2003::/48"}}, {AddPods: []string{"64:ff9a::/48"}},
		{MaxServices: new(uint64(65_535))}, {MaxIdentities: new(uint64(65_536))}, {MaxNodes: new(uint64(1_000_000))}, {MaxIPs: new(uint64(1 << 24))}, {MaxBackends: new(uint64(0))},
	} {
		if _, err := c.Apply("west", old, nil); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
