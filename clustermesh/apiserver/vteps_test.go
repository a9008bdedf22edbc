// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// What may not be declared is refused with all reasons at once, and nothing is
// stored.
func TestExternalEndpointsThatMayNotBe(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/16")
	s.come(t, "n1")
	step() // n1 has 10.1.0.0/24
	s.write(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, "n1"), &keyspacev1.Node{
		Name: "n1", Cluster: "east", TunnelAddress: "192.168.1.11", Addresses: []*keyspacev1.NodeAddress{{Ip: "192.168.1.11"}, {Ip: "10.1.66.6"}},
	})
	s.write(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindIP, "10.1.77.7/32"), &keyspacev1.IPEntry{
		Prefix: "10.1.77.7/32", Identity: 1<<16 + 5, Node: "n1", Namespace: "demo", Workload: "w",
	})
	s.write(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindVTEP, "10.1.9.0/24"), &keyspacev1.VTEP{Prefix: "10.1.9.0/24", TunnelAddress: "192.168.1.11", Node: "n1"})
	s.cfg.AdvertiseFederation = []string{"192.168.1.2:4243"}
	declare := func(prefix, tunnel, mac string, vni uint32) (*hawserv1.AddVTEPResponse, error) {
		return s.AddVTEP(t.Context(), &hawserv1.AddVTEPRequest{Prefix: prefix, TunnelAddress: tunnel, Mac: mac, Vni: vni})
	}
	if _, err := declare("10.1.50.0/24", "192.168.1.50", "", 0); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		prefix, tunnel, mac string
		vni                 uint32
		code                codes.Code
		want                []string
	}{
		"all at once":        {"10.1.5.5/24", "x", "y", 6, codes.InvalidArgument, []string{"did you mean 10.1.5.0/24", "not an address", "MAC", "VNI 6"}},
		"no prefix":          {"x", "192.168.1.51", "", 0, codes.InvalidArgument, []string{"neither prefix nor address"}},
		"everything":         {"0.0.0.0/0", "192.168.1.51", "", 0, codes.InvalidArgument, []string{"default route"}},
		"too high":           {"10.1.5.0/24", "192.168.1.51", "", 1 << 24, codes.InvalidArgument, []string{"VNI"}},
		"a group":            {"10.1.5.0/24", "224.0.0.1", "01:00:5e:00:00:01", 0, codes.InvalidArgument, []string{"one host", "one interface"}},
		"elsewhere":          {"10.2.0.0/24", "192.168.2.5", "", 0, codes.FailedPrecondition, []string{"pod CIDRs (10.1.0.0/16)", "node CIDRs (192.168.1.0/24)"}},
		"services":           {"10.101.0.0/28", "192.168.1.51", "", 0, codes.FailedPrecondition, []string{"pod CIDRs"}},
		"a node's range":     {"10.1.0.128/25", "192.168.1.51", "", 0, codes.FailedPrecondition, []string{"10.1.0.0/24, the pod CIDR of node n1"}},
		"a range announced":  {"10.1.8.0/23", "192.168.1.51", "", 0, codes.FailedPrecondition, []string{"10.1.9.0/24, the pod CIDR of node n1"}},
		"another's":          {"10.1.50.7", "192.168.1.51", "", 0, codes.FailedPrecondition, []string{"declared behind 192.168.1.50", "hawser vtep delete 10.1.50.0/24"}},
		"a node's tunnel":    {"10.1.5.0/24", "192.168.1.11", "", 0, codes.FailedPrecondition, []string{"is node n1's"}},
		"the API server's":   {"10.1.5.0/24", "192.168.1.2", "", 0, codes.FailedPrecondition, []string{"192.168.1.2 is that of the API server"}},
		"a route hosts need": {"10.1.66.0/24", "192.168.1.51", "", 0, codes.FailedPrecondition, []string{"10.1.66.6, an address of node n1"}},
		"a workload":         {"10.1.77.0/24", "192.168.1.51", "", 0, codes.FailedPrecondition, []string{"demo/w on node n1"}},
		"two of one":         {"10.1.5.0/24", "192.168.1.50", "", 77777, codes.FailedPrecondition, []string{"an endpoint has one of each"}},
	} {
		_, err := declare(c.prefix, c.tunnel, c.mac, c.vni)
		for _, want := range c.want {
			if status.Code(err) != c.code || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s with %q", name, err, c.code, want)
			}
		}
	}
	vteps, err := list[*keyspacev1.VTEP](t.Context(), s, kvstore.State, "east", kvstore.KindVTEP)
	if err != nil || len(vteps) != 2 {
		t.Errorf("%d stored, %v", len(vteps), err)
	}
}

