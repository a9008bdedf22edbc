// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"strings"
	"testing"
)

// An allow of entity none alone allows nothing by itself: no deny is told to take
// it back, while one that takes back a real peer is.
func TestLintOfNoneBesideADeny(t *testing.T) {
	for entity, contradicted := range map[string]bool{"none": false, "world": true} {
		objects := parse(t, `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: demo}
spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEntities: [`+entity+`]}], ingressDeny: [{fromEntities: [world]}]}
`)
		told := false
		for _, f := range Lint(Surroundings{Cluster: "east", Identities: mesh(t)}, objects) {
			told = told || strings.Contains(f.Text, "denies all of it")
		}
		if told != contradicted {
			t.Errorf("%s: told %v; want %v", entity, told, contradicted)
		}
	}
}
