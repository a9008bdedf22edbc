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

// Finding is something about an object that is allowed and perhaps not meant.
type Finding struct {
	Object string // namespace/name
	Path   string // of the field
	Text   string
}

// Surroundings are what objects are looked at over.
type Surroundings struct {
	Cluster    string // whose objects they are
	Scope      policy.Scope
	Identities []Identity
	// Services is whether there is a service of a name (namespace/name), and
	// whether it has backends; nil: services are not looked at.
	Services map[string]bool
	// KubeAPIServers are the prefixes that rules call kube-apiserver.
	KubeAPIServers []netip.Prefix
}

// String is the finding in a line.
func (f Finding) String() string { return f.Object + " " + f.Path + ": " + f.Text }

// Lint looks at valid objects.
func Lint(w Surroundings, objects []api.Object) []Finding {
	cluster, index := w.Cluster, newIndex(w.Identities)
	var out []Finding
	for _, o := range objects {
		for _, r := range o.Rules {
			add := func(path, format string, args ...any) {
				out = append(out, Finding{o.ID(), path, fmt.Sprintf(format, args...)})
			}
			if !anyOf(index.candidates(r.Endpoints), func(i Identity) bool { return i.Cluster == cluster && r.Endpoints.Matches(i.Labels) }) {
				add(r.Path, "selects no workload of cluster %s now: %s", cluster, r.Endpoints)
			}
			contradicted(r, add)
			for _, p := range r.Parts {
				w.lintPart(index, p, r.Path+"."+p.Path, add)
			}
		}
	}
	return out
}

// contradicted finds an allow of which nothing is left by a deny of the same rule.
func contradicted(r api.Rule, add func(path, format string, args ...any)) {
	var denies []api.Part
	for _, p := range r.Parts {
		if p.Deny {
			denies = append(denies, p)
		}
	}
	if len(denies)*len(r.Parts) > maxPairs {
		return
	}
	for _, p := range r.Parts {
		i := slices.IndexFunc(denies, func(d api.Part) bool { return !p.Deny && d.Direction == p.Direction && coversPart(d, p) })
		if i >= 0 {
			add(r.Path+"."+p.Path, "allows nothing: %s denies all of it", denies[i].Path)
		}
	}
}

// maxPairs bounds how many pairs of parts of a rule are compared.
const maxPairs = 1 << 20

// coversPart reports whether a names the same peers and ports as b, or all.
func coversPart(a, b api.Part) bool {
	samePeers := slices.EqualFunc(a.Peers.Selectors, b.Peers.Selectors, func(a, b api.Selector) bool { return a.ID() == b.ID() }) &&
		slices.Equal(a.Peers.Entities, b.Peers.Entities) && slices.Equal(a.Peers.Services, b.Peers.Services) &&
		slices.EqualFunc(a.Peers.CIDRs, b.Peers.CIDRs, func(a, b api.CIDR) bool { return a.String() == b.String() && a.Block == b.Block })
	return (a.Peers.Any || samePeers && !b.Peers.Any) && (len(a.Ports) == 0 || slices.Equal(a.Ports, b.Ports))
}

func (w Surroundings) lintPart(index index, p api.Part, path string, add func(path, format string, args ...any)) {
	cluster := w.Cluster
	for _, name := range p.Peers.Services {
		backends, there := w.Services[name]
		switch {
		case w.Services == nil || backends:
		case there:
			add(path, "service %s has no backend now", name)
		default:
			add(path, "there is no service %s in cluster %s", name, cluster)
		}
	}
	switch {
	case p.Deny && p.Peers.Any && len(p.Ports) == 0:
		add(path, "denies everything: no rule can allow what a deny covers")
	case p.Deny && p.Peers.Nobody():
		add(path, "denies nothing: it names no peer; to deny everybody write %sEntities: [all]", [...]string{"from", "to"}[p.Direction])
	}
	if slices.Contains(p.Peers.Entities, api.EntityKubeAPIServer) && len(w.KubeAPIServers) == 0 {
		add(path, "kube-apiserver is nobody: no address of a Kubernetes API server is known; start the API servers of %s with --kube-apiserver-address", cluster)
	}
	for _, s := range p.Peers.Selectors {
		named := w.Scope == policy.ScopeMesh || s.Names(labels.Mesh, labels.ClusterKey)
		here, there := false, ""
		for _, i := range index.candidates(s) {
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

// index finds the identities that a selector may select.
type index struct {
	all     []Identity
	byLabel map[[2]string][]Identity
}

func newIndex(all []Identity) index {
	x := index{all, map[[2]string][]Identity{}}
	for _, i := range all {
		for _, l := range i.Labels {
			x.byLabel[[2]string{l.Key, l.Value}] = append(x.byLabel[[2]string{l.Key, l.Value}], i)
		}
	}
	return x
}

// candidates are the identities with the rarest single value that the selector
// asks for, or all.
func (x index) candidates(s api.Selector) []Identity {
	best := x.all
	for _, r := range s.Requirements {
		if r.Operator != api.In || len(r.Values) != 1 {
			continue
		}
		if with := x.byLabel[[2]string{r.Key, r.Values[0]}]; len(with) < len(best) {
			best = with
		}
	}
	return best
}
