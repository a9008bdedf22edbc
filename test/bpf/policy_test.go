// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	gomaps "maps"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

const (
	tcp  = 6
	udp  = 17
	sctp = 132
)

type entries = map[datapath.PolicyKey]datapath.PolicyEntry

// Every level of the lookup, in both directions: the entry allows the packet it
// names, and a packet it does not name meets the default deny.
func TestPolicyLevels(t *testing.T) {
	h := newHarness(t)
	port := uint16(2000)
	for _, dir := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
		for name, c := range map[string]struct {
			key   datapath.PolicyKey
			other func() (proto string, dport uint16) // must be denied
		}{
			"identity, port":  {datapath.PolicyKey{Identity: idR, Protocol: tcp, Port: 80}, func() (string, uint16) { return "tcp", 81 }},
			"identity, proto": {datapath.PolicyKey{Identity: idR, Protocol: tcp}, func() (string, uint16) { return "udp", 80 }},
			"identity":        {datapath.PolicyKey{Identity: idR}, nil},
			"port":            {datapath.PolicyKey{Protocol: tcp, Port: 80}, func() (string, uint16) { return "tcp", 81 }},
			"proto":           {datapath.PolicyKey{Protocol: tcp}, func() (string, uint16) { return "udp", 80 }},
			"any":             {datapath.PolicyKey{}, nil},
		} {
			t.Run(dir.String()+" "+name, func(t *testing.T) {
				h.t = t
				c.key.Direction = dir
				set := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{c.key: {Origin: 9}}}
				h.rules(podA, set)
				send := func(proto string, dport uint16) result {
					port++
					src, dst := podR.ip, podA.ip
					if dir == datapath.Egress {
						src, dst = dst, src
					}
					ls := segment(src, dst, port, dport, "S")
					if proto == "udp" {
						ls = datagram(src, dst, port, dport, 4)
					}
					if dir == datapath.Egress {
						return h.fromPod(podA, h.sent(podA, ls))
					}
					return h.fromOverlay(h.tunnelled(node2, idR, ls))
				}
				h.passed(send("tcp", 80))
				if c.other != nil {
					e := h.dropped(send(c.other()), maps.DropPolicyDenied)
					if e.Direction != dir || e.RuleSet != 5 || e.Endpoint != h.eps[podA.name].ID || e.Origin != 0 {
						t.Errorf("event %+v", e)
					}
				}
				set.Entries = entries{c.key: {Deny: true, Origin: 9}}
				h.rules(podA, set)
				if e := h.dropped(send("tcp", 80), maps.DropPolicyDenied); e.Origin != 9 {
					t.Errorf("event names origin %d, want 9", e.Origin)
				}
			})
		}
	}
}

func TestPolicyOnOneNode(t *testing.T) {
	h := newHarness(t)
	h.rules(podB, datapath.RuleSet{ID: 6, Ingress: true})
	e := h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
	if e.Direction != datapath.Ingress || e.Endpoint != h.eps[podB.name].ID || e.SourceID != idA || e.DestID != idB {
		t.Errorf("event %+v", e)
	}
	h.rules(podB, datapath.RuleSet{ID: 6, Ingress: true, Entries: entries{{Identity: idA}: {}}})
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, 1000, 80, "S"))))
	h.rules(podA, datapath.RuleSet{ID: 7, Egress: true})
	e = h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, 1001, 80, "S"))), maps.DropPolicyDenied)
	if e.Direction != datapath.Egress || e.Endpoint != h.eps[podA.name].ID {
		t.Errorf("event %+v", e)
	}
}

func TestInitAndUnknownRuleSets(t *testing.T) {
	h := newHarness(t)
	ep := h.eps[podA.name]
	ep.RuleSet = datapath.InitRuleSet
	h.tables.Endpoints.Set(ep.ID, ep)
	h.sync()
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
	h.dropped(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1000, 80, "S"))), maps.DropPolicyDenied)
	h.passed(h.fromHost(h.plain(segment(self, podA.ip, 1000, 80, "S"))))
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, self, 1000, 80, "S"))))
	ep.RuleSet = 99
	h.tables.Endpoints.Set(ep.ID, ep)
	h.sync()
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1001, 80, "S"))), maps.DropUnknownRuleSet)
}

func TestIdentityUnknownYet(t *testing.T) {
	h := newHarness(t)
	to := segment(podA.ip, "10.2.0.88", 1000, 80, "S") // in a pod CIDR, no entry
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true, Entries: entries{{Direction: datapath.Egress}: {}}})
	h.dropped(h.fromPod(podA, h.sent(podA, to)), maps.DropIdentityUnknown)
	h.tables.IPCache.Set(key("10.2.0.88/32"), datapath.IPEntry{Identity: idR, Tunnel: netip.MustParseAddr(node2)})
	h.sync()
	h.passed(h.fromPod(podA, h.sent(podA, to)))
}