// The same again changes nothing, other words replace, a dry run says only what it
// would do; and while it is declared no node gets the prefix.
func TestExternalEndpointsComeAndGo(t *testing.T) {
	s, step := registrarOf(t, 24, "10.1.0.0/22")
	declare := func(tunnel string, dry bool, want string) {
		t.Helper()
		r, err := s.AddVTEP(t.Context(), &hawserv1.AddVTEPRequest{Prefix: "10.1.0.0/23", TunnelAddress: tunnel, DryRun: dry})
		if err != nil || r.GetAction() != want || r.GetVtep().GetVni() != 2 || r.GetVtep().GetMac() != "02:00:00:00:00:00" {
			t.Errorf("%v %v, want %s", r, err, want)
		}
	}
	declare("192.168.1.50", true, "created (dry run)")
	if v, _ := s.ListVTEPs(t.Context(), nil); len(v.GetVteps()) != 0 {
		t.Errorf("a dry run stored %v", v)
	}
	declare("192.168.1.50", false, "created")
	declare("192.168.1.50", false, "unchanged")
	declare("192.168.1.51", false, "configured")
	s.come(t, "n1", "n2", "n3")
	step()
	if got := []string{s.rangesOf(t, "n1"), s.rangesOf(t, "n2"), s.rangesOf(t, "n3")}; strings.Join(got, " ") != "10.1.2.0/24 10.1.3.0/24 " {
		t.Errorf("nodes have %q", got)
	}
	del := func() error {
		_, err := s.DeleteVTEP(t.Context(), &hawserv1.DeleteVTEPRequest{Prefix: "10.1.0.0/23"})
		return err
	}
	if err := del(); err != nil {
		t.Fatal(err)
	}
	if err := del(); status.Code(err) != codes.NotFound {
		t.Errorf("again: %v", err)
	}
	step()
	if got := s.rangesOf(t, "n3"); got != "10.1.0.0/24" {
		t.Errorf("n3 has %q once the prefix is free", got)
	}
	s.write(t, kvstore.NewKey(kvstore.State, "east", kvstore.KindVTEP, "10.1.2.0/24"), &keyspacev1.VTEP{Prefix: "10.1.2.0/24", TunnelAddress: "192.168.1.11", Node: "n1"})
	if _, err := s.DeleteVTEP(t.Context(), &hawserv1.DeleteVTEPRequest{Prefix: "10.1.2.0/24"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a node's own: %v", err)
	}
}

// A prefix is a node's or an external endpoint's, never both, whoever is first.
func TestExternalEndpointsRaceNodes(t *testing.T) {
	for range 10 {
		s, _ := registrarOf(t, 24, "10.1.0.0/24")
		s.come(t, "n1")
		var both sync.WaitGroup
		both.Go(func() { _ = (&registrar{s: s, decided: newDecisions()}).step(t.Context()) }) // who loses says so
		both.Go(func() {
			_, _ = s.AddVTEP(t.Context(), &hawserv1.AddVTEPRequest{Prefix: "10.1.0.128/25", TunnelAddress: "192.168.1.50"})
		})
		both.Wait()
		own, err := s.podCIDROwners(t.Context())
		if err != nil || len(own) != 1 {
			t.Fatalf("owners %v, %v", own, err)
		}
	}
}
