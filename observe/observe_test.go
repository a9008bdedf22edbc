// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

type names struct{}

func (names) Workload(a netip.Addr) (string, string, string) {
	if a == netip.MustParseAddr("10.1.1.2") {
		return "demo/client", "east", "east-1"
	}
	return "", "", ""
}

func (names) Labels(n identity.Number) []string {
	if n == 65537 {
		return []string{"k8s:app=client"}
	}
	return nil
}

func (names) Identity(a netip.Addr) identity.Number {
	if a == netip.MustParseAddr("10.1.1.2") {
		return 65537
	}
	return 0
}

func (names) Origin(set uint32, d datapath.Direction, origin uint32) string {
	if set == 7 && d == datapath.Ingress && origin == 0 {
		return "demo/rule default deny"
	}
	return "?"
}

func TestDescribeDrop(t *testing.T) {
	e := Describe(datapath.Event{
		Type: datapath.EventDrop, Reason: maps.DropPolicyDenied, Program: "from_overlay", Direction: datapath.Ingress, Protocol: 6,
		Source: netip.MustParseAddrPort("10.1.1.2:40000"), Destination: netip.MustParseAddrPort("10.2.1.9:80"),
		SourceID: 65537, DestID: 131073, RuleSet: 7, TCPFlags: 0x02, Outer: netip.MustParseAddr("192.168.1.1"), Suppressed: 3,
	}, time.Unix(5, 0), "west", "west-1", names{})
	if e.GetReason() != "policy denied" || e.GetType() != "drop" || e.GetProtocol() != "tcp" || e.GetSummary() != "SYN" ||
		e.GetOrigin() != "demo/rule default deny" || e.GetDetail() != "tunnelled by 192.168.1.1" || e.GetSuppressed() != 3 ||
		e.GetTime() != 5e9 || e.GetNode() != "west-1" {
		t.Errorf("got %v", e)
	}
	if s := e.GetSource(); s.GetWorkload() != "demo/client" || s.GetLabels()[0] != "k8s:app=client" || s.GetPort() != 40000 {
		t.Errorf("source %v", s)
	}
	if d := e.GetDestination(); d.GetWorkload() != "" || d.GetIdentity() != 131073 || d.GetIp() != "10.2.1.9" {
		t.Errorf("destination %v", d)
	}
}

// A drop tells the line of the program, and of an end that the program had not looked
// up yet the labels of who has its address: the identity stays what the program knew.
func TestDescribeEarlyDrop(t *testing.T) {
	known, nobody := netip.MustParseAddrPort("10.1.1.2:80"), netip.MustParseAddrPort("10.1.9.9:80")
	for _, c := range []struct {
		to     netip.AddrPort
		id     identity.Number
		labels string
	}{{known, 0, "[k8s:app=client]"}, {nobody, 0, "[]"}, {known, 7, "[]"}, {nobody, 65537, "[k8s:app=client]"}} {
		e := Describe(datapath.Event{Type: datapath.EventDrop, Reason: maps.DropMalformed, Source: c.to, SourceID: c.id, Destination: c.to, DestID: c.id, Line: 378}, time.Now(), "c", "n", names{})
		if e.GetLine() != 378 {
			t.Errorf("line %d, want 378", e.GetLine())
		}
		for _, p := range []*hawserv1.EventPeer{e.GetSource(), e.GetDestination()} {
			if fmt.Sprint(p.GetLabels()) != c.labels || p.GetIdentity() != uint32(c.id) {
				t.Errorf("%s with identity %d: %v", c.to, c.id, p)
			}
		}
	}
	if e := Describe(datapath.Event{Type: datapath.EventVerdict, Line: 378}, time.Now(), "c", "n", names{}); e.GetLine() != 0 {
		t.Errorf("a packet that passed was dropped in line %d", e.GetLine())
	}
}

func TestOpenRuleSetHasNoOrigin(t *testing.T) {
	e := Describe(datapath.Event{Type: datapath.EventDrop, Reason: maps.DropSpoofedSource}, time.Now(), "c", "n", names{})
	if e.GetOrigin() != "" {
		t.Errorf("a spoofed source is blamed on %q", e.GetOrigin())
	}
}

func TestSlowListenerLosesAndLearnsHowMany(t *testing.T) {
	var h Hub
	slow, other := h.Listen(nil), h.Listen([]string{"trace"})
	defer slow.Close()
	defer other.Close()
	if !h.Wanted("drop") || !h.Wanted("trace") {
		t.Error("wanted types are not known")
	}
	for range backlog + 10 {
		h.Publish(&hawserv1.Event{Type: "drop"})
	}
	for range backlog {
		<-slow.C()
	}
	h.Publish(&hawserv1.Event{Type: "drop", Suppressed: 1})
	if e := <-slow.C(); e.GetSuppressed() != 11 {
		t.Errorf("suppressed %d, want 11", e.GetSuppressed())
	}
	select {
	case e := <-other.C():
		t.Errorf("listener of traces got %v", e)
	default:
	}
}

func TestClosedListenerIsForgotten(t *testing.T) {
	var h Hub
	l := h.Listen(nil)
	l.Close()
	if h.Wanted("drop") {
		t.Error("a closed listener still wants events")
	}
}
