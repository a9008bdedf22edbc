// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/played"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
)

func aPod(t *testing.T, addr string) trace.End {
	t.Helper()
	ls, err := labels.ParseSet([]string{"mesh:cluster=east", "cni:app=a"}, labels.CNI)
	if err != nil {
		t.Fatal(err)
	}
	e := trace.End{Name: "a", Labels: ls}
	if addr != "" {
		e.Addr = netip.MustParseAddr(addr)
	}
	return e
}

// What the programs drop whatever policies say, and what they ask no policy about;
// each line is what a packet of a pod on n1 has met.
func TestInKernel(t *testing.T) {
	k := asNode1()
	a := netip.MustParseAddr
	k.tunnels = tunnels{port: 8472, ends: map[netip.Addr]host{a("172.30.1.1"): {"east", "n1"}, a("172.30.1.2"): {"east", "n2"}, a("172.30.2.1"): {"west", "n1"}, a("172.30.1.50"): {}}}
	for _, c := range []struct {
		from, to      string
		proto         uint8
		port          uint16
		verdict, says string
	}{
		{"10.1.0.5", "127.0.0.1", api.TCP, 80, verdictDenied, "unknown destination"},
		{"10.1.0.5", "0.0.0.0", api.UDP, 80, verdictDenied, "unknown destination"},
		{"10.1.0.5", "224.0.0.1", api.UDP, 80, verdictDenied, "multicast"},
		{"10.1.0.5", "239.1.2.3", api.TCP, 80, verdictDenied, "multicast"},
		{"10.1.0.5", "255.255.255.255", api.UDP, 80, verdictDenied, "multicast"},
		{"10.1.0.5", "240.0.0.1", api.UDP, 80, "", ""},
		{"10.1.0.5", "1.0.0.1", api.UDP, 80, "", ""},
		{"fd00:1::5", "::", api.TCP, 80, verdictDenied, "malformed packet"},
		{"fd00:1::5", "::1", api.TCP, 80, verdictDenied, "malformed packet"},
		{"fd00:1::5", "::1.2.3.4", api.TCP, 80, verdictDenied, "malformed packet"},
		{"fd00:1::5", "0:0:0:1::1", api.TCP, 80, "", ""},
		{"fd00:1::5", "ff02::1", api.ICMPv6, api.ICMPPort(128), verdictDenied, "multicast"},
		{"fd00:1::5", "ff0e::5", api.UDP, 80, verdictDenied, "multicast"},
		{"fd00:1::5", "fe80::9", api.UDP, 80, verdictDenied, "unknown destination"},
		{"fd00:1::5", "fec0::9", api.UDP, 80, "", ""},
		// The tunnel's port, of other nodes, external endpoints and what is behind them.
		{"10.1.0.5", "172.30.1.2", api.UDP, 8472, verdictDenied, "forged tunnel packet"},
		{"10.1.0.5", "172.30.2.1", api.UDP, 8472, verdictDenied, "node west/n1"},
		{"10.1.0.5", "172.30.1.1", api.UDP, 8472, "", ""}, // its own node
		{"10.1.1.5", "172.30.1.1", api.UDP, 8472, verdictDenied, "node east/n1"},
		{"", "172.30.1.1", api.UDP, 8472, verdictDenied, "on which node a is, is not known; on node east/n1 it is not dropped so"},
		{"10.1.0.5", "172.30.1.50", api.UDP, 8472, verdictDenied, "an external tunnel endpoint"},
		{"10.1.0.5", "10.1.7.1", api.UDP, 8472, verdictDenied, "behind an external tunnel endpoint"},
		{"10.1.0.5", "10.1.1.5", api.UDP, 8472, "", ""},
		{"10.1.0.5", "203.0.113.9", api.UDP, 8472, "", ""},
		{"10.1.0.5", "172.30.1.2", api.TCP, 8472, "", ""},
		{"10.1.0.5", "172.30.1.2", api.UDP, 8473, "", ""},
		// Itself.
		{"10.1.0.5", "10.1.0.5", api.TCP, 80, verdictAllowed, "never leaves the pod"},
		{"fd00:1::5", "fd00:1::5", api.SCTP, 80, verdictAllowed, "never leaves the pod"},
		{"10.1.0.5", "10.1.1.5", api.TCP, 80, "", ""},
		{"", "10.1.0.5", api.TCP, 80, "", ""},
	} {
		to := trace.End{Name: c.to, Addr: a(c.to)}
		if c.to == c.from {
			to = aPod(t, c.to)
		}
		rows := k.inKernel(packet{from: aPod(t, c.from), to: to}, c.proto, c.port)
		if c.verdict == "" {
			if rows != nil {
				t.Errorf("%s to %s %d/%d: %+v, want to be asked", c.from, c.to, c.port, c.proto, rows)
			}
			continue
		}
		if len(rows) != 2 || rows[0].Direction != "egress" || rows[0].Verdict != c.verdict || rows[1].Verdict != c.verdict || !strings.Contains(rows[0].Reason+strings.Join(rows[0].Hints, ""), c.says) {
			t.Errorf("%s to %s %d/%d: %+v, want %s %q", c.from, c.to, c.port, c.proto, rows, c.verdict, c.says)
		}
	}
	if rows := k.inKernel(packet{from: trace.End{Addr: a("172.30.1.1")}, to: trace.End{Addr: a("127.0.0.1")}}, api.TCP, 80); rows != nil {
		t.Errorf("a node's own loopback is its own matter: %+v", rows)
	}
}

