// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// byLabels is the identity that has all labels of name, one without a source with
// any, as selectors mean it. Without mesh:cluster it is one of the own cluster, if
// that has any; one that has no other labels goes before those with more.
func (k *knowledge) byLabels(name string) (trace.End, error) {
	want, err := labels.ParseSet(strings.Split(name, ","), labels.Any)
	if err != nil {
		return trace.End{}, session.Usage("%v", err)
	}
	if texts := strings.Split(name, ","); len(want) < len(texts) {
		return trace.End{}, session.Usage("labels %s: a key is given twice; a workload has one value of each", name)
	}
	found := keep(k.identities, func(i trace.Identity) bool {
		equal, _ := fitting(i.Labels, want)
		return equal == len(want)
	})
	if len(found) == 0 {
		return trace.End{}, session.Usage("no workload of the mesh has the labels %s%s; see: hawser identity list", name, near(k.identities, want))
	}
	if !slices.ContainsFunc(want, ofCluster) {
		found = prefer(found, func(i trace.Identity) bool { return i.Cluster == k.cluster })
	}
	found = prefer(found, func(i trace.Identity) bool { return own(i.Labels) == own(want) })
	if slices.ContainsFunc(found, func(i trace.Identity) bool { return !i.Labels.Equal(found[0].Labels) }) {
		return trace.End{}, session.Usage("workloads with the labels %s may be any of %s; add labels until one is left", name, listed(found))
	}
	return trace.End{Name: found[0].Labels.String(), Labels: found[0].Labels}, nil
}

// ofCluster tells whether a label names a cluster: another source's label of that key
// is the workload's own.
func ofCluster(l labels.Label) bool {
	return l.Key == labels.ClusterKey && (l.Source == labels.Mesh || l.Source == labels.Any)
}

// fitting is how many labels of want a set has, and of how many it has the key.
func fitting(has, want labels.Set) (equal, keys int) {
	for _, w := range want {
		of := slices.DeleteFunc(slices.Clone(has), func(l labels.Label) bool {
			return l.Key != w.Key || w.Source != labels.Any && l.Source != w.Source
		})
		if len(of) > 0 {
			keys++
		}
		if slices.ContainsFunc(of, func(l labels.Label) bool { return l.Value == w.Value }) {
			equal++
		}
	}
	return equal, keys
}

// own is how many labels of a set Hawser does not set itself.
func own(s labels.Set) (n int) {
	for _, l := range s {
		if l.Key != labels.ClusterKey && l.Key != labels.NamespaceKey || l.Source != labels.Mesh && l.Source != labels.Any {
			n++
		}
	}
	return n
}

// near names those that have the most labels of want, of whichever source, or of
// its keys.
func near(all []trace.Identity, want labels.Set) string {
	want = slices.Clone(want)
	for i := range want {
		want[i].Source = labels.Any
	}
	score := func(i trace.Identity) int {
		equal, keys := fitting(i.Labels, want)
		return equal + keys
	}
	best := 1
	for _, i := range all {
		best = max(best, score(i))
	}
	found := keep(all, func(i trace.Identity) bool { return score(i) == best })
	if len(found) == 0 {
		return ""
	}
	return "; near are " + listed(found)
}

func listed(found []trace.Identity) string {
	var texts []string
	for _, i := range found[:min(len(found), maxNamed)] {
		texts = append(texts, i.Labels.String())
	}
	if len(found) > maxNamed {
		texts = append(texts, "and more")
	}
	return strings.Join(texts, " and ")
}

func keep(all []trace.Identity, which func(trace.Identity) bool) (out []trace.Identity) {
	for _, i := range all {
		if which(i) {
			out = append(out, i)
		}
	}
	return out
}

// prefer are those of found that are meant first, or all, if none is.
func prefer(found []trace.Identity, first func(trace.Identity) bool) []trace.Identity {
	if some := keep(found, first); len(some) > 0 {
		return some
	}
	return found
}
