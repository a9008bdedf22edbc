// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func newCA(t *testing.T, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, r Request) *Leaf {
	t.Helper()
	l, err := ca.Issue(r, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCertificatesSayWhoTheyAreFor(t *testing.T) {
	ca := newCA(t, "east")
	for want, r := range map[string]Request{
		"spiffe://east/apiserver":  {Role: RoleAPIServer, DNS: []string{"api.east"}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		"spiffe://east/agent/n1.x": {Role: RoleAgent, Name: "n1.x"},
		"spiffe://east/admin/ada":  {Role: RoleAdmin, Name: "ada"},
		"spiffe://east/root":       {Role: RoleRoot},
	} {
		l := issue(t, ca, r)
		id, err := CertificateID(l.Cert)
		if err != nil || id.String() != want || id.Role != r.Role || id.Name != r.Name {
			t.Errorf("%s: got %s, %v", want, id, err)
		}
		user := "east-" + string(r.Role)
		if r.Role == RoleRoot {
			user = "root"
		}
		if l.Cert.Subject.CommonName != user {
			t.Errorf("%s: etcd user %q, want %q", want, l.Cert.Subject.CommonName, user)
		}
		for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if _, err := l.Cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("%s: %v", want, err)
			}
		}
		if _, err := l.Cert.Verify(x509.VerifyOptions{Roots: newCA(t, "east").Pool()}); err == nil {
			t.Errorf("%s: believed by another CA of the same name", want)
		}
		if l.Cert.IsCA {
			t.Errorf("%s: may sign", want)
		}
		if d := time.Until(l.Cert.NotAfter); d > DefaultLifetime || d < DefaultLifetime-time.Minute {
			t.Errorf("%s: valid for %v", want, d)
		}
		if at := RenewAt(l.Cert); !at.After(l.Cert.NotBefore.Add(7*30*24*time.Hour)) || !at.Before(l.Cert.NotAfter) {
			t.Errorf("%s: to be renewed at %v", want, at)
		}
	}
	server := issue(t, ca, Request{Role: RoleAPIServer, IPs: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")}})
	if err := server.Cert.VerifyHostname("192.0.2.1"); err != nil {
		t.Error(err)
	}
}

func TestWhoCannotBeCertified(t *testing.T) {
	ca := newCA(t, "east")
	for _, r := range []Request{
		{Role: RoleAgent}, {Role: RoleAgent, Name: "a/b"}, {Role: RoleAgent, Name: ".."}, {Role: RoleAgent, Name: "a b"},
		{Role: RoleAPIServer, Name: "x"}, {Role: RoleRoot, Name: "x"}, {Role: "boss"}, {Role: RoleAgent, Name: "n1", Lifetime: -1},
	} {
		if l, err := ca.Issue(r, time.Now()); err == nil {
			t.Errorf("issued %s", l.Cert.URIs[0])
		}
	}
	for _, c := range []string{"", "East", "a/b", "a b"} {
		if _, err := NewCA(c, time.Now()); err == nil {
			t.Errorf("made a CA of %q", c)
		}
	}
}

func TestLifetimeEndsWithTheCA(t *testing.T) {
	ca := newCA(t, "east")
	l := issue(t, ca, Request{Role: RoleAdmin, Name: "ada", Lifetime: 100 * DefaultLifetime})
	if l.Cert.NotAfter.After(ca.Certificate().NotAfter) {
		t.Error("outlives its CA")
	}
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ca, err := EnsureCA(dir, "east", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again, err := EnsureCA(dir, "east", time.Now())
	if err != nil || !again.Equal(ca) || again.Cluster() != "east" {
		t.Fatalf("loaded another CA: %v", err)
	}
	if _, err := EnsureCA(dir, "west", time.Now()); err == nil {
		t.Error("took east's CA for west's")
	}
	if again.Hash() != sha256.Sum256(ca.Certificate().Raw) {
		t.Error("hash is not that of the DER form")
	}
	f, err := issue(t, again, Request{Role: RoleAgent, Name: "n1"}).Save(dir, "agent")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if want := []string{"agent.crt", "agent.key", "ca.crt", "ca.key"}; !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	if _, err := f.ClientTLS(nil); err != nil {
		t.Error(err)
	}
	other, err := EnsureCA(filepath.Join(dir, "x"), "east", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := encodeKey(other.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, CAKeyFile), key); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(dir); err == nil {
		t.Error("loaded a CA with another's key")
	}
}

func TestClientWantsTheServersID(t *testing.T) {
	ca := newCA(t, "east")
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	f, err := issue(t, ca, Request{Role: RoleAdmin, Name: "ada"}).Save(t.TempDir(), "admin")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := f.ClientTLS(&ID{Cluster: "east", Role: RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		r  Request
		ok bool
	}{
		{Request{Role: RoleAPIServer, IPs: loopback}, true},
		{Request{Role: RoleAgent, Name: "n1", IPs: loopback}, false}, // an agent in the API server's place
		{Request{Role: RoleAPIServer}, true},                         // known by its id, whatever the address
	} {
		if err := shake(t, cfg, issue(t, ca, c.r).TLS(), ca); (err == nil) != c.ok {
			t.Errorf("server %+v: %v", c.r, err)
		}
	}
	poser := issue(t, newCA(t, "east"), Request{Role: RoleAPIServer, IPs: loopback})
	if err := shake(t, cfg, poser.TLS(), ca); err == nil {
		t.Error("another CA of the same name was believed")
	}
}

// While a CA is replaced, clients that are running believe what their file says
// at the moment, and every step can be interrupted and repeated.
func TestRotation(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	old, err := EnsureCA(dir, "east", now)
	if err != nil {
		t.Fatal(err)
	}
	phase := func(want Phase) *CA {
		t.Helper()
		got, err := RotationPhase(dir)
		if err != nil || got != want {
			t.Fatalf("phase %s (%v), want %s", got, err, want)
		}
		ca, err := LoadCA(dir)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	server := func(ca *CA) tls.Certificate { return issue(t, ca, Request{Role: RoleAPIServer}).TLS() }
	f, err := issue(t, old, Request{Role: RoleAgent, Name: "n1"}).Save(t.TempDir(), "tls")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := f.ClientTLS(&ID{Cluster: "east", Role: RoleAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	if err := Switch(dir); err == nil {
		t.Error("switched to a CA that nobody was told of")
	}
	phase(PhaseNone)
	for range 2 {
		if err := Announce(dir, now); err != nil {
			t.Fatal(err)
		}
	}
	both := phase(PhaseAnnounced)
	if !both.Equal(old) || len(both.Bundle()) != 2 {
		t.Error("the next CA signs already")
	}
	if err := Retire(dir); err == nil {
		t.Error("the CA that signs was retired")
	}
	// A crash right after the rename: the key says who signs.
	if err := os.Rename(filepath.Join(dir, nextKeyFile), filepath.Join(dir, CAKeyFile)); err != nil {
		t.Fatal(err)
	}
	if next := phase(PhaseSwitched); next.Equal(old) || next.Cluster() != "east" {
		t.Error("the old CA signs still")
	}
	if err := Switch(dir); err != nil {
		t.Fatal(err)
	}
	next := phase(PhaseSwitched)
	if err := shake(t, cfg, server(next), both); err == nil {
		t.Error("a server of the new CA was believed by who was not told")
	}
	if err := WriteBundle(f.CA, both.Bundle()); err != nil {
		t.Fatal(err)
	}
	for who, ca := range map[string]*CA{"old": old, "new": next} {
		if err := shake(t, cfg, server(ca), both); err != nil {
			t.Errorf("a server of the %s CA: %v", who, err)
		}
	}
	if err := Retire(dir); err != nil {
		t.Fatal(err)
	}
	last := phase(PhaseNone)
	if !last.Equal(next) || len(last.Bundle()) != 1 {
		t.Error("the old CA is believed still")
	}
	if err := WriteBundle(f.CA, last.Bundle()); err != nil {
		t.Fatal(err)
	}
	if err := shake(t, cfg, server(old), both); err == nil {
		t.Error("a server of the retired CA was believed")
	}
}

func shake(t *testing.T, client *tls.Config, server tls.Certificate, ca *CA) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: ca.Pool(), MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			_ = c.(*tls.Conn).Handshake()
			_ = c.Close()
		}
	}()
	defer func() { _ = l.Close(); <-done }()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", l.Addr().String(), client)
	if err != nil {
		return err
	}
	return c.Close()
}

func TestSignTakesOnlyTheKey(t *testing.T) {
	ca := newCA(t, "east")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Sign(key.Public(), Request{Role: RoleAgent, Name: "n1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil || !key.PublicKey.Equal(cert.PublicKey) || len(cert.DNSNames)+len(cert.IPAddresses) != 0 {
		t.Errorf("signed %+v, %v", cert, err)
	}
}
