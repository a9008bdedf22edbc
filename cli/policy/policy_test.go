// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"
	"testing"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
)

func TestEnds(t *testing.T) {
	ls, err := labels.ParseSet([]string{"mesh:cluster=west", "mesh:namespace=demo", "cni:app=echo"}, labels.CNI)
	if err != nil {
		t.Fatal(err)
	}
	k := &knowledge{cluster: "east", identities: []trace.Identity{{Number: 131080, Cluster: "west", Labels: ls}}}
	for _, e := range [][3]string{{"10.2.0.5/32", "west", "demo/echo-1"}, {"10.2.0.6/32", "west", "demo/echo-2"}, {"10.2.0.7/32", "west", "two/echo-2"}, {"10.0.0.0/8", "", ""}} {
		k.addresses = append(k.addresses, &hawserv1.IPCacheEntry{Prefix: e[0], Cluster: e[1], Workload: e[2], Identity: 131080, Source: "ip"})
	}
	for name, want := range map[string]string{
		"west/demo/echo-1": "west/demo/echo-1 cni:app=echo,mesh:cluster=west,mesh:namespace=demo 10.2.0.5",
		"west/echo-1":      "west/demo/echo-1 cni:app=echo,mesh:cluster=west,mesh:namespace=demo 10.2.0.5",
		"10.2.0.6":         "10.2.0.6 cni:app=echo,mesh:cluster=west,mesh:namespace=demo 10.2.0.6",
		"131080":           "131080 cni:app=echo,mesh:cluster=west,mesh:namespace=demo",
		"app=x":            "app=x cni:app=x,mesh:cluster=east,mesh:namespace=default",
		"app=x,mesh:cluster=north,mesh:namespace=n": "app=x,mesh:cluster=north,mesh:namespace=n cni:app=x,mesh:cluster=north,mesh:namespace=n",
		"192.0.2.1":   "192.0.2.1  192.0.2.1",
		"world":       "world  reserved 2",
		"6":           "6  reserved 6",
		"demo/echo-1": "is no pod", // it is west's
		"west/echo-2": "may be any of west/demo/echo-2, west/two/echo-2",
		"99999":       "is not known",
	} {
		e, err := k.end(name)
		got := e.Name + " " + e.Labels.String()
		if e.Addr.IsValid() {
			got += " " + e.Addr.String()
		}
		if e.Reserved != identity.Unknown {
			got += " reserved " + []string{2: "2", 6: "6"}[e.Reserved]
		}
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestPort(t *testing.T) {
	for text, want := range map[string][2]uint16{"80": {6, 80}, "80/tcp": {6, 80}, "53/UDP": {17, 53}, "9/sctp": {132, 9}, "icmp": {1, api.ICMPPort(8)}} {
		if proto, n, err := port(text); err != nil || [2]uint16{uint16(proto), n} != want {
			t.Errorf("%s is %d %d, error %v", text, proto, n, err)
		}
	}
	for _, text := range []string{"", "0", "65536", "80/x", "http", "icmp/8"} {
		if _, _, err := port(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestCompare(t *testing.T) {
	stored := []*hawserv1.PolicyInfo{{Namespace: "a", Name: "x", Revision: 2}, {Namespace: "a", Name: "y", Revision: 1}}
	for _, c := range []struct {
		has     map[string]uint64
		settled bool
		want    []string
	}{
		{map[string]uint64{"a/x": 2, "a/y": 1}, true, nil},
		{map[string]uint64{"a/x": 2, "a/y": 1}, false, []string{"being written to the kernel"}},
		{map[string]uint64{"a/x": 1, "b/z": 1}, true, []string{"a/x", "a/y", "b/z (deleted)"}},
	} {
		r := compare(&hawserv1.NodeStatusReport{Policies: c.has, PoliciesSettled: c.settled}, stored)
		if !slices.Equal(r.Missing, c.want) {
			t.Errorf("%v settled %v: missing %q, want %q", c.has, c.settled, r.Missing, c.want)
		}
	}
}
