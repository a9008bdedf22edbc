// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/rest"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/internal/unixsocket"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// startPort is start with an API port that serves.
func startPort(t *testing.T, edit ...func(*Config)) *Server {
	t.Helper()
	cfg := testConfig(t)
	cfg.ListenAPI = cfg.ListenEtcd
	for _, e := range edit {
		e(&cfg)
	}
	s := start(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	socket, err := unixsocket.Listen(ctx, s.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	web, err := rest.Gateway(ctx, s.cfg.Socket, hawserv1.RegisterMeshHandler)
	if err != nil {
		t.Fatal(err)
	}
	local := grpc.NewServer()
	hawserv1.RegisterMeshServer(local, s)
	var wg sync.WaitGroup
	wg.Go(func() { _ = rest.Serve(socket, local, web) })
	wg.Go(func() { _ = s.servePort(ctx, web) })
	t.Cleanup(func() { cancel(); local.Stop(); wg.Wait() })
	return s
}

func inviteNode(t *testing.T, s *Server, node string) string {
	t.Helper()
	r, err := s.InviteNode(t.Context(), &hawserv1.InviteNodeRequest{Node: node})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetToken()
}

func newNode(t *testing.T) *enrol.Node {
	t.Helper()
	return &enrol.Node{Dir: filepath.Join(t.TempDir(), "tls"), Now: time.Now, Log: slog.New(slog.DiscardHandler)}
}

func parseToken(t *testing.T, text string) invitation.Token {
	t.Helper()
	tok, err := invitation.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func storedToken(t *testing.T, s *Server, id string) *keyspacev1.Token {
	t.Helper()
	r, found, err := get[*keyspacev1.Token](t.Context(), s, kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindToken, id))
	if err != nil || !found {
		t.Fatalf("token %s: %v, %v", id, found, err)
	}
	return r.msg
}

func wantRefusal(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v, want one with %q", err, part)
	}
}

func TestNodeEnrolsByToken(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	text := inviteNode(t, s, "n1")
	state, err := n.Join(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	if state.Cluster != "east" || state.Node != "n1" || state.ClusterBits != 8 || state.TunnelPort != uint32(DefaultTunnelPort) ||
		len(state.EtcdEndpoints) != 1 || state.EtcdEndpoints[0] != "https://"+s.etcd.Endpoint() || state.APIEndpoints[0] != s.cfg.ListenAPI.String() {
		t.Errorf("enrolment: %+v", state)
	}
	files := pki.FilesIn(n.Dir, "tls")
	leaf, err := pki.LoadLeaf(files)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := pki.CertificateID(leaf.Cert); err != nil || id.String() != "spiffe://east/agent/n1" || !strings.HasPrefix(leaf.Cert.Subject.CommonName, "east-agent:") {
		t.Errorf("certificate of %v, %q, %v", id, leaf.Cert.Subject.CommonName, err)
	}
	if d := time.Until(leaf.Cert.NotAfter); d > enrol.DefaultLifetime || d < enrol.DefaultLifetime-time.Hour {
		t.Errorf("valid for %v", d)
	}
	if _, err := os.Stat(filepath.Join(n.Dir, "tls.key.new")); !os.IsNotExist(err) {
		t.Errorf("the pending key is still there: %v", err)
	}
	// It opens etcd with the rights of an agent, no more.
	cfg, err := files.ClientTLS(&pki.ID{Cluster: "east", Role: pki.RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	kv, err := etcd.NewClient(etcd.ClientConfig{Endpoints: state.EtcdEndpoints, TLS: cfg, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	if _, _, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.State, "east", kvstore.KindCluster).String()); err != nil {
		t.Errorf("read the cluster record: %v", err)
	}
	if _, _, err := kv.Get(t.Context(), kvstore.NewKey(kvstore.Private, "east", kvstore.KindEnrolment, "n1").String()); err == nil {
		t.Error("a node reads private/")
	}
	// Again: the same directory needs no token, another host gets nothing for it.
	if again, err := n.Join(t.Context(), text); err != nil || again.TokenID != state.TokenID {
		t.Errorf("start with the same token: %+v, %v", again, err)
	}
	_, err = newNode(t).Join(t.Context(), text)
	wantRefusal(t, err, "was used already")
}

func TestInterruptedEnrolmentIsRepeated(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	text := inviteNode(t, s, "n1")
	if _, err := n.Join(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	// As if the answer had come but nothing of it had been stored.
	if err := os.Rename(filepath.Join(n.Dir, "tls.key"), filepath.Join(n.Dir, "tls.key.new")); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"tls.crt", "enrolment.json"} {
		if err := os.Remove(filepath.Join(n.Dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Join(t.Context(), text); err != nil {
		t.Errorf("repeat: %v", err)
	}
	if _, err := pki.LoadLeaf(pki.FilesIn(n.Dir, "tls")); err != nil {
		t.Error(err)
	}
}

func TestNodeTokensThatAdmitNobody(t *testing.T) {
	s := startPort(t)
	nothing := func(n *enrol.Node) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(n.Dir, "tls.crt")); !os.IsNotExist(err) {
			t.Errorf("a certificate was stored: %v", err)
		}
	}
	n := newNode(t)

	tok := parseToken(t, inviteNode(t, s, "n1"))
	changed := tok
	changed.CAHash[3] ^= 1
	_, err := n.Join(t.Context(), changed.String())
	wantRefusal(t, err, "CA is not the one that the token names")
	if f := storedToken(t, s, tok.ID).GetFailures(); f != 0 {
		t.Errorf("a proof was sent to the wrong CA: %d failures", f)
	}
	changed = tok
	changed.Node = "n2" // the name is the record's, whatever the text says
	_, err = n.Join(t.Context(), changed.String())
	wantRefusal(t, err, `the answer is for node "n1"`)

	_, err = n.Join(t.Context(), inviteNode(t, s, "n1")[:60])
	wantRefusal(t, err, "cut off")

	mesh, err := s.mesh.Invite(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Join(t.Context(), mesh.String())
	wantRefusal(t, err, "is for a cluster")
	mesh.Node, mesh.Endpoints = "n1", tok.Endpoints // proved, but a cluster's
	_, err = n.Join(t.Context(), mesh.String())
	wantRefusal(t, err, "is for a cluster")

	forged := parseToken(t, inviteNode(t, s, "n3"))
	good := forged.String()
	forged.Secret = make([]byte, 16)
	guessed := forged
	guessed.ID = strings.Repeat("0", len(guessed.ID))
	_, err = n.Join(t.Context(), guessed.String())
	wantRefusal(t, err, "not valid here")
	for i := range uint32(5) {
		_, err = n.Join(t.Context(), forged.String())
		wantRefusal(t, err, "not valid here")
		if r := storedToken(t, s, forged.ID); r.GetFailures() != i+1 || r.GetRevoked() != (i == 4) {
			t.Errorf("after %d wrong proofs: %v", i+1, r)
		}
	}
	_, err = n.Join(t.Context(), good)
	wantRefusal(t, err, "revoked")
	nothing(n)
}

func TestExpiredNodeToken(t *testing.T) {
	s := startPort(t)
	text := inviteNode(t, s, "n1")
	n := newNode(t)
	late := *n
	late.Now = func() time.Time { return time.Now().Add(16 * time.Minute) }
	_, err := late.Join(t.Context(), text)
	wantRefusal(t, err, "expired")
	// The joiner's clock thinks it is good, the cluster's does not.
	tok := storedToken(t, s, parseToken(t, text).ID)
	tok.ExpiresAt = time.Now().Add(-time.Second).UnixNano()
	op, err := put(kvstore.NewKey(kvstore.Private, "east", kvstore.KindToken, tok.GetId()), tok)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.commit(t.Context(), []kvstore.Op{op}); err != nil {
		t.Fatal(err)
	}
	_, err = n.Join(t.Context(), text)
	wantRefusal(t, err, "expired")
}

// enrolByHand proves a token for a request of the caller's own making.
func enrolByHand(t *testing.T, s *Server, tok invitation.Token, tmpl *x509.CertificateRequest, proofKey, signKey *ecdsa.PrivateKey) (*hawserv1.EnrolResponse, error) {
	t.Helper()
	conn, err := tlsgrpc.Dial(t.Context(), s.cfg.ListenAPI.String(), &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	cc, err := tlsgrpc.ClientOver(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close(); conn.Close() })
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, signKey)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := invitation.Proof(tok.Secret, conn.ConnectionState(), "enrol node", tok.CAHash, hashOf(t, proofKey))
	if err != nil {
		t.Fatal(err)
	}
	return hawserv1.NewEnrolmentClient(cc).Enrol(t.Context(), &hawserv1.EnrolRequest{TokenId: tok.ID, Proof: proof, Request: der})
}

func hashOf(t *testing.T, k *ecdsa.PrivateKey) [32]byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{Raw: spki}
	return pki.Hash(c)
}

func newKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestNothingOfTheRequestButTheKeyCounts(t *testing.T) {
	s := startPort(t)
	tok := parseToken(t, inviteNode(t, s, "n1"))
	a, b := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	wish := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"api.east"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "east", Path: "/apiserver"}},
	}
	if _, err := enrolByHand(t, s, tok, wish, a, b); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a proof for another key: %v", err)
	}
	small := newKey(t, elliptic.P224())
	if _, err := enrolByHand(t, s, tok, wish, small, small); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a short key: %v", err)
	}
	r, err := enrolByHand(t, s, tok, wish, a, a)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(r.GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	if id, err := pki.CertificateID(cert); err != nil || id.String() != "spiffe://east/agent/n1" || !strings.HasPrefix(cert.Subject.CommonName, "east-agent:") || len(cert.DNSNames) != 0 {
		t.Errorf("got %v, CN %q, names %v, %v", id, cert.Subject.CommonName, cert.DNSNames, err)
	}
}

