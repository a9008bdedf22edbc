// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

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
	// Others are objects in force beside those that are looked at.
	Others []api.Object
	// Pods are the ranges of the mesh's pods, as far as they are known.
	Pods []netip.Prefix
}

// String is the finding in a line.
func (f Finding) String() string { return f.Object + " " + f.Path + ": " + f.Text }

// Lint looks at valid objects.
func Lint(w Surroundings, objects []api.Object) []Finding {
	cluster, index := w.Cluster, newIndex(w.Identities)
	denies, parts := deniesOf(objects, w.Others)
	var out []Finding
	for _, o := range objects {
		untold := len(denies)*parts > maxPairs
		for _, r := range o.Rules {
			add := func(path, format string, args ...any) {
				out = append(out, Finding{o.ID(), path, fmt.Sprintf(format, args...)})
			}
			if why := never(r.Endpoints); why != "" {
				add(r.Path, "can select no workload, ever: %s", why)
			} else if !anyOf(index.candidates(r.Endpoints), func(i Identity) bool { return i.Cluster == cluster && r.Endpoints.Matches(i.Labels) }) {
				add(r.Path, "selects no workload of cluster %s now: %s", cluster, r.Endpoints)
			}
			if untold && slices.ContainsFunc(r.Parts, func(p api.Part) bool { return !p.Deny }) {
				untold = false // once for an object
				add(r.Path, "not compared with all denies: whether one takes back what it allows is not looked at, since %d denies and %d parts of rules "+
					"are more than %d pairs; write denies with several peers and ports instead of one for each", len(denies), parts, maxPairs)
			}
			if len(denies)*parts <= maxPairs {
				w.contradicted(o.ID(), r, denies, add)
			} else if own, parts := deniesOf([]api.Object{{Namespace: o.Namespace, Name: o.Name, Rules: []api.Rule{r}}}); len(own)*parts <= maxPairs {
				w.contradicted(o.ID(), r, own, add)
			}
			for _, p := range r.Parts {
				w.lintPart(index, p, r.Path+"."+p.Path, add)
			}
		}
	}
	return out
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
	case p.NoPeers:
		add(path, "allows nothing: its list of peers is empty, which is nobody; to allow everybody write %sEntities: [all]", [...]string{"from", "to"}[p.Direction])
	}
	if slices.Contains(p.Peers.Entities, api.EntityKubeAPIServer) && len(w.KubeAPIServers) == 0 {
		add(path, "kube-apiserver is nobody: no address of a Kubernetes API server is known; start the API servers of %s with --kube-apiserver-address", cluster)
	}
	for _, s := range p.Peers.Selectors {
		if why := never(s); why != "" {
			add(path, "can select no workload, ever: %s", why)
			continue
		}
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
	if p.Peers.Entities != nil && !slices.ContainsFunc(p.Peers.Entities, func(e api.Entity) bool { return e != api.EntityNone }) {
		add(path, "entity none is nobody: leave it out, or name who is meant")
	}
	for _, c := range p.Peers.CIDRs {
		if text := w.lintCIDR(c); text != "" {
			add(path, "%s", text)
		}
	}
}

// lintCIDR is what a prefix may not be meant to say; empty: nothing.
func (w Surroundings) lintCIDR(c api.CIDR) string {
	const only = "these rules are about addresses outside the mesh; select pods by labels, or write a NetworkPolicy with an ipBlock"
	nobody, except, pods := &bart.Table[int]{}, &bart.Table[struct{}]{}, &bart.Table[struct{}]{}
	for _, e := range c.Except {
		except.Insert(e, struct{}{})
		pods.Insert(e, struct{}{})
	}
	for _, p := range w.Pods {
		pods.Insert(p, struct{}{})
	}
	switch {
	case !anybody(c.Prefix, nobody, except):
		return fmt.Sprintf("%s is nothing: its except takes all of it", c.Prefix)
	case c.Block:
	case c.Prefix.Bits() == 0:
		return fmt.Sprintf("%s is the world outside the mesh, not every peer: pods are selected by labels", c.Prefix)
	case !anybody(c.Prefix, nobody, pods):
		return fmt.Sprintf("%s matches nothing: all of it is ranges of the mesh's pods, and %s", c, only)
	default:
		i := slices.IndexFunc(w.Pods, func(p netip.Prefix) bool { return c.Prefix.Overlaps(p) && anybody(p, nobody, except) })
		if i >= 0 {
			return fmt.Sprintf("%s does not mean the pods in it, such as those of %s: %s", c, w.Pods[i], only)
		}
	}
	return ""
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
