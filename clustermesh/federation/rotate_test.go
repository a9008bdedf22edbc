// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"crypto/tls"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
)

func apiServerOf(t *testing.T, ca *pki.CA) *tls.Certificate {
	t.Helper()
	leaf, err := ca.Issue(pki.Request{Role: pki.RoleAPIServer}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := leaf.TLS()
	return &c
}

// A cluster replaces its CA while its streams are up: the peer is told, says so,
// and believes certificates of either, then of the new one alone.
func TestPeersFollowAChangeOfCA(t *testing.T) {
	a, b := pair(t)
	old := b.etcd.CA
	next, err := pki.NewCA(b.name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the present CA confirmed", func() bool { return b.m.Trusting()[a.name] })
	resumes := a.status(b).GetResumesReceived()

	b.creds.set(nil, old.Certificate(), next.Certificate())
	eventually(t, "both confirmed", func() bool { return b.m.Trusting()[a.name] })
	eventually(t, "both believed", func() bool { return len(peerOf(t, a, b).GetTrustBundle()) == 2 })
	if got := a.status(b); got.GetState() != stateConnected || got.GetResumesReceived() != resumes {
		t.Errorf("the stream was interrupted: %v", got)
	}

	b.creds.set(apiServerOf(t, next), next.Certificate(), old.Certificate())
	b.restart() // new connections show the new certificate
	connected(t, a, b)
	eventually(t, "the new order confirmed", func() bool { return b.m.Trusting()[a.name] })
	runner := a.m.runner(b.name)
	stream, _ := runner.current()
	b.creds.set(nil, next.Certificate())
	eventually(t, "the old one retired", func() bool { return b.m.Trusting()[a.name] && len(peerOf(t, a, b).GetTrustBundle()) == 1 })
	eventually(t, "a has seen it", func() bool {
		a.m.mu.Lock()
		defer a.m.mu.Unlock()
		return len(a.m.peers[b.name].GetRetired()) == 1
	})
	if now := a.m.runner(b.name); now != runner {
		t.Error("the last step ended the peering and began it anew")
	} else if cur, _ := now.current(); cur != stream {
		t.Error("the last step interrupted the stream")
	}
	b.restart()
	connected(t, a, b)

	// Who still shows the old one's certificate stays out.
	b.creds.set(apiServerOf(t, old), next.Certificate())
	b.restart()
	eventually(t, "the old certificate refused", func() bool { return a.status(b).GetState() == stateLost })
}

// A bundle that is not the cluster's to have is refused, and not confirmed.
func TestCAsThatAPeerMayNotHave(t *testing.T) {
	a, b := pair(t)
	c := newCluster(t, 3)
	joinPeers(t, a, c)
	eventually(t, "present CAs confirmed", func() bool { return b.m.Trusting()[a.name] && c.m.Trusting()[a.name] })
	stranger, err := pki.NewCA(b.name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for what, bundle := range map[string][][]byte{
		"ours":            {b.etcd.CA.Certificate().Raw, a.etcd.CA.Certificate().Raw},
		"another peer's":  {b.etcd.CA.Certificate().Raw, c.etcd.CA.Certificate().Raw},
		"all at once":     {stranger.Certificate().Raw},
		"none":            nil,
		"no certificates": {[]byte("x")},
		"no CA":           {apiServerOf(t, b.etcd.CA).Certificate[0]},
	} {
		if changed, err := a.m.store.LearnTrust(t.Context(), a.m.trust, b.name, bundle); err == nil || changed {
			t.Errorf("%s: changed %v, %v", what, changed, err)
		}
	}
	if _, err := a.m.store.LearnTrust(t.Context(), a.m.trust, "nobody", [][]byte{stranger.Certificate().Raw}); err == nil {
		t.Error("a stranger's CA was taken")
	}
	if got := peerOf(t, a, b).GetTrustBundle(); len(got) != 1 || string(got[0]) != string(b.etcd.CA.Certificate().Raw) {
		t.Error("a refused bundle changed what is believed")
	}
	b.creds.set(nil, b.etcd.CA.Certificate(), a.etcd.CA.Certificate())
	eventually(t, "the refusal is shown", func() bool { return a.status(b).GetLastError() != "" })
	if b.m.Trusting()[a.name] {
		t.Error("a refused bundle was confirmed")
	}
}

func peerOf(t *testing.T, of, peer *testCluster) *keyspacev1.Peer {
	t.Helper()
	ps, _, err := of.m.Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		if p.GetName() == peer.name {
			return p
		}
	}
	t.Fatalf("%s has no peer %s", of.name, peer.name)
	return nil
}

var _ peering.Credentials = (*testCreds)(nil)
