// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Files are the paths of a holder's certificate and key and of the CA that
// verifies its counterparts, all PEM.
type Files struct {
	CA, Cert, Key string
}

// Certificate reads certificate and key.
func (f Files) Certificate() (tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return c, fmt.Errorf("load certificate %s: %w", f.Cert, err)
	}
	return c, nil
}

// ClientTLS is a configuration to dial servers of this CA with (TLS 1.3 only).
// The certificate is read again for each handshake, so a renewed one is used
// from the next connection on. With a server id, the server must also hold
// exactly that SPIFFE id: an agent's certificate cannot pose as an API server.
func (f Files) ClientTLS(server *ID) (*tls.Config, error) {
	if _, err := f.Certificate(); err != nil {
		return nil, err
	}
	ca, err := ReadCertificate(f.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, GetClientCertificate: f.present}
	if server != nil {
		want := *server
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return showsID(s.PeerCertificates, want) }
	}
	return cfg, nil
}

// ClientTLSByID is ClientTLS for servers that are known by their SPIFFE id
// alone, whatever name or address they are dialled by.
func (f Files) ClientTLSByID(server ID) (*tls.Config, error) {
	cfg, err := f.ClientTLS(nil)
	if err != nil {
		return nil, err
	}
	ca, err := ReadCertificate(f.CA)
	if err != nil {
		return nil, err
	}
	cfg.InsecureSkipVerify = true // host names say nothing here: VerifyConnection does it all
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		return VerifyServer(s.PeerCertificates, ca, server, time.Now())
	}
	return cfg, nil
}

// VerifyServer checks that a chain is signed by the CA, valid now, and the
// certificate of exactly this id.
func VerifyServer(chain []*x509.Certificate, ca *x509.Certificate, want ID, now time.Time) error {
	if err := showsID(chain, want); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return fmt.Errorf("certificate of %s: it is valid from %s to %s, and this host's clock says %s: set the clock, or renew the certificate",
				want, stamp(chain[0].NotBefore), stamp(chain[0].NotAfter), stamp(now))
		}
		return fmt.Errorf("certificate of %s: %w", want, err)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// present is the holder's certificate for one handshake.
func (f Files) present(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c, err := f.Certificate()
	if err != nil {
		return nil, err
	}
	// The server would only hang up.
	if now := time.Now(); now.Before(c.Leaf.NotBefore) || now.After(c.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate %s is valid from %s to %s only; renew it or set the clock",
			f.Cert, c.Leaf.NotBefore.Format(time.RFC3339), c.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &c, nil
}

func showsID(chain []*x509.Certificate, want ID) error {
	if len(chain) == 0 {
		return fmt.Errorf("server showed no certificate, want %s", want)
	}
	got, err := CertificateID(chain[0])
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("server is %s, want %s", got, want)
	}
	return nil
}

// ReadCertificate reads the first certificate of a PEM file.
func ReadCertificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("read certificate %s: no PEM certificate in it", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", path, err)
	}
	return cert, nil
}

func readKey(path string) (crypto.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("read key %s: no PEM key in it", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read key %s: a %T cannot sign", path, k)
	}
	return s, nil
}

// EnsureKey reads a private key, or makes one (ECDSA P-256) and saves it,
// readable by the owner only, when there is none.
func EnsureKey(path string) (crypto.Signer, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	pem, err := encodeKey(fresh)
	if err != nil {
		return nil, err
	}
	return fresh, WriteFile(path, pem)
}

// LoadLeaf reads what Leaf.Save wrote.
func LoadLeaf(f Files) (*Leaf, error) {
	key, err := readKey(f.Key)
	if err != nil {
		return nil, err
	}
	cert, err := ReadCertificate(f.Cert)
	if err != nil {
		return nil, err
	}
	ca, err := ReadCertificate(f.CA)
	if err != nil {
		return nil, err
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("certificate %s does not belong to the key %s", f.Cert, f.Key)
	}
	return &Leaf{Cert: cert, Key: key, CA: ca}, nil
}

func encodeKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// WriteFile replaces path in one rename; only the owner may read it. Missing
// directories are made, for the owner only.
func WriteFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".tmp-*") // made 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(data); err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
