// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
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
		"app=echo":         "cni:app=echo,mesh:cluster=west,mesh:namespace=demo cni:app=echo,mesh:cluster=west,mesh:namespace=demo",
		"192.0.2.1":        "192.0.2.1  192.0.2.1",
		"world":            "world  reserved 2",
		"6":                "6  reserved 6",
		"demo/echo-1":      "is no pod", // it is west's
		"west/echo-2":      "may be any of west/demo/echo-2, west/two/echo-2",
		"0":                "is not known", "255": "is not known", "11": "is not known",
		"99999": "is not known",
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

// What the kernel has no room for is not judged as policies say, and a trace
// tells so of it and of what is around it, and of nothing else.
func TestTraceTellsWhatIsNotInTheKernel(t *testing.T) {
	k := &knowledge{}
	for _, e := range [][2]string{{"0.0.0.0/0", "hidden"}, {"50.0.0.0/8", "hidden"}, {"50.1.0.0/16", ""}, {"50.2.0.0/24", "missing"}, {"2001:db8::/32", ""}} {
		k.addresses = append(k.addresses, &hawserv1.IPCacheEntry{Prefix: e[0], Kernel: e[1]})
	}
	for a, want := range map[string]string{
		"50.2.0.7": "no room for 50.2.0.0/24", "50.3.0.7": "no room for a part of 50.0.0.0/8", "50.1.0.7": "",
		"51.0.0.7": "no room for a part of 0.0.0.0/0", "2001:db8::7": "", "2001:db9::7": "",
	} {
		got := k.notInKernel(netip.MustParseAddr(a))
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", a, got, want)
		}
	}
}

