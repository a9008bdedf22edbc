// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
)

// confirmAs sends the last step of the join of b with a by a used token, under
// some certificate.
func confirmAs(t *testing.T, a, b *testCluster, token string, creds *testCreds, abort bool) error {
	t.Helper()
	cfg := &tls.Config{ServerName: peering.JoinServerName, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"}, Certificates: []tls.Certificate{creds.leaf}}
	conn, err := tlsgrpc.Dial(t.Context(), a.proxy.addr(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cc, err := tlsgrpc.ClientOver(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	tok := parse(t, token)
	proof, err := invitation.Proof(tok.Secret, conn.ConnectionState(), "confirm", tok.CAHash, peering.BundleHash([][]byte{b.etcd.CA.Certificate().Raw}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err = federationv1.NewJoinClient(cc).Confirm(ctx, &federationv1.ConfirmRequest{TokenId: tok.ID, Proof: proof, Abort: abort})
	return err
}

// joined joins b to a and returns the token, too.
func joined(t *testing.T) (a, b *testCluster, token string) {
	t.Helper()
	a, b = newCluster(t, 1), newCluster(t, 2)
	token = invite(t, a, b.name)
	if res, err := b.m.Join(t.Context(), token, false); err != nil || !res.Joined {
		t.Fatal(err)
	}
	b.fill(0, 20)
	mirrored(t, a, b)
	return a, b, token
}

// Who has got hold of a token that was used neither ends the peering nor takes
// part in it.
func TestUsedTokenEndsNoPeering(t *testing.T) {
	a, b, token := joined(t)
	for _, abort := range []bool{true, false} {
		wantErr(t, confirmAs(t, a, b, token, credsOf(t, mustCA(t, b.name), pki.RoleAPIServer, ""), abort), "the caller is not it")
	}
	b.ip(500, "later")
	mirrored(t, a, b)
	if p := a.peer(b.name); p.GetState() != keyspacev1.Peer_STATE_CONFIRMED {
		t.Errorf("the peer is %v", p)
	}
}

// A joiner that undoes its half when it was confirmed already, as when the answer
// was lost, leaves nothing here, also when records came; and what was undone is
// not confirmed later.
func TestAbortOfAConfirmedPeerLeavesNothing(t *testing.T) {
	a, b, token := joined(t)
	if err := confirmAs(t, a, b, token, b.creds, true); err != nil {
		t.Fatal(err)
	}
	if err := confirmAs(t, a, b, token, b.creds, false); err == nil {
		t.Error("what was undone was confirmed")
	}
	nothingOf(t, a, b)
}

// A leave that is under way is not undone by the joiner's token.
func TestLeavingPeerIsNotConfirmedAgain(t *testing.T) {
	a, b, token := joined(t)
	a.stop()
	store := peering.NewStore(a.kv, a.name, time.Now)
	if err := store.StartLeave(t.Context(), b.name); err != nil {
		t.Fatal(err)
	}
	// What would withdraw its records waits for that office.
	other, err := election.Acquire(t.Context(), election.Config{Client: a.kv, Cluster: a.name, Office: []string{"import", b.name}, Replica: "other"})
	if err != nil {
		t.Fatal(err)
	}
	a.start()
	for _, abort := range []bool{false, true} {
		_ = confirmAs(t, a, b, token, b.creds, abort)
		if p := a.peer(b.name); p.GetState() != keyspacev1.Peer_STATE_LEAVING {
			t.Errorf("the leaving peer is %s, abort %v", p.GetState(), abort)
		}
	}
	b.del(kvstore.NewKey(kvstore.Private, b.name, kvstore.KindPeerView, a.name).String())
	_, err = b.m.Join(t.Context(), token, false)
	wantErr(t, err, "is leaving")
	other.Release(t.Context())
	nothingOf(t, a, b)
}

// nothingOf waits until there is nothing of b at a.
func nothingOf(t *testing.T, a, b *testCluster) {
	t.Helper()
	eventually(t, "nothing is left of "+b.name, func() bool {
		for _, prefix := range []string{kvstore.Prefix(kvstore.State, b.name), kvstore.KindPrefix(kvstore.Local, a.name, kvstore.KindSynced),
			kvstore.KindPrefix(kvstore.Local, a.name, kvstore.KindPeerView), kvstore.KindPrefix(kvstore.Private, a.name, kvstore.KindProgress)} {
			page, err := a.kv.List(t.Context(), prefix, "", 10, 0)
			if err != nil || len(page.KVs) > 0 {
				return false
			}
		}
		return a.peer(b.name) == nil
	})
}

// What a peer published goes when its record was removed by hand, and only then.
func TestPeerWithoutARecordIsWithdrawn(t *testing.T) {
	a, b := pair(t)
	c := newCluster(t, 3)
	joinPeers(t, a, c)
	b.fill(0, 20)
	c.fill(0, 20)
	mirrored(t, a, b)
	mirrored(t, a, c)
	broken := kvstore.NewKey(kvstore.Private, a.name, kvstore.KindPeerView, c.name).String()
	a.putRaw(broken, []byte("zzz")) // is a record all the same
	if err := a.m.WithdrawLeft(t.Context()); err != nil {
		t.Error(err)
	}
	if len(a.keys(b)) == 0 || len(a.keys(c)) == 0 {
		t.Error("peers that have records were withdrawn")
	}
	a.del(kvstore.NewKey(kvstore.Private, a.name, kvstore.KindPeerView, b.name).String())
	eventually(t, "its stream has ended", func() bool { return a.m.runner(b.name) == nil })
	if err := a.m.WithdrawLeft(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(a.keys(b)); n != 0 || a.get(kvstore.NewKey(kvstore.Local, a.name, kvstore.KindPeerView, b.name).String()) != nil {
		t.Errorf("%d keys are left, or the view is", n)
	}
	if len(a.keys(c)) == 0 {
		t.Error("the other one was withdrawn too")
	}
	if left, err := peering.NewStore(a.kv, a.name, time.Now).Left(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
