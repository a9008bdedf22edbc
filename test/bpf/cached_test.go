// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// A flow between two pods of this node is judged anew when one of them gets another
// identity, though no rule set has changed.
func TestIdentityOfLocalFlowChanges(t *testing.T) {
	for _, f := range families() {
		for _, c := range []struct {
			name  string
			moves host // whose identity changes
			rules func(h *harness)
		}{
			{"sender", podA, func(h *harness) {
				h.rules(podB, datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{{Identity: idA}: {}}})
			}},
			{"receiver", podB, func(h *harness) {
				h.rules(podA, datapath.RuleSet{ID: 5, Egress: true, Entries: entries{{Direction: datapath.Egress, Identity: idB}: {}}})
			}},
		} {
			t.Run(f.prefix+c.name, func(t *testing.T) {
				h := newHarness(t)
				c.rules(h)
				syn := h.sent(f.a, segment(f.a.ip, f.b.ip, 1000, 80, "S"))
				h.passed(h.fromPod(f.a, syn))
				h.passed(h.fromPod(f.a, syn))
				ep := h.eps[c.moves.name]
				ep.Identity = idR
				h.tables.Endpoints.Set(ep.ID, ep)
				h.sync()
				h.dropped(h.fromPod(f.a, syn), maps.DropPolicyDenied)
			})
		}
	}
}

// lanWorld makes a prefix of the family known as behind an external endpoint, and
// returns a host in it.
func (h *harness) lanWorld(f family) host {
	h.t.Helper()
	prefix, p := "10.7.0.0/16", host{ip: lanHost}
	if isIPv6(f.a.ip) {
		prefix, p = "fd00:7::/64", host{ip: "fd00:7::9"}
	}
	h.tables.Nodes.Set(addr(lan), datapath.Node{Tunnel: addr(lan), ClusterID: datapath.ExternalCluster, VNI: uint32(lanVNI)})
	h.tables.IPCache.Set(key(prefix), datapath.IPEntry{Identity: identity.World, Tunnel: addr(lan), Flags: datapath.IPCIDR})
	h.sync()
	return p
}

// An error from the tunnel is of no flow that goes past the tunnels, even when its
// destination is behind one by now.
func TestTunnelErrorOfFlowOutside(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"flow", func(t *testing.T) {
			h := newHarness(t)
			peer := lanHost
			if isIPv6(f.a.ip) {
				peer = "fd00:7::9"
			}
			question := h.sent(f.a, datagram(f.a.ip, peer, 5555, 7777, 8))
			if r := h.fromPod(f.a, question); r.act != actOK {
				t.Fatalf("verdict %d", r.act)
			}
			h.lanWorld(f)
			failed := failures(t, peer, f.a.ip, datagram(f.a.ip, peer, 5555, 7777, 8))["unreachable"]
			h.dropped(h.fromOverlay(h.tunnelled(lan, lanVNI, failed)), maps.DropUnrelatedICMP)
			h.passed(h.fromPod(f.a, question)) // through the tunnel now
			h.passed(h.fromOverlay(h.tunnelled(lan, lanVNI, failed)))
		})
	}
}

// The node itself gets nothing but answers from an external endpoint.
func TestExternalOpensNothing(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"host", func(t *testing.T) {
			h := newHarness(t)
			p := h.lanWorld(f)
			from := func(dst string, dport uint16, flags string) result {
				return h.fromOverlay(h.tunnelled(lan, lanVNI, segment(p.ip, dst, 80, dport, flags)))
			}
			h.passed(from(f.a.ip, 1000, "S"))
			h.dropped(from(f.self, 1000, "S"), maps.DropUnknownDestination)
			h.dropped(from(f.self, 1000, "SA"), maps.DropUnknownDestination)
			h.passed(h.fromHost(h.plain(segment(f.self, p.ip, 1000, 80, "S"))))
			h.passed(from(f.self, 1000, "SA"))
		})
	}
}

// A workload of a node is only where its pods are, not in a prefix that policy knows
// behind it.
func TestTunnelSourceInPolicyPrefix(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"source", func(t *testing.T) {
			h := newHarness(t)
			prefix, inside := "10.9.0.0/16", "10.9.0.5"
			if isIPv6(f.a.ip) {
				prefix, inside = "fd00:9::/64", "fd00:9::5"
			}
			packet := h.tunnelled(node2, idR, segment(inside, f.a.ip, 1000, 80, "S"))
			h.tables.IPCache.Set(key(prefix), datapath.IPEntry{Identity: cidr1, Tunnel: addr(node2)})
			h.sync()
			h.dropped(h.fromOverlay(packet), maps.DropSpoofedSource)
			h.tables.IPCache.Set(key(prefix), datapath.IPEntry{Identity: cidr1, Tunnel: addr(node2), Flags: datapath.IPCIDR})
			h.sync()
			h.passed(h.fromOverlay(packet))
		})
	}
}

