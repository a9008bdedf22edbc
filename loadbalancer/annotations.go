// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"strings"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/manifest"
)

const annotationPrefix = "hawser.io/"

// alias is our name for an annotation that others made known.
func alias(name string) string {
	switch name {
	case "service.cilium.io/global", "io.cilium/global-service":
		return annotationPrefix + "global"
	case "service.cilium.io/shared", "io.cilium/shared-service":
		return annotationPrefix + "shared"
	case "service.cilium.io/affinity", "io.cilium/service-affinity":
		return annotationPrefix + "affinity"
	}
	return name
}

// parseAnnotations keeps what is addressed to us. Annotations of others are
// notes and mean nothing here.
func parseAnnotations(n manifest.Node, s *keyspacev1.Service) {
	names, values := n.Entries()
	out := map[string]string{}
	var shared manifest.Node
	for i, v := range values {
		name := alias(names[i])
		if !strings.HasPrefix(name, annotationPrefix) {
			if strings.HasPrefix(name, "service.cilium.io/") || strings.HasPrefix(name, "io.cilium/") {
				v.Problem("not supported yet")
			}
			continue
		}
		text, ok := v.Text()
		if !ok {
			continue
		}
		if old, twice := out[name]; twice && old != text {
			v.Problem("contradicts another name of %s", name)
		}
		out[name] = text
		checkAnnotation(v, strings.TrimPrefix(name, annotationPrefix), text)
		if name == annotationPrefix+"shared" {
			shared = v
		}
	}
	s.Global = out[annotationPrefix+"global"] == "true"
	s.Shared = s.Global && out[annotationPrefix+"shared"] != "false"
	if !s.Global && out[annotationPrefix+"shared"] == "true" {
		shared.Problem("a service that is not global cannot be shared: set %sglobal too", annotationPrefix)
	}
	if len(out) > 0 {
		s.Annotations = out
	}
}

// checkAnnotation accepts the values that act as they say today.
func checkAnnotation(v manifest.Node, name, text string) {
	var accepted []string
	switch name {
	case "global", "shared":
		if text != "true" && text != "false" {
			v.Problem("%q: want true or false", text)
		}
		return
	case "affinity", "session-affinity":
		accepted = []string{"none"}
	case "min-healthy":
		accepted = []string{"1"}
	case "lb-algorithm":
		accepted = []string{"maglev"}
	case "import":
		accepted = []string{"none"}
	case "weights":
		v.Problem("not supported yet")
		return
	default:
		v.Problem("unknown annotation")
		return
	}
	if text != accepted[0] {
		v.Problem("%q is not supported yet: want %s", text, accepted[0])
	}
}
