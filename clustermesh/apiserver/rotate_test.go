// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"crypto/sha256"
	"testing"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
)

// A step of the CA's replacement waits for each node of the cluster, unless the
// node is named.
func TestNoNodeIsLeftBehind(t *testing.T) {
	s := startPort(t)
	store := func(m proto.Message, sub kvstore.Subtree, kind kvstore.Kind, name string) {
		t.Helper()
		if _, err := s.putIfChanged(t.Context(), kvstore.NewKey(sub, "east", kind, name), m); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"n1", "n2"} {
		store(&keyspacev1.Node{Cluster: "east", Name: n}, kvstore.State, kvstore.KindNode, n)
	}
	confirm := func(node string) {
		t.Helper()
		var raw [][]byte
		for _, c := range s.creds.CA() {
			raw = append(raw, c.Raw)
		}
		trust, signer := peering.BundleHash(raw), sha256.Sum256(raw[0])
		store(&keyspacev1.NodeStatus{Node: node, Trust: trust[:], Signer: signer[:]}, kvstore.Local, kvstore.KindStatus, node)
	}
	step := func(to pki.Phase, leave ...string) error {
		_, err := s.RotateCA(t.Context(), &hawserv1.RotateCARequest{To: string(to), LeaveNodes: leave})
		return err
	}
	phase := func(want pki.Phase) {
		t.Helper()
		if got, err := pki.RotationPhase(s.creds.dir); err != nil || got != want {
			t.Fatalf("phase %q, %v, want %q", got, err, want)
		}
	}
	if err := step(pki.PhaseAnnounced); err != nil { // cuts off nobody
		t.Fatal(err)
	}
	confirm("n1")
	wantRefusal(t, step(pki.PhaseSwitched), "not confirmed by node n2")
	wantRefusal(t, step(pki.PhaseSwitched, "n1"), "--leave-node n2")
	phase(pki.PhaseAnnounced)
	confirm("n2")
	if err := step(pki.PhaseSwitched); err != nil {
		t.Fatal(err)
	}
	// What they confirmed before does not count for the next step.
	wantRefusal(t, step(pki.PhaseNone), "not confirmed by node n1, n2")
	if err := step(pki.PhaseSwitched); err != nil {
		t.Errorf("a step that is done, again: %v", err)
	}
	phase(pki.PhaseSwitched)
	confirm("n1")
	if err := step(pki.PhaseNone, "n2"); err != nil {
		t.Fatal(err)
	}
	phase(pki.PhaseNone)
}

// A node that was away for so long that its record was removed is waited for, and
// so is one whose record cannot be read.
func TestNoNodeThatIsNotListedIsLeftBehind(t *testing.T) {
	s := startPort(t)
	joined(t, s, "enrolled")
	joined(t, s, "forgotten")
	ops := []kvstore.Op{kvstore.Put(kvstore.NewKey(kvstore.State, "east", kvstore.KindNode, "unreadable").String(), []byte("damaged"))}
	given, err := put(s.nodeConfigKey("given"), &keyspacev1.NodeConfig{Node: "given", PodCidrs: []string{"10.1.7.0/24"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.kv.Txn(t.Context(), nil, append(ops, given), nil); err != nil {
		t.Fatal(err)
	}
	if err := forget(t, s, "forgotten"); err != nil {
		t.Fatal(err)
	}
	step := func(to pki.Phase, leave ...string) error {
		_, err := s.RotateCA(t.Context(), &hawserv1.RotateCARequest{To: string(to), LeaveNodes: leave})
		return err
	}
	if err := step(pki.PhaseAnnounced); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, step(pki.PhaseSwitched), "not confirmed by node enrolled, given, unreadable:")
	wantRefusal(t, step(pki.PhaseSwitched, "enrolled", "given"), "--leave-node unreadable,")
	if err := step(pki.PhaseSwitched, "enrolled", "given", "unreadable"); err != nil {
		t.Error(err)
	}
}