func TestServiceAddressIsNoEnd(t *testing.T) {
	k := &knowledge{cluster: "east"}
	k.addServices([]*hawserv1.ServiceInfo{
		{Namespace: "demo", Name: "echo", Vips: []string{"172.31.1.1", "fd00:172:1::1"}, Backends: []*hawserv1.FrontendBackend{
			{Ip: "10.1.0.1", Cluster: "east", Workload: "demo/echo-1"}, {Ip: "fd00:10::1", Cluster: "east", Workload: "demo/echo-1"}, {Ip: "192.0.2.1"}}},
		{Namespace: "demo", Name: "idle", Vips: []string{"172.31.1.2"}},
	})
	for name, want := range map[string]string{
		"172.31.1.1":    "service demo/echo, and policy is asked about the backend that is chosen: name one of them, such as east/demo/echo-1, 192.0.2.1",
		"fd00:172:1::1": "service demo/echo",
		"172.31.1.2":    "service demo/idle, and policy is asked about the backend that is chosen: name one of them (it has none now)",
	} {
		if _, err := k.end(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
	if _, err := k.end("172.31.1.3"); err != nil {
		t.Error(err)
	}
}

func TestPackets(t *testing.T) {
	at := func(name string, texts ...string) place {
		p := place{End: trace.End{Name: name}}
		for _, text := range texts {
			p.addrs = append(p.addrs, netip.MustParseAddr(text))
		}
		return p
	}
	both, four, six, none := at("both", "10.0.0.1", "fd00::1"), at("four", "10.0.0.2"), at("six", "fd00::2"), at("none")
	for _, c := range []struct {
		from, to place
		proto    uint8
		want     string
	}{
		{both, both, api.TCP, "IPv4 10.0.0.1 10.0.0.1, IPv6 fd00::1 fd00::1"},
		{both, four, api.TCP, "IPv4 10.0.0.1 10.0.0.2"},
		{six, both, api.UDP, "IPv6 fd00::2 fd00::1"},
		{none, both, api.TCP, "IPv4 invalid IP 10.0.0.1, IPv6 invalid IP fd00::1"},
		{none, none, api.TCP, "IPv4 invalid IP invalid IP"},
		{none, none, api.ICMPv6, "IPv6 invalid IP invalid IP"},
		{both, both, api.ICMP, "IPv4 10.0.0.1 10.0.0.1"},
		{both, both, api.ICMPv6, "IPv6 fd00::1 fd00::1"},
		{four, six, api.TCP, "four has 10.0.0.2 and six has fd00::2: there is no IPv4 or IPv6 packet between them"},
		{four, both, api.ICMPv6, "there is no IPv6 packet between them"},
	} {
		ps, err := packets(c.from, c.to, c.proto)
		var got []string
		for _, p := range ps {
			got = append(got, p.family+" "+p.from.Addr.String()+" "+p.to.Addr.String())
		}
		if text := strings.Join(got, ", "); err == nil && text != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s to %s: %q, error %v, want %q", c.from.Name, c.to.Name, text, err, c.want)
		}
	}
}

// Answers that are the same for both families are given once.
func TestMerge(t *testing.T) {
	ps := []packet{{family: "IPv4"}, {family: "IPv6"}}
	rows := func(verdict string) []verdictRow {
		return []verdictRow{{Direction: "egress", Verdict: verdictAllowed}, {Direction: "ingress", Verdict: verdict}}
	}
	for want, answers := range map[string][][]verdictRow{
		"egress  allowed, ingress IPv4 denied, ingress IPv6 allowed": {rows(verdictDenied), rows(verdictAllowed)},
		"egress  allowed, ingress  denied":                           {rows(verdictDenied), rows(verdictDenied)},
	} {
		var got []string
		for _, r := range merge(ps, answers) {
			got = append(got, r.Direction+" "+r.Family+" "+r.Verdict)
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("got %q, want %q", text, want)
		}
	}
}

func TestPort(t *testing.T) {
	for text, want := range map[string][2]uint16{"80": {6, 80}, "80/tcp": {6, 80}, "53/UDP": {17, 53}, "9/sctp": {132, 9}, "icmp": {1, api.ICMPPort(8)}} {
		if proto, n, err := port(text); err != nil || [2]uint16{uint16(proto), n} != want {
			t.Errorf("%s is %d %d, error %v", text, proto, n, err)
		}
	}
	for text, want := range map[string][2]uint16{"icmpv6": {58, api.ICMPPort(128)}, "8/ICMP": {1, api.ICMPPort(8)}, "128/icmpv6": {58, api.ICMPPort(128)}} {
		if proto, n, err := port(text); err != nil || [2]uint16{uint16(proto), n} != want {
			t.Errorf("%s is %d %d, error %v", text, proto, n, err)
		}
	}
	for _, text := range []string{"", "0", "65536", "80/x", "http", "icmp/8", "13/icmp", "0/icmp", "129/icmpv6", "135/icmpv6", "256/icmp", "x/icmpv6", "/icmp"} {
		if _, _, err := port(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// A map that has no room is told: waiting does not help.
func TestCompareTellsWhyNot(t *testing.T) {
	r := compare(&hawserv1.NodeStatusReport{Tables: []*hawserv1.TableStatus{{Name: "nodes"}, {Name: "ipcache", LastError: "the map is full\nand 5 more"}}}, nil)
	if want := []string{"being written to the kernel", "table ipcache: the map is full"}; !slices.Equal(r.Problems, want) || r.done() || len(r.Missing) > 0 {
		t.Errorf("%q, want %q", r.Missing, want)
	}
}

// An object that a node enforces in part is told with what is left out.
func TestCompareTellsOfPartial(t *testing.T) {
	r := compare(&hawserv1.NodeStatusReport{Policies: map[string]uint64{"a/x": 2, "a/y": 1}, PoliciesSettled: true, Problems: []*hawserv1.Problem{
		{Object: "policy a/y", Problem: "3 names are not let out to", Fix: "write numbers"}, {Object: "policy a", Problem: "another's"},
	}}, []*hawserv1.PolicyInfo{{Namespace: "a", Name: "x", Revision: 2}, {Namespace: "a", Name: "y", Revision: 1}})
	want := "a/y: 3 names are not let out to (write numbers)"
	if !slices.Equal(r.Problems, []string{want}) || !slices.Equal(r.Missing, []string{"a/y"}) || r.Enforced != 1 {
		t.Errorf("%+v, want %q", r, want)
	}
	if r.missing() != want { // the object once
		t.Errorf("%q, want %q", r.missing(), want)
	}
}

func TestCompare(t *testing.T) {
	stored := []*hawserv1.PolicyInfo{{Namespace: "a", Name: "x", Revision: 2}, {Namespace: "a", Name: "y", Revision: 1}}
	for _, c := range []struct {
		has     map[string]uint64
		settled bool
		missing []string
		want    string
	}{
		{map[string]uint64{"a/x": 2, "a/y": 1}, true, nil, "–"},
		{map[string]uint64{"a/x": 2, "a/y": 1}, false, nil, "being written to the kernel"},
		{map[string]uint64{"a/x": 1, "b/z": 1}, true, []string{"a/x", "a/y"}, "a/x, a/y, b/z (deleted)"},
		{map[string]uint64{"a/x": 2, "a/y": 1, "b/z": 1}, true, nil, "b/z (deleted)"},
	} {
		r := compare(&hawserv1.NodeStatusReport{Policies: c.has, PoliciesSettled: c.settled}, stored)
		if !slices.Equal(r.Missing, c.missing) || r.missing() != c.want || r.done() != (c.want == "–") {
			t.Errorf("%v settled %v: missing %q, told %q, want %q and %q", c.has, c.settled, r.Missing, r.missing(), c.missing, c.want)
		}
	}
}

// Nodes that are not asked have told the API server what they enforce in part.
func TestReportedTellsOfPartial(t *testing.T) {
	rows := reported(&hawserv1.ListPoliciesResponse{
		Policies: []*hawserv1.PolicyInfo{{Namespace: "a", Name: "x"}, {Namespace: "a", Name: "y"}, {Namespace: "a", Name: "z"}},
		Nodes:    []*hawserv1.PolicyRollout{{Node: "n1", Missing: []string{"a/x"}, Problems: map[string]string{"a/x": "not read", "a/y": "in part"}}},
	}, "", nil, nil)
	if len(rows) != 1 || rows[0].Enforced != 1 || rows[0].done() || !slices.Equal(rows[0].Missing, []string{"a/x", "a/y"}) ||
		rows[0].missing() != "a/x: not read, a/y: in part" {
		t.Errorf("%+v", rows)
	}
}
