// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"

	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// Finding is something about an object that is allowed and perhaps not meant.
type Finding struct {
	Object string // namespace/name
	Path   string // of the field
	Text   string
}

// Lint looks at valid objects of a cluster over the identities of the mesh.
// Peers are taken as naming the local cluster when they name none.
func Lint(cluster string, objects []api.Object, identities []Identity) []Finding {
	var out []Finding
	for _, o := range objects {
		for _, r := range o.Rules {
			add := func(path, format string, args ...any) {
				out = append(out, Finding{o.ID(), path, fmt.Sprintf(format, args...)})
			}
			if !anyOf(identities, func(i Identity) bool { return i.Cluster == cluster && r.Endpoints.Matches(i.Labels) }) {
				add(r.Path, "selects no workload of cluster %s now: %s", cluster, r.Endpoints)
			}
			for _, p := range r.Parts {
				lintPart(cluster, p, r.Path+"."+p.Path, identities, add)
			}
		}
	}
	return out
}

func lintPart(cluster string, p api.Part, path string, identities []Identity, add func(path, format string, args ...any)) {
	if p.Deny && p.Peers.Any && len(p.Ports) == 0 {
		add(path, "denies everything: no rule can allow what a deny covers")
	}
	for _, s := range p.Peers.Selectors {
		named := s.Names(labels.Mesh, labels.ClusterKey)
		here, there := false, ""
		for _, i := range identities {
			switch {
			case !s.Matches(i.Labels):
			case named || i.Cluster == cluster:
				here = true
			default:
				there = i.Cluster
			}
		}
		switch {
		case here:
		case there != "":
			add(path, "selects no workload of cluster %s, but some of %s: a selector that names no cluster means the local one; add mesh:cluster: %s (%s)", cluster, there, there, s)
		default:
			add(path, "selects no workload now: %s", s)
		}
	}
	for _, c := range p.Peers.CIDRs {
		if !c.Block && c.Prefix.Bits() == 0 {
			add(path, "%s is the world outside the mesh, not every peer: pods are selected by labels", c.Prefix)
		}
	}
}

func anyOf(all []Identity, is func(Identity) bool) bool {
	for _, i := range all {
		if is(i) {
			return true
		}
	}
	return false
}
