// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
)

// ReadBundle reads all certificates of a PEM file: of a ca.crt, the CA that
// signs, and after it those that are believed beside it while it is replaced.
func ReadBundle(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	out, err := ParseBundle(b)
	if err != nil {
		return nil, fmt.Errorf("read certificates %s: %w", path, err)
	}
	return out, nil
}

// ParseBundle is ReadBundle of what such a file holds.
func ParseBundle(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %s in it", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return out, nil
}

// WriteBundle replaces such a file in one rename.
func WriteBundle(path string, certs []*x509.Certificate) error {
	return WriteFile(path, encodeBundle(certs))
}

func encodeBundle(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(encodeCert(c.Raw))
	}
	return b.Bytes()
}

// EncodeCertificate is a certificate as PEM.
func EncodeCertificate(c *x509.Certificate) []byte { return encodeCert(c.Raw) }

// PoolOf is a pool of certificates.
func PoolOf(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// SignedBy reports whether the CA has signed the certificate.
func SignedBy(cert, ca *x509.Certificate) bool { return cert.CheckSignatureFrom(ca) == nil }

// SameBundle compares bundles, whatever the order of those behind the first.
func SameBundle(a, b []*x509.Certificate) bool {
	if len(a) != len(b) || len(a) > 0 && !a[0].Equal(b[0]) {
		return false
	}
	for _, c := range a {
		if !slices.ContainsFunc(b, c.Equal) {
			return false
		}
	}
	return true
}