// A workload whose labels this node does not know is let out to, or in, by nobody
// who has a policy: a deny may mean it, whatever else is allowed.
func TestUnknownLabelsAreNotAllowed(t *testing.T) {
	h := newHarness(t)
	all := datapath.RuleSet{ID: 5, Egress: true, Ingress: true, Entries: entries{
		{Direction: datapath.Egress}: {}, {Direction: datapath.Ingress}: {},
	}}
	h.rules(podA, all)
	know := func(known bool) {
		for _, n := range []identity.Number{idB, idR} {
			if h.tables.Identities.Delete(n); known {
				h.tables.Identities.Set(n, datapath.Identity{Number: n, ClusterID: 1})
			}
		}
		h.sync()
		if err := h.r.MarkComplete(h.tables.Identities.Name()); err != nil {
			t.Fatal(err)
		}
	}
	sport := uint16(2000)
	for _, f := range families() {
		out := func() result { sport++; return h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.r.ip, sport, 80, "S"))) }
		next := func() result { sport++; return h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.b.ip, sport, 80, "S"))) }
		in := func() result { sport++; return h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.a.ip, sport, 80, "S"))) }
		outward := func() result { sport++; return h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.r.ip, sport, 80, "S"))) }
		know(true)
		h.passed(out())
		h.passed(next())
		h.passed(in())
		know(false)
		if e := h.dropped(out(), maps.DropIdentityUnknown); e.SourceID != idA || e.DestID != idR || e.Direction != datapath.Egress {
			t.Errorf("event %+v", e)
		}
		if e := h.dropped(next(), maps.DropIdentityUnknown); e.DestID != idB || e.Direction != datapath.Egress {
			t.Errorf("event %+v", e)
		}
		if e := h.dropped(in(), maps.DropIdentityUnknown); e.SourceID != idB || e.Direction != datapath.Ingress {
			t.Errorf("event %+v", e)
		}
		h.passed(outward()) // who has no policy is asked nothing
		know(true)
		h.passed(out())
		h.passed(in())
	}
}

// An established flow lives by its cached verdict until an epoch moves.
func TestEstablishedFlowIsJudgedAgain(t *testing.T) {
	for _, f := range families() {
		judgedAgain(t, newHarness(t), f.a, f.r)
	}
}

func judgedAgain(t *testing.T, h *harness, podA, podR host) {
	t.Helper()
	allow := datapath.RuleSet{ID: 5, Egress: true, Entries: entries{
		{Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 80}: {},
	}}
	h.rules(podA, allow)
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "SA"))))
	ack := h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "A"))
	h.passed(h.fromPod(podA, ack))

	// The cache is used: a policy entry taken away behind its back is not seen …
	raw := maps.EncodePolicyKey(5, datapath.PolicyKey{Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 80})
	if err := h.d.Maps().Policy.Delete(raw); err != nil {
		t.Fatal(err)
	}
	h.passed(h.fromPod(podA, ack))
	if err := h.d.Maps().Policy.Put(raw, maps.PolicyEntry{}); err != nil {
		t.Fatal(err)
	}
	// … a change by the agent is, at once and in both directions.
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true})
	h.dropped(h.fromPod(podA, ack), maps.DropPolicyDenied)
	reply := h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "A"))
	h.dropped(h.fromOverlay(reply), maps.DropPolicyDenied)
	h.rules(podA, allow)
	h.passed(h.fromPod(podA, ack))
	h.passed(h.fromOverlay(reply))
	// Another identity behind the address is judged by its own rules.
	h.tables.IPCache.Set(hostKey(podR), datapath.IPEntry{Identity: idX, Tunnel: netip.MustParseAddr(node2)})
	h.sync()
	h.dropped(h.fromPod(podA, ack), maps.DropPolicyDenied)
	// Another rule set with the endpoint's flows cached under the old one.
	h.rules(podA, datapath.RuleSet{ID: 8, Egress: true})
	h.dropped(h.fromPod(podA, ack), maps.DropPolicyDenied)
}

