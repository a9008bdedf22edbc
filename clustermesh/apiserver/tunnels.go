// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"slices"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// tunnels are the findings on the ways from our nodes to those of a peer, as our
// nodes' probes see them: whether the tunnel's port is open, and which packets
// get through. Nothing is known before the join: nodes answer only nodes that
// they know.
func (w *watchman) tunnels(peer *keyspacev1.Cluster) (out []*hawserv1.Finding) {
	add := func(check, fix, problem string, a ...any) {
		out = append(out, &hawserv1.Finding{Check: check, Object: peer.GetName(), Problem: fmt.Sprintf(problem, a...), Fix: fix})
	}
	ways, silent, narrow, ours := w.ways(peer.GetName())
	if ours == 0 {
		return nil // nobody who could look
	}
	port := fmt.Sprintf("%d/udp", peer.GetMesh().GetTunnelPort())
	switch {
	case ways == 0:
		add("tunnel", "give our nodes some seconds to look; hawser node paths shows what they found",
			"whether nodes reach each other through the tunnel (%s) is not known: none of ours has looked", port)
	case len(silent) == ways:
		add("tunnel", "let "+port+" through between all nodes of both clusters, both ways",
			"none of its nodes that ours probe answers through the tunnel (%s)", port)
	default:
		for _, s := range silent {
			add("tunnel", "see that the node runs, and let "+port+" through between the two, both ways", "no answer through the tunnel (%s) on the way %s", port, s)
		}
	}
	for _, n := range narrow {
		add("path-mtu", "raise the MTU of the network between them, or lower that of the nodes' underlay devices to what gets through", "%s", n)
	}
	return out
}

// ways are how many ways from our nodes to those of a cluster are probed, which
// are silent, and which carry less than they should; and how many nodes could look.
func (w *watchman) ways(cluster string) (all int, silent, narrow []string, ours int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for node := range w.nodes {
		if w.present[node] {
			ours++
		}
	}
	for prober, r := range w.reports {
		if !w.present[prober] {
			continue
		}
		for _, p := range r.paths {
			if p.GetCluster() != cluster {
				continue
			}
			all++
			way := prober + " → " + p.GetNode()
			switch {
			case !p.GetUp():
				silent = append(silent, way)
			case p.GetMtu() > 0 && p.GetMtu() < p.GetFullMtu():
				narrow = append(narrow, fmt.Sprintf("the way %s carries packets of %d bytes, nodes send up to %d: larger ones are lost", way, p.GetMtu(), p.GetFullMtu()))
			}
		}
	}
	slices.SortFunc(silent, strings.Compare)
	slices.SortFunc(narrow, strings.Compare)
	return all, silent, narrow, ours
}
