// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"
)

// authority is a CA that signs whatever it is asked to, as a hostile one would.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, cluster string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cluster + " CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

// leaf signs spiffe://<cluster><path>.
func (a *authority) leaf(cluster, path string) fixedCreds {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageDigitalSignature, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{{Scheme: "spiffe", Host: cluster, Path: path}}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return fixedCreds{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, []*x509.Certificate{a.cert}}
}

type fixedCreds struct {
	cert tls.Certificate
	ca   []*x509.Certificate
}

func (f fixedCreds) Certificate() (*tls.Certificate, error) { return &f.cert, nil }
func (f fixedCreds) CA() []*x509.Certificate                { return f.ca }

// handshake runs a full TLS handshake over loopback and returns both ends'
// errors.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	done := make(chan error, 1)
	go func() {
		c, err := lis.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		if err = s.HandshakeContext(t.Context()); err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	c, err := tls.Dial("tcp", lis.Addr().String(), client)
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // the server's verdict comes after the client is done
		c.Close()
	}
	return <-done, err
}

func newTrust(t *testing.T, own string, c Credentials) *Trust {
	t.Helper()
	tr, err := NewTrust(own, c, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestEachClusterOnlyByItsOwnCA(t *testing.T) {
	east, west, south := newAuthority(t, "east"), newAuthority(t, "west"), newAuthority(t, "south")
	trust := newTrust(t, "east", east.leaf("east", "/apiserver"))
	for name, a := range map[string]*authority{"west": west, "south": south} {
		if err := trust.SetPeer(name, [][]byte{a.cert.Raw}); err != nil {
			t.Fatal(err)
		}
	}
	for what, tc := range map[string]struct {
		creds fixedCreds
		ok    bool
	}{
		"west":                            {west.leaf("west", "/apiserver"), true},
		"south":                           {south.leaf("south", "/apiserver"), true},
		"west's CA signs south":           {west.leaf("south", "/apiserver"), false},
		"west's CA signs east":            {west.leaf("east", "/apiserver"), false},
		"west's agent":                    {west.leaf("west", "/agent/apiserver"), false},
		"west's admin":                    {west.leaf("west", "/admin/apiserver"), false},
		"a name that begins with ours":    {west.leaf("west", "/apiserverx"), false},
		"ourselves":                       {east.leaf("east", "/apiserver"), false},
		"a cluster that is not a peer":    {newAuthority(t, "north").leaf("north", "/apiserver"), false},
		"west signed by a CA of its name": {newAuthority(t, "west").leaf("west", "/apiserver"), false},
	} {
		t.Run(what, func(t *testing.T) {
			caller := newTrust(t, "caller", tc.creds)
			if err := caller.SetPeer("east", [][]byte{east.cert.Raw}); err != nil && tc.ok {
				t.Fatal(err)
			}
			cfg := caller.ClientConfig("east")
			cfg.VerifyConnection = nil // the caller believes anybody
			serverErr, clientErr := handshake(t, trust.ServerConfig(), cfg)
			if (serverErr == nil && clientErr == nil) != tc.ok {
				t.Errorf("server: %v, client: %v", serverErr, clientErr)
			}
		})
	}
	// The dialling side is as strict: south at west's address is refused.
	server := newTrust(t, "south", south.leaf("south", "/apiserver"))
	if err := server.SetPeer("east", [][]byte{east.cert.Raw}); err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, server.ServerConfig(), trust.ClientConfig("west")); err == nil {
		t.Error("south was taken for west")
	}
	if _, err := handshake(t, server.ServerConfig(), trust.ClientConfig("south")); err != nil {
		t.Errorf("south itself: %v", err)
	}
}

// An expired leaf, and one that is not valid yet, are believed by neither side.
func TestCertificatesOutOfTime(t *testing.T) {
	east, west := newAuthority(t, "east"), newAuthority(t, "west")
	for what, off := range map[string]time.Duration{"expired": 100 * 365 * 24 * time.Hour, "not valid yet": -100 * 365 * 24 * time.Hour, "": 0} {
		now := func() time.Time { return time.Now().Add(off) }
		server, err := NewTrust("east", east.leaf("east", "/apiserver"), now)
		if err != nil {
			t.Fatal(err)
		}
		if err := server.SetPeer("west", [][]byte{west.cert.Raw}); err != nil {
			t.Fatal(err)
		}
		caller := newTrust(t, "west", west.leaf("west", "/apiserver"))
		if err := caller.SetPeer("east", [][]byte{east.cert.Raw}); err != nil {
			t.Fatal(err)
		}
		if err, _ := handshake(t, server.ServerConfig(), caller.ClientConfig("east")); (err == nil) != (off == 0) {
			t.Errorf("a caller whose certificate is %s: %v", what, err)
		}
		strict, err := NewTrust("west", west.leaf("west", "/apiserver"), now)
		if err != nil {
			t.Fatal(err)
		}
		if err := strict.SetPeer("east", [][]byte{east.cert.Raw}); err != nil {
			t.Fatal(err)
		}
		normal := newTrust(t, "east", east.leaf("east", "/apiserver"))
		if err := normal.SetPeer("west", [][]byte{west.cert.Raw}); err != nil {
			t.Fatal(err)
		}
		if _, err := handshake(t, normal.ServerConfig(), strict.ClientConfig("east")); (err == nil) != (off == 0) {
			t.Errorf("a server whose certificate is %s: %v", what, err)
		}
	}
}

// TestRemovedPeerCannotResume: with a session cache on the client and our
// configuration on the server there must be nothing to resume.
func TestRemovedPeerCannotResume(t *testing.T) {
	east, west := newAuthority(t, "east"), newAuthority(t, "west")
	trust := newTrust(t, "east", east.leaf("east", "/apiserver"))
	if err := trust.SetPeer("west", [][]byte{west.cert.Raw}); err != nil {
		t.Fatal(err)
	}
	server := trust.ServerConfig() // one configuration for both, as the port has
	cfg := newTrust(t, "west", west.leaf("west", "/apiserver")).ClientConfig("east")
	cfg.VerifyConnection = nil
	cache := &countingCache{ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	cfg.ClientSessionCache = cache
	if s, c := handshake(t, server, cfg); s != nil || c != nil {
		t.Fatalf("first connection: %v %v", s, c)
	}
	if cache.puts != 0 {
		t.Error("the server gave out a session ticket")
	}
	trust.RemovePeer("west")
	if trust.Has("west") {
		t.Error("a removed peer is still trusted")
	}
	if s, c := handshake(t, server, cfg); s == nil || c == nil {
		t.Error("a removed peer was admitted")
	}
}

type countingCache struct {
	tls.ClientSessionCache
	puts int
}

func (c *countingCache) Put(k string, s *tls.ClientSessionState) {
	if s != nil {
		c.puts++
	}
	c.ClientSessionCache.Put(k, s)
}

func TestSharedCAIsNotTrusted(t *testing.T) {
	east, west := newAuthority(t, "east"), newAuthority(t, "west")
	trust := newTrust(t, "east", east.leaf("east", "/apiserver"))
	if err := trust.SetPeer("south", [][]byte{east.cert.Raw}); err == nil {
		t.Error("our CA was taken for a peer's")
	}
	if err := trust.SetPeer("west", [][]byte{west.cert.Raw}); err != nil {
		t.Fatal(err)
	}
	if err := trust.SetPeer("south", [][]byte{west.cert.Raw}); err == nil {
		t.Error("west's CA was taken for south's")
	}
}
