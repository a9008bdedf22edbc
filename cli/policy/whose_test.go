// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// asNode1 is what node east/n1 knows: its own address is the host's for it.
func asNode1() *knowledge {
	k := &knowledge{cluster: "east"}
	for _, e := range [][4]string{
		{"10.1.0.5/32", "east", "n1", "endpoint"}, {"10.1.1.5/32", "east", "n2", "ip"}, {"fd00:1::5/128", "east", "n2", "ip"},
		{"172.30.1.1/32", "east", "n1", "node"}, {"172.30.1.2/32", "east", "n2", "node"}, {"fd00:30::2/128", "east", "n2", "node"},
		{"172.30.2.1/32", "west", "n1", "node"}, {"192.0.2.1/32", "east", "n1", "host"},
		{"10.1.0.0/16", "east", "", "range"}, {"10.1.9.0/24", "", "", "cidr"}, {"10.1.8.0/24", "east", "n2", "vtep"},
		{"10.1.7.0/24", "east", "", "external"},
	} {
		k.addresses = append(k.addresses, &hawserv1.IPCacheEntry{Prefix: e[0], Cluster: e[1], Node: e[2], Source: e[3]})
	}
	return k
}

// An address of a node is judged as seen from the endpoint's own node, not from
// the one that was asked.
func TestNodeAddressesAreSeenFromTheEndpointsNode(t *testing.T) {
	ls, err := labels.ParseSet([]string{"mesh:cluster=east", "cni:app=a"}, labels.CNI)
	if err != nil {
		t.Fatal(err)
	}
	k := asNode1()
	for _, c := range []struct {
		self, peer string
		want       identity.Number
		note       string
	}{
		{"10.1.0.5", "172.30.1.1", identity.Host, ""},
		{"10.1.0.5", "172.30.1.2", identity.RemoteNode, ""},
		{"10.1.1.5", "172.30.1.1", identity.RemoteNode, ""},
		{"10.1.1.5", "172.30.1.2", identity.Host, ""},
		{"fd00:1::5", "fd00:30::2", identity.Host, ""},
		{"10.1.0.5", "172.30.2.1", identity.RemoteNode, ""}, // n1 of the other cluster
		{"10.1.0.5", "192.0.2.1", identity.Host, ""},
		{"10.1.1.5", "192.0.2.1", identity.Unknown, ""}, // which n2 does not know
		{"", "172.30.1.1", identity.RemoteNode, "on which node a is, is not known; for endpoints on east/n1"},
	} {
		self := trace.End{Name: "a", Labels: ls}
		if c.self != "" {
			self.Addr = netip.MustParseAddr(c.self)
		}
		got, note := k.seenFrom(self, trace.End{Reserved: identity.Host, Addr: netip.MustParseAddr(c.peer)})
		if got.Reserved != c.want || (c.note == "") != (note == "") || !strings.Contains(note, c.note) {
			t.Errorf("%s from %q: %d %q, want %d %q", c.peer, c.self, got.Reserved, note, c.want, c.note)
		}
	}
	workload := trace.End{Labels: ls, Addr: netip.MustParseAddr("10.1.1.5")}
	if got, note := k.seenFrom(workload, workload); got.Reserved != identity.Unknown || note != "" {
		t.Errorf("a workload is taken for a node: %+v %q", got, note)
	}
}

// What nobody has in a range of the mesh or in a node's pod CIDR is dropped; what
// somebody has, or is behind an external tunnel endpoint or outside, is not.
func TestNobodysAddresses(t *testing.T) {
	k := asNode1()
	for _, c := range [][3]string{
		{"10.1.0.5", "10.1.1.200", "unknown destination"}, {"10.1.1.200", "10.1.0.5", "spoofed source"},
		{"10.1.0.5", "10.1.9.1", "unknown destination"},
		{"10.1.0.5", "10.1.8.1", "unknown destination"}, {"10.1.8.1", "10.1.0.5", "spoofed source"}, {"10.1.0.5", "10.1.8.1", "pod CIDR 10.1.8.0/24 of node east/n2"},
		{"10.1.0.5", "10.1.7.1", ""}, {"10.1.7.1", "10.1.0.5", ""},
		{"10.1.0.5", "10.1.1.5", ""}, {"10.1.0.5", "198.51.100.1", ""}, {"172.30.1.1", "10.1.0.5", ""},
	} {
		rows := k.nobodys(packet{from: trace.End{Addr: netip.MustParseAddr(c[0])}, to: trace.End{Addr: netip.MustParseAddr(c[1])}})
		if c[2] == "" && rows != nil || c[2] != "" && (len(rows) != 2 || rows[0].Verdict != verdictDenied || rows[0].Hints != nil || !strings.Contains(rows[1].Reason, c[2])) {
			t.Errorf("%s to %s: %+v, want %q", c[0], c[1], rows, c[2])
		}
	}
}

// The whole command says so, without agents too.
func TestTraceOfNobody(t *testing.T) {
	socket := played.Socket(t)
	played.APIServer(t, socket, cluster{scope: "local"})
	s := &session.Session{Context: played.Context(t, "", socket), Timeout: 5 * time.Second, Output: printer.Table}
	out, err := run(t, s, "trace", "--src", "demo/echo", "--dst", "10.1.0.200", "--dport", "80")
	if session.ExitCode(err) != session.No || strings.Count(out, `dropped as "unknown destination"`) != 2 || strings.Contains(out, "toCIDR") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := run(t, s, "trace", "--src", "172.30.1.1", "--dst", "demo/echo", "--dport", "80"); err != nil || !strings.Contains(out, "identity 1") {
		t.Errorf("from its own node: %v\n%s", err, out)
	}
	if out, err := run(t, s, "trace", "--src", "172.30.2.1", "--dst", "demo/echo", "--dport", "80"); err != nil || !strings.Contains(out, "identity 6") {
		t.Errorf("from another node: %v\n%s", err, out)
	}
}

// elsewhere denies at whoever is of the other cluster.
type elsewhere struct{ cluster }

func (elsewhere) ExplainPolicy(_ context.Context, r *hawserv1.ExplainPolicyRequest) (*hawserv1.ExplainPolicyResponse, error) {
	return &hawserv1.ExplainPolicyResponse{Answered: true, Allowed: r.GetCluster() != "west", Reason: "demo/closed default deny"}, nil
}

// Which endpoints of another cluster audit is not known here, which is said where
// it could matter and nowhere else.
func TestAuditElsewhereIsNotKnown(t *testing.T) {
	socket := played.Socket(t)
	played.APIServer(t, socket, elsewhere{cluster{scope: "local"}})
	s := &session.Session{Context: played.Context(t, "", socket), Timeout: 5 * time.Second, Output: printer.Table}
	const note = "is known in cluster west only"
	out, err := run(t, s, "trace", "--src", "demo/echo", "--dst", "west/demo/client", "--dport", "80")
	if session.ExitCode(err) != session.No || strings.Count(out, note) != 1 {
		t.Errorf("denied there: %v\n%s", err, out)
	}
	if out, err := run(t, s, "trace", "--src", "demo/echo", "--dst", "demo/echo", "--dport", "80"); err != nil || strings.Contains(out, note) {
		t.Errorf("here: %v\n%s", err, out)
	}
}
