// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/policymodel"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// TestPairsAgreeWithModel edits policies at random and compares what Pairs says of
// every packet with what the rules themselves say of it before and after.
func TestPairsAgreeWithModel(t *testing.T) {
	moved, same := 0, 0
	for seed := range uint64(50) {
		w := edits{policymodel.NewWorld(seed)}
		c, model := w.change()
		before, after := model(c.Before), model(c.After)
		pairs, err := c.Pairs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pairs {
			if len(p.Opened)+len(p.Closed) == 0 {
				t.Fatalf("seed %d: a pair without anything: %+v", seed, p)
			}
		}
		fars, ports := w.fars(c), w.ports(c)
		for _, self := range c.Identities {
			if self.Cluster != c.Cluster {
				continue
			}
			ep := policymodel.Endpoint{Labels: self.Labels}
			for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
				own := slices.DeleteFunc(slices.Clone(pairs), func(p Pair) bool { return p.Direction != d || !p.Self.Equal(self.Labels) })
				for _, far := range fars {
					of := slices.DeleteFunc(slices.Clone(own), func(p Pair) bool { return !means(p, far, c.Identities) })
					if len(of) > 1 {
						t.Fatalf("seed %d: %s %s: %+v is in several pairs: %+v", seed, d, self.Labels, far, of)
					}
					for _, proto := range []uint8{api.TCP, api.UDP, api.SCTP, api.ICMP, gre} {
						for _, port := range ports {
							if proto == gre {
								port = 0
							}
							if proto == api.ICMP {
								if api.NeverJudged(proto, uint8(port)) != "" {
									continue
								}
								port = api.ICMPPort(uint8(port))
							}
							want := value(after.Allowed(ep, d, far, proto, port)) - value(before.Allowed(ep, d, far, proto, port))
							got := 0
							for _, p := range of {
								got += value(lists(t, p.Opened, proto, port)) - value(lists(t, p.Closed, proto, port))
							}
							if got != want {
								t.Fatalf("seed %d: %s of %s, peer %+v, %d/%d: the pairs say %+d, the rules %+d\npairs %+v\nbefore %+v\nafter %+v",
									seed, d, self.Labels, far, proto, port, got, want, of, c.Before, c.After)
							}
							if want == 0 {
								same++
							} else {
								moved++
							}
						}
					}
				}
			}
		}
	}
	if moved < 10000 || same < 10000 {
		t.Errorf("%d packets were opened or closed and %d not: too few to say anything", moved, same)
	}
}

// gre stands for all protocols without ports.
const gre = 47

func value(b bool) int {
	if b {
		return 1
	}
	return 0
}

// means reports whether a pair's peer is someone, by its texts.
func means(p Pair, far policymodel.Far, ids []Identity) bool {
	in := func(q netip.Prefix) bool { return q.Contains(far.Addr) }
	if len(p.At) > 0 && !slices.Contains(p.At, far.Addr) || p.In.IsValid() && !in(p.In) || slices.ContainsFunc(p.Except, in) {
		return false
	}
	if name, reserved := far.ID.Reserved(); reserved && far.ID != 0 {
		return p.Peer == name
	}
	if i := slices.IndexFunc(ids, func(i Identity) bool { return i.Number == far.ID }); i >= 0 {
		return p.Peer == ids[i].Labels.String()
	}
	q, err := netip.ParsePrefix(p.Peer)
	return p.Peer == "world" || err == nil && in(q)
}

