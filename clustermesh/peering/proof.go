// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// Steps of a join; each proof is made for one step only.
const (
	stepPrepare = "prepare"
	stepConfirm = "confirm"
)

// BundleHash is the SHA-256 of the certificates' DER, one after the other. For a
// bundle of one it is the hash of that certificate.
func BundleHash(bundle [][]byte) [32]byte {
	h := sha256.New()
	for _, der := range bundle {
		h.Write(der)
	}
	return [32]byte(h.Sum(nil))
}

// parseBundle parses a trust bundle: 1 to 4 CA certificates.
func parseBundle(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > 4 {
		return nil, fmt.Errorf("trust bundle has %d certificates; 1 to 4 are allowed", len(ders))
	}
	var errs []error
	out := make([]*x509.Certificate, 0, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("certificate %d of trust bundle: %w", i, err))
		case !c.IsCA:
			errs = append(errs, fmt.Errorf("certificate %d of trust bundle: %q is not a CA", i, c.Subject.CommonName))
		default:
			out = append(out, c)
		}
	}
	return out, errors.Join(errs...)
}

func rawBundle(certs []*x509.Certificate) [][]byte {
	out := make([][]byte, len(certs))
	for i, c := range certs {
		out[i] = c.Raw
	}
	return out
}
