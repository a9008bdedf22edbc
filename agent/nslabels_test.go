// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity/labels"
)

// A workload's identity has the labels of its namespace, under a source that the
// workload itself cannot claim, and as far as the filter lets them count.
func TestLabelsOfTheNamespace(t *testing.T) {
	m, _ := testEndpoints(t, nil)
	q := addRequest("c1")
	q.Labels = []string{"k8s:team=blue"}
	q.NamespaceLabels = []string{"team=red", "namespace:stage=prod", "kubernetes.io/metadata.name=demo"}
	ls, err := m.labelsOf(q)
	if err != nil {
		t.Fatal(err)
	}
	for rules, want := range map[string][]string{
		"":                {"k8s:team=blue", "mesh:cluster=east", "mesh:namespace=demo", "namespace:stage=prod", "namespace:team=red"},
		"!namespace:*":    {"k8s:team=blue", "mesh:cluster=east", "mesh:namespace=demo"},
		"namespace:stage": {"mesh:cluster=east", "mesh:namespace=demo", "namespace:stage=prod"},
	} {
		f, err := labels.ParseFilter(slices.DeleteFunc([]string{rules}, func(s string) bool { return s == "" }))
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Apply(ls).Strings(); !slices.Equal(got, want) {
			t.Errorf("filter %q: %v, want %v", rules, got, want)
		}
	}
	for name, c := range map[string]struct {
		labels, ofNamespace []string
		want                string
	}{
		"claimed by the workload":   {[]string{"namespace:team=red"}, nil, `source "namespace" is not for workloads`},
		"of another source":         {nil, []string{"k8s:team=red"}, `it may not have another source than "namespace"`},
		"of Hawser's source":        {nil, []string{"mesh:cluster=west"}, `it may not have another source than "namespace"`},
		"the name of another":       {nil, []string{"kubernetes.io/metadata.name=kube-system"}, `the workload is in namespace "demo"`},
		"not a label":               {nil, []string{"a;b=c"}, "of the namespace: label"},
		"more than one at once":     {nil, []string{"x:y=z", "a;b"}, "control characters"},
		"another's name and source": {nil, []string{"namespace:kubernetes.io/metadata.name=x"}, `the workload is in namespace "demo"`},
	} {
		q := addRequest("c2")
		q.Labels, q.NamespaceLabels = c.labels, c.ofNamespace
		if ls, err := m.labelsOf(q); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want %q", name, ls, err, c.want)
		}
	}
}
