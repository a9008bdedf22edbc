// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// Identity is an identity of the mesh.
type Identity struct {
	Number  identity.Number
	Cluster string
	Labels  labels.Set
	Addrs   []netip.Addr // that are known; ipBlocks concern them
}

// Pair is what a change of objects does to two identities, as far as the
// policies of one of them go.
type Pair struct {
	Direction datapath.Direction
	Self      labels.Set
	// Peer is the labels of an identity, a reserved identity's name, or a prefix
	// outside the mesh.
	Peer string
	// As "80/tcp", "1-1023/tcp", "icmp type 8", "all other ports of udp", "everything".
	Opened, Closed []string
}

// Change is a set of objects before and after, over the identities of the mesh.
type Change struct {
	Cluster       string // whose objects they are
	Scope         policy.Scope
	Mode          policy.Mode
	Before, After []api.Object
	Identities    []Identity
	Services      []Service
	// KubeAPIServers are the prefixes that rules call kube-apiserver.
	KubeAPIServers []netip.Prefix
}

// Pairs are the pairs that the change opens or closes, the local identities' in
// the order given. It looks at every port and ICMP type that a rule names, and at
// one of each protocol that none does. Ports by name are not looked at: see Names.
func (c Change) Pairs() ([]Pair, error) {
	before, err1 := c.engine(c.Before)
	after, err2 := c.engine(c.After)
	if err := cmp.Or(err1, err2); err != nil {
		return nil, err
	}
	peers := c.peers(before, after)
	var out []Pair
	for _, self := range c.Identities {
		if self.Cluster != c.Cluster {
			continue
		}
		old, err1 := before.rules(self.Labels)
		now, err2 := after.rules(self.Labels)
		if err := cmp.Or(err1, err2); err != nil {
			return nil, err
		}
		if old.Ingress == now.Ingress && old.Egress == now.Egress && sameVerdicts(old.Entries, now.Entries) {
			continue
		}
		for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
			probes := probesOf(d, old, now)
			for _, p := range peers {
				pair := Pair{Direction: d, Self: self.Labels, Peer: p.name}
				for _, probe := range probes {
					was := policy.Decide(old, d, p.before, probe.proto, probe.port).Allow
					is := policy.Decide(now, d, p.after, probe.proto, probe.port).Allow
					switch {
					case is && !was:
						pair.Opened = append(pair.Opened, probe.text)
					case was && !is:
						pair.Closed = append(pair.Closed, probe.text)
					}
				}
				for _, list := range []*[]string{&pair.Opened, &pair.Closed} {
					if len(*list) == len(probes) {
						*list = []string{"everything"}
					}
				}
				if len(pair.Opened)+len(pair.Closed) > 0 {
					out = append(out, pair)
				}
			}
		}
	}
	return out, nil
}

// sameVerdicts compares entries, whichever rule is behind them.
func sameVerdicts(a, b map[datapath.PolicyKey]datapath.PolicyEntry) bool {
	return maps.EqualFunc(a, b, func(x, y datapath.PolicyEntry) bool { return x.Deny == y.Deny })
}

// world is an engine with the prefixes that its objects use.
type world struct {
	*policy.Engine
	cidrs []policy.CIDR
}

func (c Change) engine(objects []api.Object) (world, error) {
	e, err := policy.New(policy.Config{Cluster: c.Cluster, Scope: c.Scope, Mode: c.Mode})
	if err != nil {
		return world{}, err
	}
	for _, i := range c.Identities {
		if err := e.UpsertIdentity(i.Number, i.Cluster, i.Labels); err != nil {
			return world{}, err
		}
	}
	e.SetKubeAPIServers(c.KubeAPIServers)
	for _, o := range objects {
		e.UpsertObject(o)
	}
	for _, s := range c.Services {
		ids, outside := c.backends(s)
		e.SetService(s.Name, ids, outside)
	}
	return world{e, e.CIDRChanges()}, nil
}

// backends are the identities that serve a service, and the addresses of it that
// nobody in the mesh has.
func (c Change) backends(s Service) (ids []identity.Number, outside []netip.Addr) {
	for _, a := range s.Addrs {
		i := slices.IndexFunc(c.Identities, func(i Identity) bool { return slices.Contains(i.Addrs, a) })
		if i < 0 {
			outside = append(outside, a)
		} else {
			ids = append(ids, c.Identities[i].Number)
		}
	}
	return ids, outside
}