// Words that another flow left in a recycled element do not match.
func TestForeignWordsDoNotMatch(t *testing.T) {
	h := newHarness(t)
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "SA"))))
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1001, 81, "S"))))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 81, 1001, "SA"))))
	all, _ := h.flows()
	var words [2]uint64
	var hops [2]uint64
	for k, e := range all {
		if k.DestPort.Uint16() == 80 || k.SourcePort.Uint16() == 80 {
			words, hops = e.Verdict, e.Hop
		}
	}
	// Policy now denies port 81; the epoch is put back, so that only the flow
	// check can tell the words of flow 80 from those of flow 81.
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true, Entries: entries{
		{Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 80}: {},
	}})
	h.passed(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "A"))))
	all, _ = h.flows()
	for k, e := range all {
		if k.DestPort.Uint16() == 80 || k.SourcePort.Uint16() == 80 {
			words, hops = e.Verdict, e.Hop
		}
	}
	for k, e := range all {
		if k.DestPort.Uint16() == 81 || k.SourcePort.Uint16() == 81 {
			e.Verdict, e.Hop = words, hops
			if err := h.d.Maps().Ct4.Put(k, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1001, 81, "A"))), maps.DropPolicyDenied)
}

func TestICMPIsJudgedByProtocol(t *testing.T) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Identity: idR, Protocol: 1}: {}}})
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, echoRequest(podR.ip, podA.ip))))
	h.dropped(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1, 2, "S"))), maps.DropPolicyDenied)
}

func TestEventsAreLimitedCountersAreExact(t *testing.T) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true})
	const sent = 500
	packet := h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))
	opts := &ebpf.RunOptions{Data: packet, Context: skb{IfIndex: h.ifindex(podA.name)}, Repeat: sent}
	h.in(func() error { _, err := h.d.Programs().FromPod.Run(opts); return err })
	if n := h.moved(metric{maps.DropPolicyDenied, datapath.Egress, "from_pod"}); n != sent {
		t.Errorf("counter moved by %d, want %d", n, sent)
	}
	events := h.events()
	if len(events) < 200 || len(events) >= sent {
		t.Errorf("%d events for %d drops, want 200 and what was earned meanwhile", len(events), sent)
	}
	var next datapath.Event
	for deadline := time.Now().Add(5 * time.Second); next.Suppressed == 0 && time.Now().Before(deadline); {
		h.fromPod(podA, packet)
		if got := h.events(); len(got) > 0 {
			next = got[0]
		}
	}
	if next.Suppressed < uint64(sent-len(events)) {
		t.Errorf("the next event tells of %d suppressed, want at least %d", next.Suppressed, sent-len(events))
	}
}

// An audited endpoint's denies are reported and counted, and pass; so are those of
// both ends, each its own, and nothing tells that they were allowed. What is not
// policy's is dropped as ever. Without audit the open flow is judged again.
func TestAuditReportsAndPasses(t *testing.T) {
	h := newHarness(t)
	h.watch(maps.Watch{Verdicts: 1})
	audited := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Audit: true, Entries: entries{
		{Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 81}: {Deny: true, Origin: 9},
	}}
	h.rules(podA, audited)
	would := func(r result, endpoint host, d datapath.Direction, origin uint32) {
		t.Helper()
		h.passed(r)
		events := h.events()
		if len(events) != 1 {
			t.Fatalf("events %+v, want one", events)
		}
		e := events[0]
		if e.Type != datapath.EventVerdict || e.Reason != maps.AuditPolicyDenied || e.Direction != d || e.Origin != origin || e.Endpoint != h.eps[endpoint.name].ID {
			t.Errorf("event %+v", e)
		}
		if n := h.moved(metric{maps.AuditPolicyDenied, d, e.Program}); n != 1 {
			t.Errorf("counter moved by %d, want 1", n)
		}
		if n := h.moved(metric{maps.DropPolicyDenied, d, e.Program}); n != 0 {
			t.Errorf("%d drops", n)
		}
	}
	would(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 81, "S"))), podA, datapath.Egress, 9)
	would(h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "S"))), podA, datapath.Egress, 0)
	would(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 1001, 80, "S"))), podA, datapath.Ingress, 0)
	// The flow lives on without more reports.
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "SA"))))
	ack := h.sent(podA, segment(podA.ip, podR.ip, 1000, 80, "A"))
	h.passed(h.fromPod(podA, ack))
	h.events()
	h.passed(h.fromPod(podA, ack))
	if events := h.events(); len(events) != 0 {
		t.Errorf("an open flow reports again: %+v", events)
	}
	h.dropped(h.fromOverlay(h.tunnelled(node2, idX, segment(podR.ip, podA.ip, 1002, 80, "S"))), maps.DropSpoofedIdentity)
	h.rules(podB, datapath.RuleSet{ID: 6, Ingress: true})
	h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, 1003, 80, "S"))) // podB does not audit
	if n := h.moved(metric{maps.DropPolicyDenied, datapath.Ingress, "from_pod"}); n != 1 {
		t.Errorf("the other end's policy dropped %d, want 1", n)
	}
	h.events()
	audited.Audit = false
	h.rules(podA, audited)
	h.dropped(h.fromPod(podA, ack), maps.DropPolicyDenied)
}

