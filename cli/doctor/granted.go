// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/rangetext"
)

// unadmitted is a node that another cluster's grant leaves out: nothing is sent
// to it there, and nothing taken from it.
type unadmitted struct {
	node place
	by   string // the cluster that grants
}

// shortfall is what is not granted of a node.
type shortfall struct {
	addr string // of the node
	what string // "address 192.0.2.7"
	flag string // of hawser mesh grant
}

// grantsOf compares the grants of all clusters with the nodes that they are for.
func grantsOf(snapshots []Snapshot) map[unadmitted]shortfall {
	out := map[unadmitted]shortfall{}
	for _, by := range snapshots {
		for _, g := range by.Grants {
			if g.GetProblem() != "" {
				continue
			}
			for _, s := range snapshots {
				for _, m := range s.Members {
					if m.GetCluster() != g.GetPeer() || m.GetProblem() != "" {
						continue
					}
					if missing, ok := shortOf(g, m); ok {
						out[unadmitted{place{m.GetCluster(), m.GetName()}, by.Cluster}] = missing
					}
				}
			}
		}
	}
	return out
}

// shortOf is the first thing of a node for which a grant refuses its record.
func shortOf(g *hawserv1.PeerGrant, m *hawserv1.NodeInfo) (shortfall, bool) {
	nodes, pods := rangetext.Parse(g.GetNodeCidrs()), rangetext.Parse(g.GetPodCidrs())
	for _, text := range append([]string{m.GetTunnelAddress()}, m.GetAddresses()...) {
		a, err := netip.ParseAddr(text)
		in := func(p netip.Prefix) bool { return p.Contains(a) }
		if err != nil || slices.ContainsFunc(nodes, in) || a.Is6() && slices.ContainsFunc(pods, in) {
			continue
		}
		return shortfall{m.GetTunnelAddress(), "address " + text, fmt.Sprintf("--add-node-cidr %s/%d", text, a.BitLen())}, true
	}
	own := rangetext.Parse(m.GetPodCidrs())
	for _, p := range own {
		if slices.ContainsFunc(pods, p.Overlaps) {
			return shortfall{}, false // that part is used
		}
	}
	if len(own) == 0 {
		return shortfall{}, false
	}
	return shortfall{m.GetTunnelAddress(), "pod CIDR " + own[0].String(), "--add-pod-cidr " + own[0].String()}, true
}

// admitted takes out the ways to and from nodes that the other end's cluster does
// not admit, and tells of those that are down: nothing between the nodes can mend
// them.
func admitted(ways []way, snapshots []Snapshot) (rest []way, out []Finding) {
	short := grantsOf(snapshots)
	silent := map[[2]string][]unadmitted{} // by cluster and who grants
	for _, w := range ways {
		u := unadmitted{w.from, w.to.cluster}
		if _, is := short[u]; !is {
			u = unadmitted{w.to, w.from.cluster}
		}
		if _, is := short[u]; !is {
			rest = append(rest, w)
			continue
		}
		if k := [2]string{u.node.cluster, u.by}; w.down() && !slices.Contains(silent[k], u) {
			silent[k] = append(silent[k], u)
		}
	}
	for k, us := range silent {
		slices.SortFunc(us, func(a, b unadmitted) int { return comparePlaces(a.node, b.node) })
		var names, what, flags []string
		for _, u := range us {
			s := short[u]
			names = append(names, fmt.Sprintf("%s (%s)", u.node, s.addr))
			what, flags = append(what, s.what), append(flags, s.flag)
		}
		object := "node " + names[0]
		if len(us) > 1 {
			object = "nodes " + strings.Join(names, ", ")
		}
		flags = slices.Compact(flags)
		out = append(out, Finding{Severity: Problem, Cluster: k[1], Check: "path", Object: object,
			Cause: fmt.Sprintf("no answer through the tunnel from %[2]s: %[2]s refuses what %[1]s says of it, as it does not grant %[1]s %[3]s", k[0], k[1], strings.Join(slices.Compact(what), ", ")),
			Next:  fmt.Sprintf("if that is right of %s: hawser mesh grant %[1]s %s --cluster %s", k[0], strings.Join(flags, " "), k[1])})
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Object+a.Cluster, b.Object+b.Cluster) })
	return rest, out
}
