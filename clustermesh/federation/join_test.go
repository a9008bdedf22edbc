// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
)

// clock is a wall clock that a test moves.
type clock struct {
	mu   sync.Mutex
	skew time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.skew)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew += d
}

func (c *testCluster) peer(name string) *keyspacev1.Peer {
	c.t.Helper()
	raw := c.get(kvstore.NewKey(kvstore.Private, c.name, kvstore.KindPeerView, name).String())
	if raw == nil {
		return nil
	}
	p := &keyspacev1.Peer{}
	if err := proto.Unmarshal(raw, p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *testCluster) token(id string) *keyspacev1.Token {
	c.t.Helper()
	tok := &keyspacev1.Token{}
	if err := proto.Unmarshal(c.get(kvstore.NewKey(kvstore.Private, c.name, kvstore.KindToken, id).String()), tok); err != nil {
		c.t.Fatal(err)
	}
	return tok
}

// nothingLeft fails if either side knows the other.
func nothingLeft(t *testing.T, a, b *testCluster) {
	t.Helper()
	if p := a.peer(b.name); p != nil {
		t.Errorf("left at the inviter: %v", p)
	}
	if p := b.peer(a.name); p != nil {
		t.Errorf("left at the joiner: %v", p)
	}
}

func parse(t *testing.T, text string) invitation.Token {
	t.Helper()
	tok, err := invitation.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func wantErr(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v, want one with %q", err, part)
	}
}

func TestTokenIsForOneUse(t *testing.T) {
	a, b, c := newCluster(t, 1), newCluster(t, 2), newCluster(t, 3)
	text := invite(t, a, "")
	if res, err := b.m.Join(t.Context(), text, false); err != nil || !res.Joined {
		t.Fatalf("join: %v %v", res, err)
	}
	_, err := c.m.Join(t.Context(), text, false)
	wantErr(t, err, "was used already")
	nothingLeft(t, a, c)
	if tok := a.token(parse(t, text).ID); tok.GetUsedByCluster() != b.name || tok.GetFailures() != 0 {
		t.Errorf("token: %v", tok)
	}
	named := invite(t, a, "other")
	_, err = c.m.Join(t.Context(), named, false)
	wantErr(t, err, `is for cluster "other"`)
	_, err = a.m.Join(t.Context(), named, false)
	wantErr(t, err, "made by this cluster")
	_, err = a.m.Invite(t.Context(), b.name, 0)
	wantErr(t, err, "is a peer already")
}

func TestExpiredToken(t *testing.T) {
	at := &clock{}
	a := newCluster(t, 1, func(c *testCluster) { c.now = at.now })
	b := newCluster(t, 2)
	text := invite(t, a, b.name)
	at.advance(16 * time.Minute) // the inviter's clock alone: the joiner thinks it is good
	_, err := b.m.Join(t.Context(), text, false)
	wantErr(t, err, "expired")
	nothingLeft(t, a, b)
}

func TestWrongSecretRevokes(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	text := invite(t, a, b.name)
	forged := parse(t, text)
	forged.Secret = make([]byte, 16)
	guessed := parse(t, text)
	guessed.ID = strings.Repeat("0", len(guessed.ID))
	_, err := b.m.Join(t.Context(), guessed.String(), false)
	wantErr(t, err, "not valid here")
	for n := range uint32(5) {
		_, err := b.m.Join(t.Context(), forged.String(), false)
		wantErr(t, err, "not valid here")
		if tok := a.token(forged.ID); tok.GetFailures() != n+1 || tok.GetRevoked() != (n == 4) {
			t.Errorf("after %d wrong proofs: %v", n+1, tok)
		}
	}
	_, err = b.m.Join(t.Context(), forged.String(), false)
	wantErr(t, err, "not valid here")
	_, err = b.m.Join(t.Context(), text, false)
	wantErr(t, err, "revoked (after 5 wrong proofs)")
	nothingLeft(t, a, b)
}

func TestWrongCAHash(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	tok := parse(t, invite(t, a, b.name))
	tok.CAHash[0] ^= 1
	_, err := b.m.Join(t.Context(), tok.String(), false)
	wantErr(t, err, "CA is not the one that the token names")
	if n := a.token(tok.ID).GetFailures(); n != 0 {
		t.Errorf("a proof was sent to the wrong CA: %d failures", n)
	}
	nothingLeft(t, a, b)
}

func TestPreflightLeavesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		edit  func(*keyspacev1.Cluster)
		check string
	}{
		"pod overlap":                   {func(c *keyspacev1.Cluster) { c.PodCidrs = []string{"10.1.128.0/17"} }, "pod-cidr-overlap"},
		"node overlap":                  {func(c *keyspacev1.Cluster) { c.NodeCidrs = []string{"192.168.0.0/16"} }, "node-cidr-overlap"},
		"default":                       {func(c *keyspacev1.Cluster) { c.PodCidrs = []string{"0.0.0.0/0"} }, "pod-cidr-never-granted"},
		"link-local":                    {func(c *keyspacev1.Cluster) { c.NodeCidrs = []string{"169.254.7.0/24"} }, "node-cidr-never-granted"},
		"loopback":                      {func(c *keyspacev1.Cluster) { c.PodCidrs = []string{"127.0.0.0/8"} }, "pod-cidr-never-granted"},
		"too wide":                      {func(c *keyspacev1.Cluster) { c.ServiceCidrs = []string{"96.0.0.0/6"} }, "service-cidr-never-granted"},
		"our pods as service addresses": {func(c *keyspacev1.Cluster) { c.ServiceCidrs = []string{"10.1.3.0/24"} }, "service-cidr-overlap"},
		"same id":                       {func(c *keyspacev1.Cluster) { c.Id = 1 }, "id-clash"},
		"bits":                          {func(c *keyspacev1.Cluster) { c.Mesh.ClusterBits = 9 }, "cluster-bits"},
		"tunnel":                        {func(c *keyspacev1.Cluster) { c.Mesh.TunnelPort = 4789 }, "tunnel"},
		"version":                       {func(c *keyspacev1.Cluster) { c.Version = "v0.4.0" }, "version"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newCluster(t, 1)
			b := newCluster(t, 2, func(c *testCluster) { tc.edit(c.cfg.Cluster) })
			text := invite(t, a, "")
			res, err := b.m.Join(t.Context(), text, false)
			if err != nil || res.Joined || !peering.Blocks(res.Findings) {
				t.Fatalf("join: %v %v", res, err)
			}
			found := false
			for _, f := range res.Findings {
				found = found || f.GetCheck() == tc.check && f.GetBlocking() && f.GetFix() != "" && f.GetProblem() != ""
			}
			if !found || !strings.Contains(peering.Explain(a.name, res.Findings), "nothing was changed on either side") {
				t.Errorf("findings: %s", peering.Explain(a.name, res.Findings))
			}
			if tok := a.token(parse(t, text).ID); len(tok.GetUsedBy()) != 0 {
				t.Errorf("the token was consumed: %v", tok)
			}
			nothingLeft(t, a, b)
		})
	}
}

