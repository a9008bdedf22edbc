// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"net/netip"
	"slices"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/internal/rangetext"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// territory is the addresses that nodes have, and what else belongs to the mesh.
type territory struct {
	hosts, nodes []netip.Addr // of the own cluster's nodes; of all
	pods         []netip.Prefix
	inside       []netip.Prefix
}

// learnRanges asks the API server for the nodes of all clusters, and takes from
// what a node knows of addresses, if one was asked.
func (k *knowledge) learnRanges(ctx context.Context, s *session.Session) (r territory, err error) {
	client, conn, err := s.Mesh()
	if err != nil {
		return r, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	listed, err := client.ListNodes(ctx, &hawserv1.ListNodesRequest{})
	if err != nil {
		return r, err
	}
	own, err := client.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
	if err != nil {
		return r, err
	}
	r.pods = rangetext.Parse(own.GetPodCidrs())
	r.inside = rangetext.Parse(own.GetServiceCidrs())
	for _, n := range listed.GetNodes() {
		texts := append([]string{n.GetTunnelAddress()}, n.GetAddresses()...)
		slices.Sort(texts)
		for _, text := range slices.Compact(texts) { // its tunnel ends at one that it lists, too
			if a, err := netip.ParseAddr(text); err == nil {
				r.addNode(n.GetCluster() == k.cluster, a)
			}
		}
		r.pods = append(r.pods, rangetext.Parse(n.GetPodCidrs())...)
	}
	for _, e := range k.addresses {
		p, err := netip.ParsePrefix(e.GetPrefix())
		if err != nil {
			continue
		}
		switch e.GetSource() {
		case "host": // an address of the asked node that no other knows
			r.addNode(e.GetCluster() == k.cluster, p.Addr())
		case "endpoint", "node", "ip", "vtep", "range":
			r.inside = append(r.inside, p)
		}
	}
	r.inside = append(r.inside, r.pods...)
	return r, nil
}

func (r *territory) addNode(own bool, a netip.Addr) {
	if own {
		r.hosts = append(r.hosts, a)
	}
	r.nodes = append(r.nodes, a)
}

// tell gives a change what is known of ranges.
func (r territory) tell(c *trace.Change) {
	c.HostAddrs, c.NodeAddrs, c.Inside = r.hosts, r.nodes, r.inside
}
