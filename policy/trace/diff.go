// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"context"
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
	// Of a peer that is not the same to ipBlocks everywhere: the addresses at
	// which, or the prefix in which, it is meant. Empty: everywhere.
	At []netip.Addr
	In netip.Prefix
	// Except are prefixes that are not meant, though they are in the peer's.
	Except []netip.Prefix
	// As "80/tcp", "1-1023/tcp", "icmp type 8", "all ports of udp", "other protocols"
	// (those without ports, but ICMP), "everything".
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
	// HostAddrs are the addresses of the own cluster's nodes, NodeAddrs those of
	// all clusters' nodes. Without any a node is thought to be anywhere.
	HostAddrs, NodeAddrs []netip.Addr
	// Inside are more prefixes of the mesh, in which no address is outside.
	Inside []netip.Prefix
	// KubeAPIServers are the prefixes that rules call kube-apiserver.
	KubeAPIServers []netip.Prefix
}

// Pairs are the pairs that the change opens or closes, the local identities' in
// the order given: of every port, of ICMP the echo requests, of other protocols all, and
// of every address. Ports by name are not looked at: see Names. It ends early with the
// context's error.
func (c Change) Pairs(ctx context.Context) ([]Pair, error) {
	before, err1 := c.engine(ctx, c.Before)
	after, err2 := c.engine(ctx, c.After)
	if err := cmp.Or(err1, err2); err != nil {
		return nil, err
	}
	targets := c.targets(before, after)
	var out []Pair
	for _, self := range c.Identities {
		if self.Cluster != c.Cluster {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		old, err1 := before.rules(self.Labels)
		now, err2 := after.rules(self.Labels)
		if err := cmp.Or(err1, err2); err != nil {
			return nil, err
		}
		for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
			if !enforces(old, d) && !enforces(now, d) {
				continue
			}
			of := deltas(d, old, now)
			for _, t := range targets {
				if d == datapath.Ingress && t.name == hostName() {
					continue // a node always reaches its own endpoints
				}
				for _, p := range t.pairs(of) {
					p.Direction, p.Self = d, self.Labels
					out = append(out, p)
				}
			}
		}
	}
	return out, nil
}

func hostName() string {
	name, _ := identity.Host.Reserved()
	return name
}

func enforces(rs datapath.RuleSet, d datapath.Direction) bool {
	return d == datapath.Egress && rs.Egress || d == datapath.Ingress && rs.Ingress
}

// deltas answers what becomes of the packets of a peer, once for all peers that
// the rules treat the same.
func deltas(d datapath.Direction, old, now datapath.RuleSet) func(who) delta {
	says := map[string]int{}
	was, is := rowsOf(d, old, says), rowsOf(d, now, says)
	known := map[[2][2]int]delta{}
	return func(w who) delta {
		kind := [2][2]int{was.kind(w.before), is.kind(w.after)}
		x, ok := known[kind]
		if !ok {
			x = deltaOf(d, old, now, w, cellsOf(append(was.met(w.before), is.met(w.after)...)...))
			known[kind] = x
		}
		return x
	}
}

// world is an engine with the prefixes that its objects use.
type world struct {
	*policy.Engine
	prefixes prefixes
}

func (c Change) engine(ctx context.Context, objects []api.Object) (world, error) {
	e, err := policy.New(policy.Config{Cluster: c.Cluster, Scope: c.Scope, Mode: c.Mode})
	if err != nil {
		return world{}, err
	}
	known := map[netip.Addr]identity.Number{}
	for _, i := range c.Identities {
		if err := e.UpsertIdentity(i.Number, i.Cluster, i.Labels); err != nil {
			return world{}, err
		}
		for _, a := range i.Addrs {
			known[a] = i.Number
		}
	}
	e.SetKubeAPIServers(c.KubeAPIServers)
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return world{}, err
		}
		e.UpsertObject(o)
	}
	for _, s := range c.Services {
		ids, outside := backends(s, known)
		e.SetService(s.Name, ids, outside)
	}
	return world{e, newPrefixes(e.CIDRChanges())}, nil
}

// backends are the identities that serve a service, and the addresses of it that
// nobody in the mesh has; who has which is known.
func backends(s Service, known map[netip.Addr]identity.Number) (ids []identity.Number, outside []netip.Addr) {
	for _, a := range s.Addrs {
		if n, ok := known[a]; ok {
			ids = append(ids, n)
		} else {
			outside = append(outside, a)
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
