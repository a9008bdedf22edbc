// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy/api"
)

const toKube = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: kube, namespace: demo}
spec: {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [kube-apiserver]}]}
`

// The entity kube-apiserver is who has one of the addresses, a node too, and nobody
// else.
func TestKubeAPIServer(t *testing.T) {
	q := Question{Cluster: "east", Objects: parse(t, toKube), Protocol: api.TCP, Port: 6443, Src: workload(t, "east", "web", "10.1.0.1"),
		KubeAPIServers: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("172.30.1.8/30")}}
	node := func(a string) End {
		return End{Name: a, Reserved: identity.RemoteNode, Addr: netip.MustParseAddr(a)}
	}
	for want, ends := range map[bool][]End{
		true:  {{Name: "outside", Addr: netip.MustParseAddr("192.0.2.1")}, node("172.30.1.11")},
		false: {{Name: "outside", Addr: netip.MustParseAddr("192.0.2.2")}, node("172.30.1.12"), workload(t, "east", "other", "10.1.0.3")},
	} {
		for _, q.Dst = range ends {
			if v, err := q.Egress(); err != nil || v.Allowed != want {
				t.Errorf("to %s: %+v, %v; want allowed=%v", q.Dst.Addr, v, err, want)
			}
		}
	}
	q.Dst = End{Name: "some node", Reserved: identity.RemoteNode}
	v, err := q.Egress()
	if hints := strings.Join(v.Hints, "; "); err != nil || !strings.Contains(hints, "kube-apiserver was not looked up: some node has no address here") {
		t.Errorf("to a node without an address: %v, %v", v.Hints, err)
	}
}

// Without an address nobody is meant, which is said.
func TestLintOfKubeAPIServer(t *testing.T) {
	const want = "kube-apiserver is nobody: no address of a Kubernetes API server is known"
	around := Surroundings{Cluster: "east", Identities: mesh(t)}
	if found := Lint(around, parse(t, toKube)); len(found) != 1 || !strings.Contains(found[0].String(), want) {
		t.Errorf("found %v", found)
	}
	around.KubeAPIServers = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	if found := Lint(around, parse(t, toKube)); len(found) != 0 {
		t.Errorf("with an address found %v", found)
	}
}

// The cluster contains its API servers, outside the mesh too; without an address
// that is nobody, and nothing is pointed out.
func TestClusterContainsKubeAPIServer(t *testing.T) {
	for _, entity := range []string{"cluster", "mesh"} {
		text := strings.Replace(toKube, "kube-apiserver", entity, 1)
		q := Question{Cluster: "east", Objects: parse(t, text), Protocol: api.TCP, Port: 6443, Src: workload(t, "east", "web", "10.1.0.1"),
			Dst: End{Name: "outside", Addr: netip.MustParseAddr("192.0.2.1")}}
		for want, at := range map[bool][]netip.Prefix{true: {netip.MustParsePrefix("192.0.2.0/30")}, false: nil} {
			q.KubeAPIServers = at
			if v, err := q.Egress(); err != nil || v.Allowed != want {
				t.Errorf("%s, API servers at %v: %+v, %v", entity, at, v, err)
			}
		}
		deny := strings.Replace(toKube, "egress: [{toEntities: [kube-apiserver]}]",
			"egress: [{toEntities: [kube-apiserver]}, {toEntities: [remote-node]}, {toEntities: [world]}], egressDeny: [{toEntities: ["+entity+"]}]", 1)
		around := Surroundings{Cluster: "east", Identities: mesh(t), KubeAPIServers: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}
		found := Lint(around, parse(t, deny))
		if len(found) != 2 || found[0].Path != "spec.egress[0]" || found[1].Path != "spec.egress[1]" || !strings.Contains(found[0].Text, "allows nothing") {
			t.Errorf("a deny of %s: found %v", entity, found)
		}
	}
}