// The entry that decides counts, and no other: once for a flow, again when it is
// judged again, and each time for what it denies. The agent's own edits and its
// comparing with the kernel leave the count alone.
func TestEntriesCountWhatTheyDecide(t *testing.T) {
	h := newHarness(t)
	h.tables.IPCache.Set(blockKey("10.2.0.0/16"), datapath.IPEntry{Identity: block1})
	wide := datapath.PolicyKey{Direction: datapath.Egress, Identity: idR}
	narrow := datapath.PolicyKey{Direction: datapath.Egress, Identity: idR, Protocol: tcp, Port: 80}
	block := datapath.PolicyKey{Direction: datapath.Egress, Identity: block1, Protocol: tcp, Port: 82}
	set := datapath.RuleSet{ID: 5, Egress: true, Entries: entries{wide: {Origin: 1}, narrow: {Origin: 2}, block: {Origin: 3, Deny: true}}}
	h.rules(podA, set)
	hits := func() (out [3]uint64) {
		for i, k := range []datapath.PolicyKey{wide, narrow, block} {
			var e maps.PolicyEntry
			if err := h.d.Maps().Policy.Lookup(maps.EncodePolicyKey(5, k), &e); err != nil {
				t.Fatal(err)
			}
			out[i] = e.Hits
		}
		return out
	}
	send := func(port uint16, flags string) result {
		return h.fromPod(podA, h.sent(podA, segment(podA.ip, podR.ip, 1000, port, flags)))
	}
	expect := func(want ...uint64) {
		t.Helper()
		if got := hits(); got != [3]uint64(want) {
			t.Errorf("wide, narrow, block decided %v, want %v", got, want)
		}
	}
	h.passed(send(80, "S"))
	h.passed(h.fromOverlay(h.tunnelled(node2, idR, segment(podR.ip, podA.ip, 80, 1000, "SA"))))
	expect(0, 2, 0) // each direction of packets is judged once
	for range 5 {
		h.passed(send(80, "A"))
	}
	expect(0, 2, 0)
	h.passed(send(81, "S"))
	expect(1, 2, 0)
	for range 3 {
		h.dropped(send(82, "S"), maps.DropPolicyDenied)
	}
	expect(1, 2, 3)
	set.Entries = gomaps.Clone(set.Entries)
	set.Entries[datapath.PolicyKey{Direction: datapath.Egress, Identity: idX}] = datapath.PolicyEntry{}
	h.rules(podA, set)
	h.passed(send(80, "A"))
	expect(1, 3, 3)

	// What no entry matches is counted for the default.
	defaults := func() uint64 {
		var e maps.PolicyEntry
		if err := h.d.Maps().Policy.Lookup(maps.DefaultKey(5, datapath.Egress), &e); err != nil {
			t.Fatal(err)
		}
		return e.Hits
	}
	if n := defaults(); n != 0 {
		t.Errorf("the default decided %d, want 0", n)
	}
	for range 4 {
		h.dropped(h.fromPod(podA, h.sent(podA, segment(podA.ip, podB.ip, 1004, 80, "S"))), maps.DropPolicyDenied)
	}
	expect(1, 3, 3)
	if n := defaults(); n != 4 {
		t.Errorf("the default decided %d, want 4", n)
	}
}

// The entry that counts what a default denied decides nothing, not even a packet of
// the protocol that is in its key.
func TestReservedProtocolMeetsNoCount(t *testing.T) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Egress: true, Entries: entries{
		{Direction: datapath.Egress}:                                         {},
		{Direction: datapath.Egress, Identity: idB, Protocol: tcp, Port: 80}: {},
		{Direction: datapath.Egress, Protocol: tcp, Port: 81}:                {Deny: true},
		{Direction: datapath.Egress, Protocol: udp}:                          {Deny: true},
	}})
	for _, f := range families() {
		for _, proto := range []layers.IPProtocol{254, 255} {
			i := gopacket.SerializableLayer(ip(f.a.ip, f.r.ip, proto))
			if f.icmp != 1 {
				i = ip6(f.a.ip, f.r.ip, proto)
			}
			r := h.fromPod(f.a, h.sent(f.a, []gopacket.SerializableLayer{i, gopacket.Payload(make([]byte, 20))}))
			if proto == 255 {
				h.dropped(r, maps.DropUnsupportedProtocol)
			} else {
				h.passed(r)
			}
		}
	}
}
