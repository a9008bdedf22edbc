// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

func west() *keyspacev1.Cluster {
	return &keyspacev1.Cluster{Name: "west", Id: 2, PodCidrs: []string{"10.2.0.0/16", "fd00:2::/48"}, NodeCidrs: []string{"192.168.2.0/24"},
		Mesh: &keyspacev1.MeshParameters{ClusterBits: 8}}
}

func westPeer(t *testing.T) *keyspacev1.Peer {
	t.Helper()
	g, err := GrantFor(west())
	if err != nil {
		t.Fatal(err)
	}
	return &keyspacev1.Peer{Name: "west", ClusterId: 2, Grant: g}
}

func TestGuard(t *testing.T) {
	p := westPeer(t)
	p.Grant.Namespaces = []string{"demo"}
	g, err := NewGuard(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	const num = 2<<16 + 7
	ip := func(prefix string, id uint32, tunnel, ns string) *keyspacev1.IPEntry {
		return &keyspacev1.IPEntry{Prefix: prefix, Identity: id, TunnelAddress: tunnel, Namespace: ns}
	}
	identity := func(n uint32, ls ...string) *keyspacev1.Identity {
		return &keyspacev1.Identity{Number: n, Labels: ls}
	}
	slice := func(ns, addr string) *keyspacev1.BackendSlice {
		return &keyspacev1.BackendSlice{Namespace: ns, Backends: []*keyspacev1.Backend{{Ip: addr}}}
	}
	for name, tc := range map[string]struct {
		rec    proto.Message
		reason string // empty: allowed
	}{
		"ip":                        {ip("10.2.3.4/32", num, "192.168.2.1", "demo"), ""},
		"ipv6":                      {ip("fd00:2::5/128", num, "192.168.2.1", "demo"), ""},
		"ip of a node":              {ip("192.168.2.9/32", num, "192.168.2.9", ""), ""},
		"ip elsewhere":              {ip("10.1.3.4/32", num, "192.168.2.1", "demo"), "address"},
		"ip wider than granted":     {ip("10.2.0.0/15", num, "192.168.2.1", "demo"), "address"},
		"default route":             {ip("0.0.0.0/0", num, "192.168.2.1", "demo"), "address"},
		"mapped":                    {ip("::ffff:10.2.3.4/128", num, "192.168.2.1", "demo"), "address"},
		"tunnel elsewhere":          {ip("10.2.3.4/32", num, "192.168.1.1", "demo"), "address"},
		"number below":              {ip("10.2.3.4/32", 2<<16-1, "192.168.2.1", "demo"), "range"},
		"number above":              {ip("10.2.3.4/32", 3<<16, "192.168.2.1", "demo"), "range"},
		"reserved number":           {ip("10.2.3.4/32", 1, "192.168.2.1", "demo"), "range"},
		"namespace":                 {ip("10.2.3.4/32", num, "192.168.2.1", "kube-system"), "namespace"},
		"identity":                  {identity(num, "k8s:id=app", "mesh:cluster=west"), ""},
		"identity of a namespace":   {identity(num, "k8s:id=app", "mesh:cluster=west", "mesh:namespace=demo"), ""},
		"identity of another":       {identity(num, "k8s:id=app", "mesh:cluster=west", "mesh:namespace=kube-system"), "namespace"},
		"identity out of range":     {identity(1<<16+7, "mesh:cluster=west"), "range"},
		"identity of east":          {identity(num, "k8s:id=app", "mesh:cluster=east"), "labels"},
		"identity without cluster":  {identity(num, "k8s:id=app"), "labels"},
		"identity reserved":         {identity(num, "mesh:cluster=west", "reserved:host"), "labels"},
		"identity cidr":             {identity(num, "cidr:10.0.0.0/8", "mesh:cluster=west"), "labels"},
		"reference":                 {&keyspacev1.IdentityRef{Number: 5}, "range"},
		"health":                    {&keyspacev1.NodeHealth{Cluster: "west", Node: "w1"}, ""},
		"health of our node":        {&keyspacev1.NodeHealth{Cluster: "east", Node: "e1"}, "foreign"},
		"service id":                {&keyspacev1.ServiceID{Number: 1<<16 + 1}, "range"},
		"service":                   {&keyspacev1.Service{Namespace: "demo"}, ""},
		"service namespace":         {&keyspacev1.Service{Namespace: "other"}, "namespace"},
		"slice":                     {slice("demo", "10.2.0.9"), ""},
		"slice with our address":    {slice("demo", "10.1.0.9"), "address"},
		"slice namespace":           {slice("other", "10.2.0.9"), "namespace"},
		"vtep":                      {&keyspacev1.VTEP{Prefix: "10.2.4.0/24", TunnelAddress: "192.168.2.2"}, ""},
		"vtep elsewhere":            {&keyspacev1.VTEP{Prefix: "10.1.4.0/24", TunnelAddress: "192.168.2.2"}, "address"},
		"node":                      {&keyspacev1.Node{Cluster: "west", PodCidrs: []string{"10.2.1.0/24"}, TunnelAddress: "192.168.2.1"}, ""},
		"node with IPv6":            {&keyspacev1.Node{Cluster: "west", PodCidrs: []string{"10.2.1.0/24", "fd00:2:0:1::/64"}, TunnelAddress: "192.168.2.1", Addresses: []*keyspacev1.NodeAddress{{Ip: "192.168.2.1"}, {Ip: "fd00:2:0:1::1"}}}, ""},
		"node with our IPv6":        {&keyspacev1.Node{Cluster: "west", Addresses: []*keyspacev1.NodeAddress{{Ip: "fd00:1:0:1::1"}}}, "address"},
		"node with a pod's address": {&keyspacev1.Node{Cluster: "west", Addresses: []*keyspacev1.NodeAddress{{Ip: "10.2.1.1"}}}, "address"},
		"node with our IPv6 pods":   {&keyspacev1.Node{Cluster: "west", PodCidrs: []string{"fd00:1:0:1::/64"}}, "address"},
		"node with an IPv6 tunnel":  {&keyspacev1.Node{Cluster: "west", TunnelAddress: "fd00:2:0:1::1"}, "address"},
		"vtep of IPv6":              {&keyspacev1.VTEP{Prefix: "fd00:2:0:1::/64", TunnelAddress: "192.168.2.2"}, ""},
		"vtep of our IPv6":          {&keyspacev1.VTEP{Prefix: "fd00:1:0:1::/64", TunnelAddress: "192.168.2.2"}, "address"},
		"slice with IPv6":           {slice("demo", "fd00:2::9"), ""},
		"slice with our IPv6":       {slice("demo", "fd00:1::9"), "address"},
		"ipv6 of ours":              {ip("fd00:1::5/128", num, "192.168.2.1", "demo"), "address"},
		"cluster with more IPv6":    {&keyspacev1.Cluster{Name: "west", Id: 2, PodCidrs: []string{"fd00:3::/48"}}, "address"},
		"node of east":              {&keyspacev1.Node{Cluster: "east"}, "foreign"},
		"node with our pods":        {&keyspacev1.Node{Cluster: "west", PodCidrs: []string{"10.1.1.0/24"}}, "address"},
		"node with our address":     {&keyspacev1.Node{Cluster: "west", Addresses: []*keyspacev1.NodeAddress{{Ip: "192.168.1.1"}}}, "address"},
		"cluster":                   {west(), ""},
		"cluster with another name": {&keyspacev1.Cluster{Name: "east", Id: 2}, "foreign"},
		"cluster that grew":         {&keyspacev1.Cluster{Name: "west", Id: 2, PodCidrs: []string{"10.2.0.0/15"}}, "address"},
	} {
		t.Run(name, func(t *testing.T) {
			err := g.Check(kvstore.NewKey(kvstore.State, "west", kvstore.KindIP, "x"), tc.rec)
			var bad *kvstore.BadRecord
			if (err != nil) != (tc.reason != "") || errors.As(err, &bad) && bad.Reason != tc.reason {
				t.Errorf("got %v, want reason %q", err, tc.reason)
			}
		})
	}
	if err := g.Check(kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster), west()); err == nil {
		t.Error("a key of state/east/ is allowed")
	}
	if err := g.Check(kvstore.NewKey(kvstore.Private, "west", kvstore.KindToken, "x"), nil); err == nil {
		t.Error("a key of private/ is allowed")
	}
}

func TestGrantNeverCoversWhatIsTaken(t *testing.T) {
	p := westPeer(t)
	p.Grant.PodCidrs = append(p.Grant.PodCidrs, "0.0.0.0/0", "10.1.5.0/24", "nonsense", "::/0", "fd00:1:5::/48")
	own := &keyspacev1.Cluster{Name: "east", PodCidrs: []string{"10.1.0.0/16", "fd00:1::/32"}, NodeCidrs: []string{"192.168.0.0/16"}}
	g, err := NewGuard(p, Taken(own, []*keyspacev1.Peer{p}, "west"))
	for _, part := range []string{"0.0.0.0/0 is a default route", "10.1.5.0/24 overlaps 10.1.0.0/16", "nonsense", "::/0 is a default route", "fd00:1:5::/48 overlaps fd00:1::/32", "192.168.2.0/24 overlaps 192.168.0.0/16"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want %q", err, part)
		}
	}
	for addr, want := range map[string]bool{"10.2.0.1": true, "10.1.5.1": false, "8.8.8.8": false, "192.168.2.1": false} {
		err := g.address("test", netip.MustParseAddr(addr).String(), g.pods, g.nodes)
		if (err == nil) != want {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
