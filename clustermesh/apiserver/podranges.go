// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/ipam"
)

// What a node may announce as its own: in IPv4 so many bits more than what it
// would be given, in IPv6 this many bits at least.
const (
	announcedMore = 4
	announcedV6   = 56
)

// outside says why a range that a node announces cannot be its own; nil when it
// can: it lies in a pool of the cluster and is not too large a part of it.
func (s *Server) outside(node string, p netip.Prefix) *hawserv1.Problem {
	problem := func(fix, format string, a ...any) *hawserv1.Problem {
		return &hawserv1.Problem{Object: "node " + node, Problem: fmt.Sprintf(format, a...), Fix: fix}
	}
	for _, pool := range s.cfg.PodCIDRs {
		if pool.Bits() > p.Bits() || !pool.Contains(p.Addr()) {
			continue
		}
		least := max(s.cfg.podCIDRSize(familyOf(p))-announcedMore, 0)
		if p.Addr().Is6() {
			least = min(announcedV6, s.cfg.podCIDRSize(ipv6))
		}
		// A cluster may be so small that one node has all of it.
		if p.Bits() < least && p != pool.Masked() {
			return problem("start its agent with a smaller --pod-cidr, or without, or the API server with a smaller --pod-cidr-size",
				"its pod CIDR %s is too large: a node has at most a /%d", p, least)
		}
		return nil
	}
	return problem("start its agent with a --pod-cidr inside, or without; or give the API server its range, too (--pod-cidr)",
		"its pod CIDR %s is not of the cluster's ranges (%s)", p, strings.Join(texts(s.cfg.PodCIDRs), ", "))
}

// podRanges are the cluster's pools of pod addresses, and what is left of them.
func (s *Server) podRanges(ctx context.Context) ([]*hawserv1.PodRange, error) {
	own, err := s.podCIDROwners(ctx)
	if err != nil {
		return nil, err
	}
	var taken []netip.Prefix
	for p := range own {
		taken = append(taken, p)
	}
	var out []*hawserv1.PodRange
	for _, pool := range s.cfg.PodCIDRs {
		nodes := map[string]bool{}
		for p, node := range own {
			if pool.Overlaps(p) {
				nodes[node] = true
			}
		}
		bits := s.cfg.podCIDRSize(familyOf(pool))
		out = append(out, &hawserv1.PodRange{
			Pool: pool.String(), Nodes: uint32(len(nodes)), NodeBits: uint32(bits), Free: ipam.FreeRanges(pool, bits, taken),
		})
	}
	return out, nil
}
