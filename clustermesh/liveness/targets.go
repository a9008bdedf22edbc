// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// Bounds of whom one node probes.
const (
	MaxTargets    = 64
	perCluster    = 3
	clusterShare  = MaxTargets / 2 // of the targets, for three of every cluster
	hashSeparator = 0xFF
	lookers       = 16 // of a node whose agent is not heard, about
)

// Targets chooses whom self probes: three nodes of every cluster, its own too,
// and the nodes with backends of services that it knows, and others that matter
// (backends tells which), at most MaxTargets. Which three differs from node to node, so that together
// they look at all; equal input gives equal output.
func Targets(self NodeID, nodes []Target, backends func(NodeID) bool) []Target {
	type ranked struct {
		Target
		rank uint64
	}
	clusters := map[string][]ranked{}
	var serving []ranked
	for _, n := range nodes {
		if n.NodeID == self {
			continue
		}
		r := ranked{n, rank(self, n.NodeID)}
		clusters[n.Cluster] = append(clusters[n.Cluster], r)
		if backends(n.NodeID) {
			serving = append(serving, r)
		}
	}
	byRank := func(a, b ranked) int { return cmp.Or(cmp.Compare(a.rank, b.rank), a.Compare(b.NodeID)) }
	chosen := map[NodeID]Target{}
	take := func(rs []ranked, most, limit int) {
		slices.SortFunc(rs, byRank)
		for _, r := range rs[:min(len(rs), most)] {
			if len(chosen) < limit {
				chosen[r.NodeID] = r.Target
			}
		}
	}
	own := clusters[self.Cluster]
	delete(clusters, self.Cluster)
	take(own, perCluster, clusterShare)
	var names []string
	for name := range clusters {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		take(clusters[name], perCluster, clusterShare)
	}
	take(serving, len(serving), MaxTargets)
	out := make([]Target, 0, len(chosen))
	for _, t := range chosen {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Target) int { return a.Compare(b.NodeID) })
	return out
}

// rank is where a node stands among those that another may probe.
func rank(self, n NodeID) uint64 {
	h := fnv.New64a()
	for _, s := range []string{self.Cluster, self.Node, n.Cluster, n.Node} {
		_, _ = h.Write([]byte(s)) // never fails
		_, _ = h.Write([]byte{hashSeparator})
	}
	// FNV's high bits change little with the last bytes: mix.
	x := h.Sum64()
	x ^= x >> 32
	x *= 0x9E3779B97F4A7C15
	return x ^ x>>29
}