// rules is the rule set of endpoints with these labels.
func (w world) rules(ls labels.Set) (datapath.RuleSet, error) {
	id, err := w.AcquireRuleSet(ls)
	if err != nil {
		return datapath.RuleSet{}, err
	}
	w.Changes()
	rs, _ := w.RuleSet(id)
	w.ReleaseRuleSet(ls)
	w.Changes()
	return rs, nil
}

// peer is someone to look at, as the old and the new rules know him.
type peer struct {
	name          string
	before, after policy.Peer
}

func (c Change) peers(before, after world) []peer {
	var out []peer
	for _, n := range []identity.Number{identity.World, identity.Host, identity.RemoteNode} {
		name, _ := n.Reserved()
		out = append(out, peer{name, policy.Peer{Identity: n}, policy.Peer{Identity: n}})
	}
	for _, i := range c.Identities {
		seen := map[[2]identity.Number]bool{}
		for _, a := range append(slices.Clone(i.Addrs), netip.Addr{}) {
			was, is := peerAmong(before.cidrs, End{Addr: a}).Block, peerAmong(after.cidrs, End{Addr: a}).Block
			// An identity without an address that is known counts as outside all blocks.
			if seen[[2]identity.Number{was, is}] || !a.IsValid() && len(i.Addrs) > 0 {
				continue
			}
			seen[[2]identity.Number{was, is}] = true
			name := i.Labels.String()
			if len(seen) > 1 {
				name += " at " + a.String()
			}
			out = append(out, peer{name, policy.Peer{Identity: i.Number, Block: was}, policy.Peer{Identity: i.Number, Block: is}})
		}
	}
	seen := map[netip.Prefix]bool{}
	for _, cidr := range slices.Concat(before.cidrs, after.cidrs) {
		if seen[cidr.Prefix] {
			continue
		}
		seen[cidr.Prefix] = true
		end := End{Addr: cidr.Prefix.Addr()}
		out = append(out, peer{cidr.Prefix.String(), peerAmong(before.cidrs, end), peerAmong(after.cidrs, end)})
	}
	return out
}

// question is one packet to ask about.
type question struct {
	proto uint8
	port  uint16
	text  string
}

// probesOf are the packets on which two rule sets may differ.
func probesOf(d datapath.Direction, sets ...datapath.RuleSet) []question {
	seen := map[question]struct{}{}
	for _, rs := range sets {
		for k := range rs.Entries {
			if k.Direction == d && k.Protocol != 0 && (k.Port != 0 || k.PortWild != 0) {
				seen[question{k.Protocol, k.Port, portText(k)}] = struct{}{}
			}
		}
	}
	// A port that no rule names stands for all others of its protocol.
	for _, proto := range []uint8{api.TCP, api.UDP, api.SCTP, api.ICMP, api.ICMPv6} {
		none, last, what := uint16(0), uint16(65535), "ports"
		if isICMP(proto) {
			none, last, what = api.ICMPPort(0)-1, api.ICMPPort(255), "types"
		}
		named := namedPorts(d, proto, sets)
		for port := last; port > none; port-- {
			if !named[port] {
				seen[question{proto, port, fmt.Sprintf("all other %s of %s", what, ProtocolName(proto))}] = struct{}{}
				break
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b question) int {
		return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port))
	})
}

// namedPorts are the ports, or ICMP types, that entries are about.
func namedPorts(d datapath.Direction, proto uint8, sets []datapath.RuleSet) []bool {
	named := make([]bool, 1<<16)
	for _, rs := range sets {
		for k := range rs.Entries {
			if k.Direction != d || k.Protocol != proto || k.Port == 0 && k.PortWild == 0 {
				continue
			}
			for port := uint32(k.Port); port < uint32(k.Port)+1<<k.PortWild; port++ {
				named[port] = true
			}
		}
	}
	return named
}

// Names reports whether a rule of the objects names a port instead of giving its
// number.
func Names(objects []api.Object) bool {
	for _, o := range objects {
		for _, r := range o.Rules {
			for _, p := range r.Parts {
				if slices.ContainsFunc(p.Ports, func(p api.Port) bool { return p.Name != "" }) {
					return true
				}
			}
		}
	}
	return false
}