// The entry from after translation, which went, is made again by an established
// flow, so that answers have the service's address.
func TestEstablishedServiceFlowIsFollowed(t *testing.T) {
	for _, f := range families() {
		t.Run(f.prefix+"service", func(t *testing.T) {
			h := newHarness(t)
			h.serve(f.vip, 80, tcp, f.b)
			h.sync()
			to := func(flags string) { h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, 1000, 80, flags)))) }
			back := func(flags string) result {
				return h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.a.ip, 8080, 1000, flags)))
			}
			to("S")
			h.passed(back("SA"))
			to("A")
			if isIPv6(f.a.ip) {
				forgetAfter[maps.Tuple6](h, h.d.Maps().Ct6)
			} else {
				forgetAfter[maps.Tuple4](h, h.d.Maps().Ct4)
			}
			to("A")
			expect(t, h.passed(back("A")).out, f.vip, 80, f.a.ip, 1000)
		})
	}
}

// forgetAfter deletes the entries from after translation; those from before have
// seen them for the last time long ago.
func forgetAfter[K maps.FlowKey](h *harness, m *ebpf.Map) {
	h.t.Helper()
	all, err := maps.Dump[K, maps.CTEntry](m)
	if err != nil || len(all) != 2 {
		h.t.Fatalf("%d established flows, want 2: %v", len(all), err)
	}
	for k, e := range all {
		if e.Flags&maps.CTNAT != 0 {
			err = m.Delete(k)
		} else {
			e.Created -= 10 * 1024
			err = m.Put(k, e)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

// A new connection to a service does not break a live one between the same two ends
// and ports, direct or through another service; one that is over makes room.
func TestServiceSparesLiveConnections(t *testing.T) {
	for _, f := range families() {
		h := newHarness(t)
		h.serve(f.vip, 80, tcp, f.b)
		h.serve(f.vip, 81, tcp, f.b)
		h.sync()
		for name, old := range map[string]struct {
			dst  string
			port uint16
		}{"direct": {f.b.ip, 8080}, "another service's": {f.vip, 81}} {
			t.Run(f.prefix+name, func(t *testing.T) {
				h.t = t
				to := func(dst string, port uint16, flags string) result {
					return h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, dst, 1000, port, flags)))
				}
				back := func(flags string) result {
					return h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.a.ip, 8080, 1000, flags)))
				}
				h.passed(to(old.dst, old.port, "S"))
				h.passed(back("SA"))
				h.passed(to(old.dst, old.port, "A"))
				h.answered(to(f.vip, 80, "S"), maps.DropTupleInUse)
				expect(t, h.passed(back("A")).out, old.dst, old.port, f.a.ip, 1000)
				h.passed(to(old.dst, old.port, "FA"))
				h.passed(back("FA"))
				h.passed(to(f.vip, 80, "S"))
				expect(t, h.passed(back("SA")).out, f.vip, 80, f.a.ip, 1000)
			})
			h.forgetFlows()
		}
	}
}

// Both entries of a flow to a service know how it ended, so that neither is kept
// like a live one's.
func TestServiceFlowEnds(t *testing.T) {
	for _, f := range families() {
		h := newHarness(t)
		h.serve(f.vip, 80, tcp, f.b)
		h.sync()
		for name, c := range map[string]struct {
			flags string
			want  uint8
		}{"reset by the client": {"RA", maps.CTReset}, "closed by the client": {"FA", maps.CTFinForward}} {
			t.Run(f.prefix+name, func(t *testing.T) {
				h.t = t
				to := func(flags string) { h.passed(h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, f.vip, 1000, 80, flags)))) }
				to("S")
				h.passed(h.fromPod(f.b, h.sent(f.b, segment(f.b.ip, f.a.ip, 8080, 1000, "SA"))))
				to("A")
				to(c.flags)
				ended := 0
				flows, _ := h.flows()
				flows6, _ := h.flows6()
				for _, e := range flows {
					ended += int(e.TCP & c.want / c.want)
				}
				for _, e := range flows6 {
					ended += int(e.TCP & c.want / c.want)
				}
				if ended != 2 {
					t.Errorf("%d entries say so, want 2", ended)
				}
			})
			h.forgetFlows()
		}
	}
}
