// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// maxSurplus is how many ranges that are not granted are named: in a copy of a
// Cluster record, and in what is said of a record that is refused.
const maxSurplus = 16

// Within is what of a record the grant lets in, to be judged by Check: a Cluster
// record, that of a node, or a slice of backends, which says more ranges or
// addresses than are granted is one with what is granted of them, so that a cluster that grows, or a grant that shrinks,
// changes nothing for the rest. surplus says what was left out; nil: nothing was.
// What Check refuses for another reason it refuses still. rec is not changed.
func (g *Guard) Within(k kvstore.Key, rec proto.Message) (in proto.Message, surplus *kvstore.BadRecord) {
	var out []string
	switch r := rec.(type) {
	default:
		in = rec
	case *keyspacev1.Cluster:
		in, out = g.clusterWithin(r)
	case *keyspacev1.Node:
		in, out = g.nodeWithin(r)
	case *keyspacev1.BackendSlice:
		in, out = g.sliceWithin(r)
	}
	if len(out) == 0 {
		return in, nil
	}
	return in, &kvstore.BadRecord{Key: k.String(), Reason: kvstore.ReasonAddress,
		Detail: strings.Join(out[:min(len(out), maxSurplus)], ", ") + ": not within a granted range; the rest is used"}
}

// clusterWithin also says in the record itself what is not granted; what the peer
// says of that means nothing.
func (g *Guard) clusterWithin(r *keyspacev1.Cluster) (proto.Message, []string) {
	services := g.services
	if !g.grant.GetServiceCidrsPinned() {
		var declared []netip.Prefix
		for _, s := range r.GetServiceCidrs() {
			if p, err := netip.ParsePrefix(s); err == nil && CheckRange(p) == nil {
				declared = append(declared, p)
			}
		}
		services = newRangeSet(declared)
	}
	pods, morePods := cut(r.GetPodCidrs(), g.pods)
	nodes, moreNodes := cut(r.GetNodeCidrs(), g.nodes)
	served, moreServed := cut(r.GetServiceCidrs(), services)
	var out, named []string
	for _, m := range []struct {
		what string
		all  []string
	}{{"pod", morePods}, {"node", moreNodes}, {serviceRange, moreServed}} {
		for _, p := range m.all {
			out, named = append(out, m.what+" CIDR "+p), append(named, m.what+" "+p)
		}
	}
	if len(out) == 0 && len(r.GetNotGranted()) == 0 && len(r.GetKubeApiservers()) == 0 {
		return r, nil
	}
	c := proto.CloneOf(r)
	c.KubeApiservers = nil // of no use here
	c.PodCidrs, c.NodeCidrs, c.ServiceCidrs, c.NotGranted = pods, nodes, served, named[:min(len(named), maxSurplus)]
	return c, out
}

// nodeWithin leaves out those of a node's pod ranges that are not granted, with
// the node's own addresses in them, as long as one is granted: a node of which
// nothing is granted is none of the peer's.
func (g *Guard) nodeWithin(r *keyspacev1.Node) (proto.Message, []string) {
	pods, more := cut(r.GetPodCidrs(), g.pods)
	if len(pods) == 0 || len(more) == 0 {
		return r, nil
	}
	var out []netip.Prefix
	for _, s := range more {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	left := newRangeSet(out)
	n := proto.CloneOf(r)
	n.PodCidrs = pods
	n.Addresses = slices.DeleteFunc(n.Addresses, func(a *keyspacev1.NodeAddress) bool {
		ip, err := netip.ParseAddr(a.GetIp())
		return err == nil && ip.Is6() && !g.nodes.has(ip) && !g.pods.has(ip) && left.has(ip)
	})
	for i, p := range more {
		more[i] = "pod CIDR " + p
	}
	return n, more
}

// sliceWithin leaves out the backends that are not granted, as long as one is.
func (g *Guard) sliceWithin(r *keyspacev1.BackendSlice) (proto.Message, []string) {
	var more []string
	var granted []*keyspacev1.Backend
	for _, b := range r.GetBackends() {
		if g.address("backend", b.GetIp(), g.pods, g.nodes) == nil {
			granted = append(granted, b)
		} else {
			more = append(more, "backend "+b.GetIp())
		}
	}
	if len(granted) == 0 || len(more) == 0 {
		return r, nil
	}
	s := proto.CloneOf(r)
	s.Backends = granted
	return s, more
}

// cut is what of the declared ranges is granted, and those declared that are not
// granted in full, each once. What cannot be read stays, for Check to refuse.
func cut(declared []string, granted rangeSet) (in, more []string) {
	known, seen := map[string]bool{}, map[string]bool{}
	add := func(s string) {
		if !known[s] {
			known[s] = true
			in = append(in, s)
		}
	}
	for _, s := range declared {
		p, err := netip.ParsePrefix(s)
		switch {
		case seen[s]:
		case err != nil || granted.covers(p):
			add(s)
		default:
			// A granted range is in few declared ones: each of those has other bits.
			for part := range granted.tree.Subnets(p) {
				add(part.String())
			}
			more = append(more, s)
		}
		seen[s] = true
	}
	return in, more
}

// Grants reports whether a range that a copy of a Cluster record names as not
// granted is granted in full.
func (g *Guard) Grants(notGranted string) bool {
	kind, cidr, _ := strings.Cut(notGranted, " ")
	granted := map[string]rangeSet{"pod": g.pods, "node": g.nodes, serviceRange: g.services}
	ranges, known := granted[kind]
	if !known {
		return false
	}
	_, more := cut([]string{cidr}, ranges)
	return len(more) == 0
}

// GrantFlag is the option of `hawser mesh grant` that grants a range which a copy
// of a Cluster record names as not granted; empty for what is none.
func GrantFlag(notGranted string) (flag, what string) {
	kind, cidr, ok := strings.Cut(notGranted, " ")
	if !ok {
		return "", ""
	}
	return fmt.Sprintf("--add-%s-cidr %s", kind, cidr), fmt.Sprintf("%s CIDR %s", kind, cidr)
}
