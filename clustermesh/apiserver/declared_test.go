// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// A peer that the file has does not leave by command: the file would bring it back.
func TestDeclaredPeersLeaveByTheFile(t *testing.T) {
	cfg := testConfig(t)
	cfg.PeersFile = filepath.Join(t.TempDir(), "peers.yaml")
	s := start(t, cfg)
	ca, err := pki.NewCA("west", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pem := strings.ReplaceAll(strings.TrimSpace(string(pki.EncodeCertificate(ca.Certificate()))), "\n", "\n    ")
	file := func(text string) {
		t.Helper()
		if err := os.WriteFile(cfg.PeersFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file("apiVersion: hawser.io/v1\nkind: Peer\nmetadata: {name: west}\nspec:\n  id: 2\n  endpoints: [\"127.0.0.1:9\"]\n" +
		"  podCIDRs: [10.2.0.0/16]\n  nodeCIDRs: [192.168.2.0/24]\n  ca: |\n    " + pem + "\n")
	if wrong := s.declarePeers(t.Context()); len(wrong) > 0 {
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
	_, err = s.Leave(t.Context(), &hawserv1.LeaveRequest{Peer: "west"})
	wantRefusal(t, err, "it is declared in --peers-file "+cfg.PeersFile)
	if got := state(); got != keyspacev1.Peer_STATE_CONFIRMED {
		t.Errorf("after a leave that was refused the peer is %s", got)
	}
	if err := s.refuseLeave(t.Context(), "north"); err != nil {
		t.Errorf("one that is not in the file: %v", err)
	}
	file("kind: [Peer") // what it said before still holds
	s.declarePeers(t.Context())
	wantRefusal(t, s.refuseLeave(t.Context(), "west"), "remove it there")
	s.declared.read, s.declared.names = false, nil // as after a restart
	wantRefusal(t, s.refuseLeave(t.Context(), "west"), "could not be read yet")

	file("\n")
	if wrong := s.declarePeers(t.Context()); len(wrong) > 0 {
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
