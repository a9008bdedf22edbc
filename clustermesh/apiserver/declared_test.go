// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
)

// declaredWest is a file that declares a peer west.
func declaredWest(t *testing.T) string {
	t.Helper()
	ca, err := pki.NewCA("west", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pem := strings.ReplaceAll(strings.TrimSpace(string(pki.EncodeCertificate(ca.Certificate()))), "\n", "\n    ")
	return "apiVersion: hawser.io/v1\nkind: Peer\nmetadata: {name: west}\nspec:\n  id: 2\n  endpoints: [\"127.0.0.1:9\"]\n" +
		"  podCIDRs: [10.2.0.0/16]\n  nodeCIDRs: [192.168.2.0/24]\n  ca: |\n    " + pem + "\n"
}

// Of several API servers the one in office alone declares what its file says: that
// another has not the new file yet takes no peer away. All of them know what is in
// theirs, and tell what is wrong with it.
func TestPeersAreDeclaredInOfficeOnly(t *testing.T) {
	cfg := testConfig(t)
	cfg.PeersFile = filepath.Join(t.TempDir(), "peers.yaml")
	s := start(t, cfg)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(cfg.PeersFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := func() (out []keyspacev1.Peer_State) {
		t.Helper()
		peers, _, err := s.mesh.Peers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range peers {
			out = append(out, p.GetState())
		}
		return out
	}
	office := kvstore.NewKey(kvstore.Private, "east", kvstore.KindElection, "controllers").String()
	s.damage(t, kvstore.Put(office, []byte("another/1")))
	kv, _, err := s.kv.Get(t.Context(), office)
	if err != nil {
		t.Fatal(err)
	}
	former := []kvstore.Cmp{{Key: office, Target: kvstore.CmpCreateRev, Rev: 1}}
	now := []kvstore.Cmp{{Key: office, Target: kvstore.CmpCreateRev, Rev: kv.CreateRevision}}

	write(declaredWest(t))
	if wrong := s.declarePeers(t.Context(), former); len(wrong) == 0 || len(state()) > 0 {
		t.Errorf("a former leader declared %v, and was told %v", state(), wrong)
	}
	if wrong := s.declarePeers(t.Context(), now); len(wrong) > 0 || !slices.Equal(state(), []keyspacev1.Peer_State{keyspacev1.Peer_STATE_CONFIRMED}) {
		t.Errorf("the leader declared %v, and was told %v", state(), wrong)
	}
	write("\n")
	if wrong := s.declarePeers(t.Context(), former); len(wrong) == 0 || state()[0] != keyspacev1.Peer_STATE_CONFIRMED {
		t.Errorf("a former leader had the peer leave: %v, %v", state(), wrong)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.keepDeclared(ctx) }()
	etcdtest.Eventually(t, 10*time.Second, "it is known that the file has no peer", func() bool { return s.refuseLeave(t.Context(), "west") == nil })
	write("kind: [Peer")
	etcdtest.Eventually(t, 10*time.Second, "the file's problem is told", func() bool { return len(s.declared.problems("the file")) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if state()[0] != keyspacev1.Peer_STATE_CONFIRMED {
		t.Errorf("who is not in office changed the peer: %v", state())
	}
}

// A peer that the file has does not leave by command: the file would bring it back.
func TestDeclaredPeersLeaveByTheFile(t *testing.T) {
	cfg := testConfig(t)
	cfg.PeersFile = filepath.Join(t.TempDir(), "peers.yaml")
	s := start(t, cfg)
	file := func(text string) {
		t.Helper()
		if err := os.WriteFile(cfg.PeersFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file(declaredWest(t))
	if wrong := s.declarePeers(t.Context(), nil); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	state := func() keyspacev1.Peer_State {
		t.Helper()
		peers, _, err := s.mesh.Peers(t.Context())
		if err != nil || len(peers) != 1 {
			t.Fatalf("%v, %v, want one peer", peers, err)
		}
		return peers[0].GetState()
	}
	_, err := s.Leave(t.Context(), &hawserv1.LeaveRequest{Peer: "west"})
	wantRefusal(t, err, "it is declared in --peers-file "+cfg.PeersFile)
	if got := state(); got != keyspacev1.Peer_STATE_CONFIRMED {
		t.Errorf("after a leave that was refused the peer is %s", got)
	}
	if err := s.refuseLeave(t.Context(), "north"); err != nil {
		t.Errorf("one that is not in the file: %v", err)
	}
	file("kind: [Peer") // what it said before still holds
	s.declarePeers(t.Context(), nil)
	wantRefusal(t, s.refuseLeave(t.Context(), "west"), "remove it there")
	s.declared.read, s.declared.names = false, nil // as after a restart
	wantRefusal(t, s.refuseLeave(t.Context(), "west"), "could not be read yet")

	file("\n")
	if wrong := s.declarePeers(t.Context(), nil); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	if got := state(); got != keyspacev1.Peer_STATE_LEAVING {
		t.Errorf("one that the file has no more is %s", got)
	}
	if err := s.refuseLeave(t.Context(), "west"); err != nil {
		t.Errorf("one that the file has no more: %v", err)
	}
	s.cfg.PeersFile = ""
	s.declared.read = false
	if err := s.refuseLeave(t.Context(), "west"); err != nil {
		t.Errorf("without a file: %v", err)
	}
}
