// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy/api"
)

// What a hint tells to write is accepted.
func TestHintsNameEntitiesThatAreAccepted(t *testing.T) {
	const head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {endpointSelector: {matchLabels: {app: web}}, "
	q := Question{Cluster: "east", Objects: parse(t, head+"ingress: [{}]}\n"), Protocol: api.TCP, Port: 80, Dst: workload(t, "east", "web", "10.1.0.1")}
	proposed, refused := 0, 0
	for n := identity.Number(2); n <= identity.MaxReserved; n++ {
		name, ok := n.Reserved()
		if !ok {
			continue
		}
		q.Src = End{Name: name, Reserved: n}
		v, err := q.Ingress()
		hints := strings.Join(v.Hints, "\n")
		if err != nil || v.Allowed {
			t.Fatalf("%s: %+v, %v", name, v, err)
		}
		_, rule, given := strings.Cut(hints, ": ingress: ")
		if !given {
			refused++
			if !strings.Contains(hints, "no rule can name "+name) {
				t.Errorf("%s: %q", name, hints)
			}
			continue
		}
		proposed++
		if _, err := api.Parse([]byte(head + "ingress: " + rule + "}\n")); err != nil {
			t.Errorf("%s: the hint %q is refused: %v", name, hints, err)
		}
	}
	if proposed == 0 || refused == 0 {
		t.Errorf("%d proposed, %d refused: both happen", proposed, refused)
	}
}