// SCTP to the outside is dropped where it is masqueraded, after policy allowed it.
func TestSCTPIsNotMasqueraded(t *testing.T) {
	k := asNode1()
	a := netip.MustParseAddr
	k.tunnels.masks = map[host][]netip.Addr{{"east", "n1"}: {a("172.30.1.1")}}
	for _, c := range []struct {
		from, to string
		proto    uint8
		policy   string
		verdict  string
		says     string
	}{
		{"10.1.0.5", "203.0.113.5", api.SCTP, verdictAllowed, verdictDenied, `dropped as "unsupported protocol": node east/n1 masquerades`},
		{"10.1.0.5", "203.0.113.5", api.SCTP, verdictAudited, verdictDenied, `by policy: audited`},
		{"10.1.0.5", "203.0.113.5", api.SCTP, verdictDenied, verdictDenied, "the rule"},
		{"10.1.0.5", "203.0.113.5", api.TCP, verdictAllowed, verdictAllowed, "the rule"},
		{"10.1.0.5", "10.1.9.1", api.SCTP, verdictAllowed, verdictAllowed, "the rule"},   // of a range of the mesh
		{"10.1.0.5", "10.1.7.1", api.SCTP, verdictAllowed, verdictAllowed, "the rule"},   // behind an external tunnel endpoint
		{"10.1.0.5", "172.30.1.2", api.SCTP, verdictAllowed, verdictAllowed, "the rule"}, // a node
		{"fd00:1::9", "2001:db8::1", api.SCTP, verdictAllowed, verdictAllowed, "SCTP is not masqueraded: where the node of a masquerades"},
		{"10.1.1.5", "203.0.113.5", api.SCTP, verdictAllowed, verdictAllowed, "SCTP is not masqueraded: where the node of a masquerades"},
	} {
		row := verdictRow{Direction: "egress", Verdict: c.policy, Reason: "the rule"}
		family := map[bool]string{true: "IPv6", false: "IPv4"}[a(c.to).Is6()]
		k.unmasked(packet{family, aPod(t, c.from), trace.End{Name: c.to, Addr: a(c.to)}}, c.proto, &row)
		if row.Verdict != c.verdict || !strings.Contains(row.Reason+" "+strings.Join(row.Hints, " "), c.says) || c.policy == c.verdict && row.Reason != "the rule" {
			t.Errorf("%s to %s by %d, %s: %+v, want %s %q", c.from, c.to, c.proto, c.policy, row, c.verdict, c.says)
		}
	}
	k.tunnels.masks[host{"east", "n2"}] = nil
	row := verdictRow{Verdict: verdictAllowed}
	if k.unmasked(packet{"IPv4", aPod(t, "10.1.1.5"), trace.End{Addr: a("203.0.113.5")}}, api.SCTP, &row); row.Verdict != verdictAllowed || row.Hints != nil {
		t.Errorf("a node that masquerades nothing: %+v", row)
	}
}

// portNode is a node with a tunnel port of its own choice.
type portNode struct{ laterNode }

func (*portNode) Status(context.Context, *hawserv1.StatusRequest) (*hawserv1.NodeStatusReport, error) {
	return &hawserv1.NodeStatusReport{Cluster: "east", Node: "n2", TunnelPort: 4789, MasqueradeAddresses: []string{"172.30.1.2"}}, nil
}

// external is a cluster with an external tunnel endpoint.
type external struct{ cluster }

func (external) ListVTEPs(context.Context, *hawserv1.ListVTEPsRequest) (*hawserv1.ListVTEPsResponse, error) {
	return &hawserv1.ListVTEPsResponse{Vteps: []*hawserv1.VTEPInfo{{Prefix: "10.1.200.0/24", TunnelAddress: "172.30.1.50", External: true}}}, nil
}

// The whole command asks the nodes for the port and what they masquerade, and the
// API server for the ends of tunnels.
func TestTraceOfWhatTheKernelDrops(t *testing.T) {
	api, agent := played.Socket(t), played.Socket(t)
	played.APIServer(t, api, external{cluster{scope: "local"}})
	played.Agent(t, agent, &portNode{})
	for _, c := range []struct {
		agents     []string
		dst, dport string
		code       int
		says       string
	}{
		{[]string{"n2", agent}, "127.0.0.1", "80", session.No, `dropped as "unknown destination"`},
		{[]string{"n2", agent}, "172.30.2.1", "4789/udp", session.No, "node west/w1"},
		{[]string{"n2", agent}, "172.30.1.50", "4789/udp", session.No, "an external tunnel endpoint"},
		{[]string{"n2", agent}, "172.30.2.1", "8472/udp", session.Done, "identity"},
		{[]string{"n2", agent}, "203.0.113.5", "80/sctp", session.No, `dropped as "unsupported protocol"`},
		{[]string{"n2", agent}, "demo/echo", "80", session.Done, "never leaves the pod"},
		{nil, "172.30.2.1", "8472/udp", session.No, `dropped as "forged tunnel packet"`},
		{nil, "203.0.113.5", "80/sctp", session.Done, "where the node of east/demo/echo masquerades"},
	} {
		s := &session.Session{Context: played.Context(t, "east", api, c.agents...), Timeout: 5 * time.Second, Output: printer.Table, Quiet: true}
		out, err := run(t, s, "trace", "--src", "demo/echo", "--dst", c.dst, "--dport", c.dport)
		if session.ExitCode(err) != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%q %s %s: %v\n%s", c.agents, c.dst, c.dport, err, out)
		}
	}
}

// The reasons are those of drop events.
func TestReasonsAreTheKernels(t *testing.T) {
	var known []string
	for n := range maps.DropReasons {
		known = append(known, maps.ReasonName(datapath.DropReason(n)))
	}
	for _, reason := range []string{"unknown destination", "multicast", "malformed packet", "forged tunnel packet", "unsupported protocol", "spoofed source"} {
		if !slices.Contains(known, reason) {
			t.Errorf("no drop has the reason %q", reason)
		}
	}
}
