// SPDX-License-Identifier: Apache-2.0

package labels_test

import (
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity/labels"
)

func TestFilter(t *testing.T) {
	pod := []string{
		"k8s:app=web", "k8s:app.kubernetes.io/name=web", "cni:team=blue", "k8s:tier=front",
		"k8s:pod-template-hash=6d4cf56db6", "k8s:controller-revision-hash=x", "k8s:statefulset.kubernetes.io/pod-name=web-0",
		"cni:batch.kubernetes.io/job-completion-index=3", "mesh:cluster=east", "mesh:namespace=demo",
	}
	for name, c := range map[string]struct{ rules, want string }{
		"defaults leave out what differs from pod to pod": {
			"", "cni:team=blue,k8s:app=web,k8s:app.kubernetes.io/name=web,k8s:tier=front"},
		"exclude by prefix":           {"!app", "cni:team=blue,k8s:tier=front"},
		"exclude one key":             {"!app=", "cni:team=blue,k8s:app.kubernetes.io/name=web,k8s:tier=front"},
		"exclude of one source":       {"!k8s:*", "cni:team=blue"},
		"only what is named":          {"k8s:app", "k8s:app=web,k8s:app.kubernetes.io/name=web"},
		"the longer prefix decides":   {"app !app.kubernetes.io/", "k8s:app=web"},
		"… in both directions":        {"!app app=", "k8s:app=web"},
		"a source before none":        {"!tier k8s:tier", "k8s:tier=front"},
		"all, and one of the noise":   {"* pod-template-hash=", "cni:team=blue,k8s:app=web,k8s:app.kubernetes.io/name=web,k8s:pod-template-hash=6d4cf56db6,k8s:tier=front"},
		"all does not mean the noise": {"*", "cni:team=blue,k8s:app=web,k8s:app.kubernetes.io/name=web,k8s:tier=front"},
		"a prefix of noise":           {"statefulset.", ""},
		"nothing":                     {"!*", ""},
	} {
		f, err := labels.ParseFilter(strings.Fields(c.rules))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		set, err := labels.ParseSet(pod, labels.Kubernetes)
		if err != nil {
			t.Fatal(err)
		}
		want := "mesh:cluster=east,mesh:namespace=demo"
		if c.want != "" {
			want = c.want + "," + want
		}
		if got := f.Apply(set).String(); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

func TestFilterRefuses(t *testing.T) {
	for rule, want := range map[string]string{
		"":              "no prefix",
		"!":             "no prefix",
		"k8s:":          "no prefix",
		"=x":            "no prefix",
		":app":          "leave out the source",
		"any:app":       "leave out the source",
		"!mesh:cluster": "always count",
		"!reserved:":    "always count",
		"app=web":       `write "app="`,
		"app.*":         "without '*'",
		"a b":           "without '*'",
	} {
		if _, err := labels.ParseFilter([]string{rule}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", rule, err, want)
		}
	}
	_, err := labels.ParseFilter([]string{"app", "!mesh:x", "!app", "app=web"})
	for _, want := range []string{`"!app": there is also`, "always count", `write "app="`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q: %v", want, err)
		}
	}
}
