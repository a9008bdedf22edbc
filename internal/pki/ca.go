// SPDX-License-Identifier: Apache-2.0

// Package pki is a cluster's certificate authority: it makes the CA, issues the
// certificates of API servers, agents and administrators, and turns files into
// TLS configurations that notice renewed certificates.
//
// Start with CA and its Sign. A certificate says who it is twice: its URI is the
// SPIFFE id spiffe://<cluster>/apiserver, /agent/<node>, /admin/<user> or /root,
// which peers and the gRPC API go by; its common name is the user by which etcd
// knows it. Both are set here and never taken from a request.
//
// Out of scope: trust between clusters (bundles are the peering's), rotation
// schedules, and where files live.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names of the files of a CA inside its directory.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
)

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// backdate tolerates clocks that lag behind the signer's.
	backdate = 5 * time.Minute
	// DefaultLifetime of a leaf certificate.
	DefaultLifetime = 365 * 24 * time.Hour
)

// CA signs for one cluster, its SPIFFE trust domain. It is immutable and safe
// for concurrent use.
type CA struct {
	cluster string
	cert    *x509.Certificate
	also    []*x509.Certificate // believed beside it while one replaces the other
	key     crypto.Signer
}

// NewCA makes a CA (ECDSA P-256, 10 years) whose trust domain is the cluster's
// name. now is the moment its validity starts, less a few minutes.
func NewCA(cluster string, now time.Time) (*CA, error) {
	if err := validTrustDomain(cluster); err != nil {
		return nil, fmt.Errorf("create CA: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create CA of %s: %w", cluster, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("create CA of %s: %w", cluster, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: cluster + "-ca", Organization: []string{"hawser"}},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: cluster}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create CA of %s: %w", cluster, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("create CA of %s: %w", cluster, err)
	}
	return &CA{cluster: cluster, cert: cert, key: key}, nil
}

// LoadCA reads the CA of a directory. A missing one is an fs.ErrNotExist.
func LoadCA(dir string) (*CA, error) {
	path := filepath.Join(dir, CACertFile)
	bundle, err := ReadBundle(path)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	for _, cert := range bundle {
		if !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || cert.URIs[0].Path != "" {
			return nil, fmt.Errorf("load CA %s: not a CA with a SPIFFE trust domain", path)
		}
	}
	key, err := readKey(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	i := slices.IndexFunc(bundle, func(c *x509.Certificate) bool { return ok && pub.Equal(c.PublicKey) })
	if i < 0 {
		return nil, fmt.Errorf("load CA %s: certificate and key do not belong together", dir)
	}
	signs := bundle[i]
	return &CA{cluster: signs.URIs[0].Host, cert: signs, also: slices.Delete(bundle, i, i+1), key: key}, nil
}

// EnsureCA loads the CA of a directory, or makes and saves it when there is
// none. A CA of another cluster is an error.
func EnsureCA(dir, cluster string, now time.Time) (*CA, error) {
	ca, err := LoadCA(dir)
	switch {
	case err == nil && ca.cluster != cluster:
		return nil, fmt.Errorf("CA in %s belongs to cluster %s, not %s", dir, ca.cluster, cluster)
	case err == nil:
		return ca, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if ca, err = NewCA(cluster, now); err != nil {
		return nil, err
	}
	return ca, ca.Save(dir)
}

// Save writes certificate and key below dir, which it makes (0700): the key
// first, so that a certificate is never there without it.
func (c *CA) Save(dir string) error {
	key, err := encodeKey(c.key)
	if err != nil {
		return fmt.Errorf("save CA of %s: %w", c.cluster, err)
	}
	if err := WriteFile(filepath.Join(dir, CAKeyFile), key); err != nil {
		return fmt.Errorf("save CA of %s: %w", c.cluster, err)
	}
	if err := WriteBundle(filepath.Join(dir, CACertFile), c.Bundle()); err != nil {
		return fmt.Errorf("save CA of %s: %w", c.cluster, err)
	}
	return nil
}

// Cluster is the trust domain.
func (c *CA) Cluster() string { return c.cluster }

// Certificate is the CA's own certificate; do not change it.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// Bundle is the CA's certificate, and behind it those that are believed beside
// it while one replaces the other; do not change them.
func (c *CA) Bundle() []*x509.Certificate {
	return append([]*x509.Certificate{c.cert}, c.also...)
}

// PEM is the CA's certificate as text.
func (c *CA) PEM() []byte { return encodeCert(c.cert.Raw) }

// Hash is the SHA-256 of the CA's certificate in DER form.
func (c *CA) Hash() [sha256.Size]byte { return Hash(c.cert) }

// Hash is the SHA-256 of a certificate in DER form.
func Hash(cert *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(cert.Raw) }

// Pool is a pool with the CA's bundle.
func (c *CA) Pool() *x509.CertPool { return PoolOf(c.Bundle()) }

// Equal reports whether two CAs have the same certificate.
func (c *CA) Equal(o *CA) bool { return bytes.Equal(c.cert.Raw, o.cert.Raw) }

func newSerial() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 120)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// validTrustDomain holds for every cluster name.
func validTrustDomain(s string) error {
	if s == "" || len(s) > 255 {
		return fmt.Errorf("trust domain %q: must have 1 to 255 characters", s)
	}
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return fmt.Errorf("trust domain %q: only a-z, 0-9, '-', '.' and '_' are allowed", s)
	}
	return nil
}
