// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"net/netip"
	"strings"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

// serviceRange is what ranges of service addresses are called, beside "pod" and
// "node".
const serviceRange = "service"

// TakenRange is a range that somebody has already.
type TakenRange struct {
	Prefix netip.Prefix
	// Service says that services have their addresses there. Another service range
	// may overlap it.
	Service bool
}

// Taken are the ranges of our own cluster, and the pod and node ranges of the
// peers other than except, which may never be granted again.
func Taken(own *keyspacev1.Cluster, peers []*keyspacev1.Peer, except string) []TakenRange {
	var out []TakenRange
	add := func(in []string, service bool) {
		for _, s := range in {
			if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil {
				out = append(out, TakenRange{Prefix: p.Masked(), Service: service})
			}
		}
	}
	add(own.GetPodCidrs(), false)
	add(own.GetNodeCidrs(), false)
	add(own.GetServiceCidrs(), true)
	for _, p := range peers {
		if p.GetName() != except {
			add(p.GetGrant().GetPodCidrs(), false)
			add(p.GetGrant().GetNodeCidrs(), false)
		}
	}
	return out
}

// overlapping finds the taken range that stands against a range of what: "pod",
// "node" or serviceRange.
func overlapping(what string, p netip.Prefix, with []TakenRange) (netip.Prefix, bool) {
	for _, t := range with {
		if p.Overlaps(t.Prefix) && (what != serviceRange || !t.Service) {
			return t.Prefix, true
		}
	}
	return netip.Prefix{}, false
}