// What somebody agreed to is what is granted, or there is no join.
func TestJoinGrantsWhatWasConfirmed(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	text := invite(t, a, b.name)
	seen, err := b.m.JoinAs(t.Context(), text, peering.How{PreflightOnly: true})
	if err != nil || seen.Grant.GetPodCidrs()[0] != "10.1.0.0/16" || seen.Granted.GetPodCidrs()[0] != "10.2.0.0/16" {
		t.Fatalf("shown: %v %v %v", seen.Grant, seen.Granted, err)
	}
	a.cfg.Cluster.NodeCidrs = append(a.cfg.Cluster.NodeCidrs, "192.168.77.0/24")
	_, err = b.m.JoinAs(t.Context(), text, peering.How{Confirmed: seen.GrantsHash()})
	wantErr(t, err, "changed since it was confirmed")
	nothingLeft(t, a, b)
	again, err := b.m.JoinAs(t.Context(), text, peering.How{PreflightOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := b.m.JoinAs(t.Context(), text, peering.How{Confirmed: again.GrantsHash()}); err != nil || !res.Joined {
		t.Fatalf("what was confirmed does not join: %v %v", res, err)
	}
	if g := b.peer(a.name).GetGrant(); len(g.GetNodeCidrs()) != 2 || !bytes.Equal(peering.GrantHash(g), peering.GrantHash(again.Grant)) {
		t.Errorf("granted: %v, confirmed: %v", g, again.Grant)
	}
}

func TestPreflightOnlyChangesNothing(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2, func(c *testCluster) { c.cfg.Cluster.ServiceCidrs = []string{"172.17.0.0/16"} })
	text := invite(t, a, b.name)
	res, err := b.m.Join(t.Context(), text, true)
	if err != nil || res.Joined || len(res.Findings) != 1 || res.Findings[0].GetBlocking() || res.Findings[0].GetCheck() != "service-cidr-overlap" {
		t.Fatalf("preflight: %v %v", res, err)
	}
	nothingLeft(t, a, b)
	if res, err := b.m.Join(t.Context(), text, false); err != nil || !res.Joined {
		t.Errorf("the token is used up after a preflight: %v %v", res, err)
	}
}

// rawJoin speaks to a join service by hand.
type rawJoin struct {
	federationv1.JoinClient
	conn *tls.Conn
}

func dialJoin(t *testing.T, c *testCluster, creds *testCreds, sni string) (rawJoin, federationv1.FederationClient) {
	t.Helper()
	cfg := &tls.Config{ServerName: sni, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{creds.leaf}}
	conn, err := tlsgrpc.Dial(t.Context(), c.proxy.addr(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := tlsgrpc.ClientOver(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close(); conn.Close() })
	return rawJoin{federationv1.NewJoinClient(cc), conn}, federationv1.NewFederationClient(cc)
}

func TestJoinNameServesJoinOnly(t *testing.T) {
	a, b := pair(t)
	_, fed := dialJoin(t, a, b.creds, peering.JoinServerName)
	if s, err := fed.Stream(t.Context()); err == nil {
		_, err = s.Recv()
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("federation under the join name: %v", err)
		}
	}
	join, _ := dialJoin(t, a, b.creds, peering.FederationServerName)
	if _, err := join.Prepare(t.Context(), &federationv1.PrepareRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("join under the federation name: %v", err)
	}
}

func TestUnconfirmedPeerExpires(t *testing.T) {
	at := &clock{}
	a := newCluster(t, 1, func(c *testCluster) { c.now = at.now })
	b := newCluster(t, 2, func(c *testCluster) { c.now = at.now })
	text := invite(t, a, b.name)
	// The pending peer as a joiner that died after prepare leaves it, and what
	// it leaves on its own side.
	until := at.now().Add(time.Minute).UnixNano()
	for _, x := range []struct{ at, of *testCluster }{{a, b}, {b, a}} {
		x.at.put(kvstore.NewKey(kvstore.Private, x.at.name, kvstore.KindPeerView, x.of.name), &keyspacev1.Peer{
			Name: x.of.name, ClusterId: x.of.id, TrustBundle: [][]byte{x.of.etcd.CA.Certificate().Raw},
			State: keyspacev1.Peer_STATE_PENDING, PendingUntil: until, TokenId: parse(t, text).ID,
		})
	}
	eventually(t, "shown as pending", func() bool { return a.status(b).GetState() == statePending })
	if a.m.runner(b.name) != nil || a.m.trust.Has(b.name) {
		t.Error("a pending peer is trusted")
	}
	at.advance(2 * time.Minute)
	eventually(t, "pending peers removed", func() bool { return a.peer(b.name) == nil && b.peer(a.name) == nil })
}

// noticing tells of each transaction that was done.
type noticing struct {
	kvstore.Client
	did func([]kvstore.Op)
}

func (n noticing) Txn(ctx context.Context, cmps []kvstore.Cmp, then, otherwise []kvstore.Op) (kvstore.TxnResult, error) {
	res, err := n.Client.Txn(ctx, cmps, then, otherwise)
	if err == nil && res.Succeeded {
		n.did(then)
	}
	return res, err
}

// A token that ends between the two steps of a join confirms nothing.
func TestTokenEndsBeforeTheConfirmation(t *testing.T) {
	at, b := &clock{}, newCluster(t, 2)
	a := newCluster(t, 1, func(c *testCluster) {
		c.now = at.now
		c.wrap = func(kv kvstore.Client) kvstore.Client {
			return noticing{kv, func(ops []kvstore.Op) {
				prepared := kvstore.NewKey(kvstore.Private, c.name, kvstore.KindPeerView, b.name).String()
				if slices.ContainsFunc(ops, func(o kvstore.Op) bool { return o.Key == prepared }) {
					at.advance(16 * time.Minute)
				}
			}}
		}
	})
	_, err := b.m.Join(t.Context(), invite(t, a, b.name), false)
	wantErr(t, err, "the token expired before the join was confirmed")
	eventually(t, "nothing left at the inviter", func() bool { return a.peer(b.name) == nil })
}

func TestJoinIsRepeatableUntilConfirmed(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	text := invite(t, a, b.name)
	if res, err := b.m.Join(t.Context(), text, false); err != nil || !res.Joined {
		t.Fatal(err)
	}
	// The joiner lost its half: as if it had died before writing it.
	b.stop()
	b.del(kvstore.NewKey(kvstore.Private, b.name, kvstore.KindPeerView, a.name).String())
	b.start()
	if res, err := b.m.Join(t.Context(), text, false); err != nil || !res.Joined {
		t.Fatalf("repeated join: %v %v", res, err)
	}
	connected(t, a, b)
}

func TestPosersAreRefused(t *testing.T) {
	a, b := pair(t)
	south := newCluster(t, 3)
	joinPeers(t, a, south)
	poser, err := pki.NewCA(south.name, time.Now()) // somebody's CA that says it is south
	if err != nil {
		t.Fatal(err)
	}
	for what, creds := range map[string]*testCreds{
		"another CA with south's name": credsOf(t, poser, pki.RoleAPIServer, ""),
		"b's agent":                    credsOf(t, b.etcd.CA, pki.RoleAgent, "n1"),
		"b's admin":                    credsOf(t, b.etcd.CA, pki.RoleAdmin, "eve"),
		"ourselves":                    a.creds,
		"a stranger":                   credsOf(t, mustCA(t, "stranger"), pki.RoleAPIServer, ""),
	} {
		if err := tryStream(t, a, creds); err == nil {
			t.Errorf("%s was admitted", what)
		}
	}
	if err := tryStream(t, a, b.creds); err != nil {
		t.Errorf("b itself was refused: %v", err)
	}
}

func mustCA(t *testing.T, name string) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// tryStream calls Diff with the given certificate.
func tryStream(t *testing.T, c *testCluster, creds *testCreds) error {
	t.Helper()
	cfg := &tls.Config{ServerName: peering.FederationServerName, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"}, Certificates: []tls.Certificate{creds.leaf}}
	conn, err := tlsgrpc.Dial(t.Context(), c.proxy.addr(), cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	cc, err := tlsgrpc.ClientOver(conn)
	if err != nil {
		return err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	s, err := federationv1.NewFederationClient(cc).Diff(ctx, &federationv1.DiffRequest{})
	if err != nil {
		return err
	}
	_, err = s.Recv()
	return err
}

func TestSharedCAIsRefused(t *testing.T) {
	a := newCluster(t, 1)
	b := newCluster(t, 2)
	joinPeers(t, a, b)
	// c presents b's CA beside its own.
	c := newCluster(t, 3, func(c *testCluster) {
		c.creds.ca = append([]*x509.Certificate{}, c.creds.ca[0], b.etcd.CA.Certificate())
	})
	res, err := c.m.Join(t.Context(), invite(t, a, c.name), false)
	if err != nil || res.Joined || !strings.Contains(peering.Explain(a.name, res.Findings), "is that of peer") {
		t.Errorf("join with another peer's CA: %v %v", res, err)
	}
	nothingLeft(t, a, c)
}

func TestLeaveRemovesEverythingAndPeerStaysOut(t *testing.T) {
	a, b := pair(t)
	b.fill(0, 400)
	b.identity(2<<16+7, "k8s:id=app", "mesh:cluster="+b.name)
	a.ip(1, "a's own")
	mirrored(t, a, b)
	stream, _ := b.m.runner(a.name).current()
	removed, err := a.m.Leave(t.Context(), b.name)
	if err != nil || removed != 401 {
		t.Errorf("leave removed %d keys: %v", removed, err)
	}
	select {
	case <-stream.done:
	case <-time.After(within):
		t.Error("the removed peer's open stream was not cut")
	}
	for _, prefix := range []string{kvstore.Prefix(kvstore.State, b.name), kvstore.Prefix(kvstore.Local, a.name), kvstore.Prefix(kvstore.Private, a.name) + "p"} {
		page, err := a.kv.List(t.Context(), prefix, "", 10, 0)
		if err != nil || len(page.KVs) != 0 {
			t.Errorf("left below %s: %v %v", prefix, page.KVs, err)
		}
	}
	if len(a.keys(a)) != 1 {
		t.Error("our own keys were touched")
	}
	if a.m.trust.Has(b.name) {
		t.Error("the removed peer's CA is still believed")
	}
	if err := tryStream(t, a, b.creds); err == nil {
		t.Error("the removed peer came back")
	}
	eventually(t, "b sees it lost and keeps its data", func() bool { return b.status(a).GetState() == stateLost && len(b.keys(a)) == 1 })
	if _, err := b.m.Leave(t.Context(), a.name); err != nil {
		t.Errorf("leave of a peer that is gone: %v", err)
	}
	_, err = a.m.Leave(t.Context(), b.name)
	wantErr(t, err, "no such peer")
	joinPeers(t, b, a) // and may be invited again
	mirrored(t, a, b)
}

func TestInterruptedLeaveIsFinished(t *testing.T) {
	a, b := pair(t)
	b.fill(0, 50)
	mirrored(t, a, b)
	a.stop()
	if err := peering.NewStore(a.kv, a.name, time.Now).StartLeave(t.Context(), b.name); err != nil {
		t.Fatal(err)
	}
	a.start()
	eventually(t, "leave finished", func() bool { return a.peer(b.name) == nil && len(a.keys(b)) == 0 })
}
