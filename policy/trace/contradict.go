// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// stance is a part with the rule that it is of.
type stance struct {
	object string
	rule   api.Rule
	part   api.Part
}

// deniesOf are the parts that deny, of all objects.
func deniesOf(objects ...[]api.Object) (out []stance, parts int) {
	for _, o := range slices.Concat(objects...) {
		for _, r := range o.Rules {
			parts += len(r.Parts)
			for _, p := range r.Parts {
				if p.Deny {
					out = append(out, stance{o.ID(), r, p})
				}
			}
		}
	}
	return out, parts
}

// maxPairs bounds how many pairs of parts are compared.
const maxPairs = 1 << 20

// contradicted finds allows of a rule of which provably nothing is left by one
// deny, of any rule.
func (w Surroundings) contradicted(object string, r api.Rule, denies []stance, add func(path, format string, args ...any)) {
	for _, p := range r.Parts {
		if p.Peers.Entities != nil && !slices.ContainsFunc(p.Peers.Entities, func(e api.Entity) bool { return e != api.EntityNone }) {
			continue // it allows nothing to begin with, and is told as that
		}
		i := slices.IndexFunc(denies, func(d stance) bool {
			return !p.Deny && !p.Peers.Nobody() && d.part.Direction == p.Direction &&
				implies(r.Endpoints, d.rule.Endpoints) && w.coversPeers(d.part.Peers, p.Peers) && coversPorts(d.part.Ports, p.Ports)
		})
		if i < 0 {
			continue
		}
		by := denies[i].part.Path
		if denies[i].object != object || denies[i].rule.Path != r.Path {
			by = denies[i].object + " " + denies[i].rule.Path + "." + by
		}
		add(r.Path+"."+p.Path, "allows nothing: %s denies all of it", by)
	}
}

// coversPeers reports whether all that b means is provably meant by a.
func (w Surroundings) coversPeers(a, b api.Peers) bool {
	if a.Any || b.Any {
		return a.Any
	}
	wide := w.scoped(a.Selectors)
	cluster := api.Requirement{Source: labels.Mesh, Key: labels.ClusterKey, Operator: api.Exists}
	if slices.Contains(a.Entities, api.EntityMesh) {
		wide = append(wide, api.NewSelector(cluster))
	} else if slices.Contains(a.Entities, api.EntityCluster) {
		cluster.Operator, cluster.Values = api.In, []string{w.Cluster}
		wide = append(wide, api.NewSelector(cluster))
	}
	return all(w.scoped(b.Selectors), wide, func(b, a api.Selector) bool { return implies(b, a) }) &&
		all(b.Entities, a.Entities, coversEntity) &&
		all(b.Services, a.Services, func(b, a string) bool { return a == b }) &&
		all(b.CIDRs, a.CIDRs, func(b, a api.CIDR) bool { return coversCIDR(a, b) })
}

// coversEntity reports whether all that b means is meant by a. Nobody is meant by
// any.
func coversEntity(b, a api.Entity) bool {
	switch b {
	case a, api.EntityNone:
		return true
	case api.EntityCluster:
		return a == api.EntityMesh
	case api.EntityHost, api.EntityRemoteNode, api.EntityHealth, api.EntityInit, api.EntityKubeAPIServer:
		return a == api.EntityCluster || a == api.EntityMesh
	}
	return false
}

// scoped are selectors with the cluster that they mean.
func (w Surroundings) scoped(list []api.Selector) (out []api.Selector) {
	r := api.Requirement{Source: labels.Mesh, Key: labels.ClusterKey, Operator: api.Exists}
	for _, s := range list {
		if w.Scope != policy.ScopeMesh && !s.Names(labels.Mesh, labels.ClusterKey) {
			r.Operator, r.Values = api.In, []string{w.Cluster}
		} else {
			r.Operator, r.Values = api.Exists, nil
		}
		out = append(out, s.With(r))
	}
	return out
}

// all reports whether each of list is within one of the others.
func all[T any](list, others []T, within func(one, other T) bool) bool {
	return !slices.ContainsFunc(list, func(one T) bool {
		return !slices.ContainsFunc(others, func(other T) bool { return within(one, other) })
	})
}

func coversCIDR(a, b api.CIDR) bool {
	inside := func(p, q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }
	return a.Block == b.Block && inside(b.Prefix, a.Prefix) && !slices.ContainsFunc(a.Except, func(e netip.Prefix) bool {
		return e.Overlaps(b.Prefix) && !slices.ContainsFunc(b.Except, func(f netip.Prefix) bool { return inside(e, f) })
	})
}

func coversPorts(a, b []api.Port) bool {
	return len(a) == 0 || len(b) > 0 && all(b, a, func(b, a api.Port) bool {
		switch {
		case a.Protocol != b.Protocol:
			return false
		case a.Name != "" || b.Name != "":
			return a.Name == b.Name || a.Name == "" && a.Port == 0
		case a.Port == 0:
			return true
		}
		return b.Port != 0 && a.Port <= b.Port && max(b.Port, b.End) <= max(a.Port, a.End)
	})
}

// implies reports whether whom a selects is provably selected by b.
func implies(a, b api.Selector) bool {
	return all(b.Requirements, a.Requirements, func(b, a api.Requirement) bool {
		// A label that rules may name without a source, or one that needs none.
		same := a.Source == b.Source
		wider := same || b.Source == labels.Any && (a.Source == labels.Kubernetes || a.Source == labels.CNI)
		within := func(x, y []string) bool { return all(x, y, func(x, y string) bool { return x == y }) }
		switch {
		case a.Key != b.Key:
			return false
		case b.Operator == api.In:
			return wider && a.Operator == api.In && within(a.Values, b.Values)
		case b.Operator == api.Exists:
			return wider && (a.Operator == api.In || a.Operator == api.Exists)
		case b.Operator == api.DoesNotExist:
			return same && a.Operator == api.DoesNotExist
		}
		return same && (a.Operator == api.DoesNotExist || a.Operator == api.NotIn && within(b.Values, a.Values))
	})
}

// never says why a selector selects no set of labels at all: which two of its
// conditions exclude each other. It is empty where some set may meet them.
func never(s api.Selector) string {
	for i, a := range s.Requirements {
		for _, b := range s.Requirements[i+1:] {
			for _, x := range [][2]api.Requirement{{a, b}, {b, a}} {
				if excludes(x[0], x[1]) {
					return fmt.Sprintf("%s and %s exclude each other", api.NewSelector(x[0]), api.NewSelector(x[1]))
				}
			}
		}
	}
	return ""
}

// excludes reports whether no set of labels meets b beside a, which wants a label.
func excludes(a, b api.Requirement) bool {
	wants := a.Operator == api.In || a.Operator == api.Exists
	among := func(v string) bool { return slices.Contains(b.Values, v) }
	switch {
	case !wants || a.Key != b.Key:
		return false
	case b.Operator == api.In: // one label of a source has one value
		return a.Operator == api.In && a.Source == b.Source && a.Source != labels.Any && !slices.ContainsFunc(a.Values, among)
	case b.Operator == api.Exists || !anySource(b, a):
		return false
	}
	return b.Operator == api.DoesNotExist || a.Operator == api.In && !slices.ContainsFunc(a.Values, func(v string) bool { return !among(v) })
}

// anySource reports whether b means every label that a does, as far as sources go.
func anySource(b, a api.Requirement) bool {
	if b.Source != labels.Any || a.Source == labels.Any {
		return a.Source == b.Source
	}
	switch a.Source {
	case labels.Mesh, labels.Namespace, labels.Reserved, labels.CIDR, labels.Service:
		return false
	}
	return true
}
