// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"testing"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// progressOf is where at keeps how far it has copied of.
func progressOf(at, of *testCluster) string {
	return kvstore.NewKey(kvstore.Private, at.name, kvstore.KindProgress, of.name).String()
}

// leaveProgress gives at the position that an earlier peering with of would have
// left, had its Peer been removed by hand: up to date, under the same grant.
func leaveProgress(t *testing.T, at, of *testCluster) {
	t.Helper()
	inc, err := of.m.Incarnation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	grant, err := peering.GrantFor(of.cfg.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	_, rev, err := of.kv.Get(t.Context(), progressOf(of, at))
	if err != nil {
		t.Fatal(err)
	}
	at.put(kvstore.NewKey(kvstore.Private, at.name, kvstore.KindProgress, of.name), &keyspacev1.Position{
		Incarnation: inc, Revision: rev, Grant: peering.GrantHash(grant)})
}

// A new peering copies all, wherever an earlier one of that name stood, on the
// inviting and on the joining side.
func TestNewPeeringDoesNotResumeAnEarlierOne(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	a.fill(0, 5)
	b.fill(0, 5)
	leaveProgress(t, a, b)
	leaveProgress(t, b, a)
	joinPeers(t, a, b)
	mirrored(t, a, b)
}

// The same for a peer that a file declares; a changed file is no new peering.
func TestDeclaredPeeringDoesNotResumeAnEarlierOne(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	b.fill(0, 5)
	if w := declare(t, b, declaration(a)); len(w) > 0 {
		t.Fatal(w)
	}
	progress := kvstore.NewKey(kvstore.Private, a.name, kvstore.KindProgress, b.name)
	a.put(progress, &keyspacev1.Position{Incarnation: "left", Revision: 1 << 40})
	a.stop()
	if w := declare(t, a, declaration(b)); len(w) > 0 {
		t.Fatal(w)
	}
	if left := a.get(progress.String()); left != nil {
		t.Errorf("the position of an earlier peering is left: %q", left)
	}
	a.put(progress, &keyspacev1.Position{Incarnation: "of this one", Revision: 7})
	if w := declare(t, a, declaration(b, "podCIDRs: [10.2.0.0/16]", "podCIDRs: [10.2.0.0/16, 10.88.0.0/16]")); len(w) > 0 {
		t.Fatal(w)
	}
	if a.get(progress.String()) == nil {
		t.Error("a changed declaration lost the position")
	}
	a.start()
}