// lists reports whether a packet is among those that are told.
func lists(t *testing.T, texts []string, proto uint8, port uint16) bool {
	t.Helper()
	name := ProtocolName(proto)
	for _, text := range texts {
		what, of, found := strings.Cut(text, "/")
		if isICMP(proto) {
			port &= 0xFF
			what, found = strings.CutPrefix(text, name+" type ")
			of = name
		}
		switch {
		case text == "everything", proto == gre && text == "other protocols", text == "all ports of "+name:
			return true
		case !found || of != name:
			continue
		}
		from, to, isRange := strings.Cut(what, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil {
			t.Fatalf("%q is not understood", text)
		}
		if first <= int(port) && int(port) <= last {
			return true
		}
	}
	return false
}

// edits makes random changes of few objects.
type edits struct{ policymodel.World }

func (w edits) change() (Change, func([]api.Object) *policymodel.Model) {
	c := Change{Cluster: "east", Scope: policymodel.Pick(w.Rand, policy.ScopeLocal, policy.ScopeMesh)}
	seen := map[string]bool{}
	for i := range policymodel.Workloads {
		ls := w.Labels()
		if seen[ls.String()] {
			continue
		}
		seen[ls.String()] = true
		id := Identity{Number: policymodel.Workload(i), Labels: ls}
		id.Cluster, _ = ls.Get(labels.Mesh, labels.ClusterKey)
		for _, a := range []string{"10.0.0.%d", "10.1.2.%d", "2001:db8::%x", "2001:db9::%x"} {
			if w.IntN(3) == 0 {
				id.Addrs = append(id.Addrs, netip.MustParseAddr(fmt.Sprintf(a, i)))
			}
		}
		c.Identities = append(c.Identities, id)
	}
	if w.IntN(2) == 0 {
		c.HostAddrs = []netip.Addr{netip.MustParseAddr("10.1.9.1")}
		c.NodeAddrs = append([]netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7:7")}, c.HostAddrs...)
	}
	if w.IntN(2) == 0 {
		c.Inside = []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}
	}
	c.KubeAPIServers = w.APIServers()
	for _, name := range []string{"demo/echo", "demo/db"} {
		s := Service{Name: name}
		for range w.IntN(3) {
			s.Addrs = append(s.Addrs, policymodel.Pick(w.Rand, w.fars(c)...).Addr)
		}
		s.Addrs = slices.DeleteFunc(s.Addrs, func(a netip.Addr) bool {
			return !a.IsValid() || slices.Contains(c.NodeAddrs, a) || slices.ContainsFunc(c.Inside, func(p netip.Prefix) bool { return p.Contains(a) })
		})
		c.Services = append(c.Services, s)
	}
	objects := map[string]api.Object{}
	for range 1 + w.IntN(3) {
		o := w.Object()
		objects[o.ID()] = o
	}
	c.Before = slices.Collect(maps.Values(objects))
	if o := w.Object(); w.IntN(4) == 0 {
		if _, there := objects[o.ID()]; there && w.IntN(2) == 0 {
			delete(objects, o.ID())
		} else {
			objects[o.ID()] = o
		}
	} else {
		for _, id := range slices.Sorted(maps.Keys(objects)) {
			objects[id] = w.edited(objects[id])
		}
	}
	c.After = slices.Collect(maps.Values(objects))
	return c, func(objects []api.Object) *policymodel.Model { return modelOf(c, objects) }
}

func modelOf(c Change, objects []api.Object) *policymodel.Model {
	m := policymodel.New(c.Cluster, c.Scope == policy.ScopeMesh)
	for _, i := range c.Identities {
		m.Identities[i.Number] = i.Labels
	}
	for _, o := range objects {
		m.Objects[o.ID()] = o
	}
	m.APIServers = c.KubeAPIServers
	for _, s := range c.Services {
		var served policymodel.Served
		for _, a := range s.Addrs {
			if i := slices.IndexFunc(c.Identities, func(i Identity) bool { return slices.Contains(i.Addrs, a) }); i >= 0 {
				served.IDs = append(served.IDs, c.Identities[i].Number)
			} else {
				served.Outside = append(served.Outside, a)
			}
		}
		m.Services[s.Name] = served
	}
	return m
}

// edited is an object with a port or a prefix of each rule a little different.
func (w edits) edited(o api.Object) api.Object {
	o.Rules = slices.Clone(o.Rules)
	for i := range o.Rules {
		r := &o.Rules[i]
		r.Parts = slices.Clone(r.Parts)
		for k := range r.Parts {
			p := &r.Parts[k]
			p.Ports, p.Peers.CIDRs = slices.Clone(p.Ports), slices.Clone(p.Peers.CIDRs)
			for n := range p.Ports {
				w.editPort(&p.Ports[n])
			}
			for n := range p.Peers.CIDRs {
				w.editCIDR(&p.Peers.CIDRs[n])
			}
		}
	}
	return o
}

func (w edits) editPort(p *api.Port) {
	if p.Name != "" || p.Port == 0 || isICMP(p.Protocol) {
		return
	}
	switch w.IntN(4) {
	case 0:
		p.End = p.Port + uint16(1+w.IntN(100))
	case 1:
		p.End = 0
	case 2:
		if p.End > p.Port+1 {
			p.Port++
		}
	}
}

func (w edits) editCIDR(c *api.CIDR) {
	switch bits := c.Prefix.Bits(); w.IntN(5) {
	case 0:
		c.Prefix = netip.PrefixFrom(c.Prefix.Addr(), max(0, bits-8)).Masked()
	case 1:
		c.Prefix, c.Except = netip.PrefixFrom(c.Prefix.Addr(), min(bits+8, c.Prefix.Addr().BitLen())), nil
	case 2:
		c.Except = nil
	case 3:
		if narrower := netip.PrefixFrom(c.Prefix.Addr(), min(bits+8, c.Prefix.Addr().BitLen())); bits < narrower.Bits() && len(c.Except) == 0 {
			c.Except = []netip.Prefix{narrower}
		}
	case 4:
		c.Block = !c.Block
	}
}

// fars are all who may be asked about: identities at each address, nodes, and
// addresses outside beside every prefix's edges.
func (w edits) fars(c Change) []policymodel.Far {
	var out []policymodel.Far
	taken := map[netip.Addr]bool{}
	for _, i := range c.Identities {
		if len(i.Addrs) == 0 {
			out = append(out, policymodel.Far{ID: i.Number})
		}
		for _, a := range i.Addrs {
			taken[a] = true
			out = append(out, policymodel.Far{ID: i.Number, Addr: a})
		}
	}
	for _, a := range slices.Concat(c.HostAddrs, c.NodeAddrs) {
		taken[a] = true
	}
	var outside []netip.Addr
	for _, text := range []string{"0.0.0.0", "9.255.255.255", "10.0.0.2", "10.0.0.200", "10.1.0.1", "10.1.2.3", "10.1.2.4", "10.1.2.77", "10.1.3.0", "10.1.9.9", "10.9.9.9", "11.0.0.0",
		"192.0.2.9", "192.0.3.1", "198.51.100.1", "255.255.255.255", "::", "2001:db8::1", "2001:db8:1::1", "2001:db9::1", "ffff::"} {
		outside = append(outside, netip.MustParseAddr(text))
	}
	for _, a := range outside {
		inside := slices.ContainsFunc(c.Inside, func(p netip.Prefix) bool { return p.Contains(a) })
		if !taken[a] && !inside {
			out = append(out, policymodel.Far{Addr: a})
		}
	}
	for n, addrs := range map[identity.Number][]netip.Addr{identity.Host: c.HostAddrs, identity.RemoteNode: c.NodeAddrs} {
		if len(addrs) == 0 {
			addrs = outside
		}
		for _, a := range addrs {
			out = append(out, policymodel.Far{ID: n, Addr: a})
		}
	}
	return out
}

// ports are those at the edges of what rules name, and some others.
func (w edits) ports(c Change) []uint16 {
	seen := map[uint16]bool{1: true, 8: true, 40000: true, 65535: true}
	for _, o := range slices.Concat(c.Before, c.After) {
		for _, r := range o.Rules {
			for _, p := range r.Parts {
				for _, port := range p.Ports {
					for _, n := range []uint16{port.Port - 1, port.Port, port.End, port.End + 1, port.Port + (max(port.End, port.Port)-port.Port)/2} {
						seen[n] = n != 0
					}
				}
			}
		}
	}
	maps.DeleteFunc(seen, func(_ uint16, ok bool) bool { return !ok })
	return slices.Sorted(maps.Keys(seen))
}