func TestRenewalNeedsNoToken(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	files := pki.FilesIn(n.Dir, "tls")
	first, err := pki.LoadLeaf(files)
	if err != nil {
		t.Fatal(err)
	}
	at := newClock()
	r := &enrol.Renewer{Node: *n, CheckEvery: time.Millisecond}
	r.Now = at.now
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() { cancel(); <-done }()

	at.set(pki.RenewAt(first.Cert).Add(-time.Minute))
	at.passes(t, 20)
	if again, err := pki.LoadLeaf(files); err != nil || again.Cert.SerialNumber.Cmp(first.Cert.SerialNumber) != 0 {
		t.Fatalf("renewed before two thirds of its life: %v", err)
	}
	at.set(pki.RenewAt(first.Cert))
	var second *pki.Leaf
	eventually(t, "a new certificate", func() bool {
		second, err = pki.LoadLeaf(files)
		return err == nil && second.Cert.SerialNumber.Cmp(first.Cert.SerialNumber) != 0
	})
	if id, err := pki.CertificateID(second.Cert); err != nil || id.String() != "spiffe://east/agent/n1" {
		t.Errorf("renewed for %v, %v", id, err)
	}
	if state, err := enrol.Load(n.Dir); err != nil || state.Node != "n1" {
		t.Errorf("enrolment after a renewal: %+v, %v", state, err)
	}
}

func TestRenewalIsForTheNodeAlone(t *testing.T) {
	s := startPort(t)
	n := newNode(t)
	if _, err := n.Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	renew := func(n *enrol.Node) error { return (&enrol.Renewer{Node: *n}).Renew(t.Context()) }
	if err := renew(n); err != nil {
		t.Fatalf("renew: %v", err)
	}
	// By hand issued: etcd takes it, but no enrolment stands behind it.
	byHand := newNode(t)
	byHand.Dir = n.Dir + "-by-hand"
	if err := Issue(s.cfg.DataDir, pki.RoleAgent, "n9", byHand.Dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(n.Dir, "enrolment.json"), filepath.Join(byHand.Dir, "enrolment.json"))
	wantRefusal(t, renew(byHand), "was not enrolled by token")

	// The node is set up anew elsewhere: what holds the old key is out.
	if _, err := newNode(t).Join(t.Context(), inviteNode(t, s, "n1")); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, renew(n), "enrolled again with another key")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
