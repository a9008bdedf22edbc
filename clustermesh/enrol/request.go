// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

const (
	maxRequest = 16 << 10
	minRSABits = 2048
	minECBits  = 256
)

// parseRequest reads a certificate request and checks that its sender holds the
// key. Everything else in it is ignored.
func parseRequest(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxRequest {
		return nil, fmt.Errorf("certificate request: %d bytes, at most %d are allowed", len(der), maxRequest)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: it is not signed by its own key: %w", err)
	}
	switch k := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize >= minECBits {
			return csr, nil
		}
	case ed25519.PublicKey:
		return csr, nil
	case *rsa.PublicKey:
		if k.N.BitLen() >= minRSABits {
			return csr, nil
		}
	}
	return nil, fmt.Errorf("certificate request: a key of type %T or of its length is not accepted", csr.PublicKey)
}

// newRequest asks for a certificate for the key; who it is for is the signer's
// to say.
func newRequest(key crypto.Signer) (der []byte, hash [32]byte, err error) {
	if der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return nil, hash, fmt.Errorf("make certificate request: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, hash, fmt.Errorf("make certificate request: %w", err)
	}
	return der, keyHash(spki), nil
}
