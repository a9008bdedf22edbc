// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// Labels mean workloads that there are, in whichever namespace and with whichever
// source, and never one that nobody has.
func TestLabelsMeanWorkloadsThatAre(t *testing.T) {
	k := &knowledge{cluster: "east"}
	for i, text := range []string{
		"k8s:app=client,mesh:cluster=east,mesh:namespace=demo", "k8s:app=echo,mesh:cluster=east,mesh:namespace=demo",
		"k8s:app=echo,k8s:tier=back,mesh:cluster=east,mesh:namespace=demo", "k8s:app=client,mesh:cluster=west,mesh:namespace=demo",
		"cni:app=two,mesh:cluster=east,mesh:namespace=a", "k8s:app=two,mesh:cluster=east,mesh:namespace=b", "cni:app=far,mesh:cluster=west,mesh:namespace=demo",
		"k8s:cluster=x,mesh:cluster=west,mesh:namespace=demo", "k8s:cluster=x,mesh:cluster=east,mesh:namespace=demo",
	} {
		ls, err := labels.ParseSet(strings.Split(text, ","), labels.Any)
		if err != nil {
			t.Fatal(err)
		}
		cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
		k.identities = append(k.identities, trace.Identity{Number: identity.Number(70000 + i), Cluster: cluster, Labels: ls})
	}
	for name, want := range map[string]string{
		"app=client":                       "k8s:app=client,mesh:cluster=east,mesh:namespace=demo",
		"k8s:app=client":                   "k8s:app=client,mesh:cluster=east,mesh:namespace=demo",
		"app=client,mesh:cluster=west":     "k8s:app=client,mesh:cluster=west,mesh:namespace=demo",
		"app=client,cluster=west":          "k8s:app=client,mesh:cluster=west,mesh:namespace=demo",
		"app=echo":                         "k8s:app=echo,mesh:cluster=east,mesh:namespace=demo",
		"app=echo,mesh:namespace=demo":     "k8s:app=echo,mesh:cluster=east,mesh:namespace=demo",
		"k8s:cluster=x":                    "k8s:cluster=x,mesh:cluster=east,mesh:namespace=demo",
		"tier=back":                        "k8s:app=echo,k8s:tier=back,mesh:cluster=east,mesh:namespace=demo",
		"app=far":                          "cni:app=far,mesh:cluster=west,mesh:namespace=demo",
		"cni:app=two":                      "cni:app=two,mesh:cluster=east,mesh:namespace=a",
		"app=two":                          "error … may be any of cni:app=two,mesh:cluster=east,mesh:namespace=a and k8s:app=two,mesh:cluster=east,mesh:namespace=b; add",
		"cni:app=client":                   "error … near are k8s:app=client,mesh:cluster=east,mesh:namespace=demo and k8s:app=client,mesh:cluster=west",
		"app=client,mesh:namespace=absent": "error … near are k8s:app=client,mesh:cluster=east,mesh:namespace=demo and k8s:app=client,mesh:cluster=west,mesh:namespace=demo; see",
		"app=clint,mesh:cluster=east":      "error … near are k8s:app=client,mesh:cluster=east,mesh:namespace=demo and k8s:app=echo",
		"x=y":                              "error … no workload of the mesh has the labels x=y; see",
		"app=client,app=echo":              "error … a key is given twice",
		"app=a;b":                          "error … are not allowed",
	} {
		e, err := k.end(name)
		got := e.Name
		if err != nil {
			got = "error: " + err.Error()
		}
		part, fails := strings.CutPrefix(want, "error … ")
		if fails != (err != nil) || !strings.Contains(got, part) || !fails && (got != want || e.Labels.String() != want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
