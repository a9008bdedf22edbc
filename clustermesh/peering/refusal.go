// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Reasons for which a certificate is not believed in a handshake.
const (
	handshakeCertificate = "certificate" // it is none of a cluster's
	handshakeStranger    = "stranger"    // of a cluster that is no peer
	handshakeAuthority   = "authority"   // of a CA that is not this cluster's
	handshakeExpired     = "expired"     // or not valid yet
	handshakeRole        = "role"        // an agent's or an administrator's
	handshakeOwn         = "own"         // of this cluster itself
)

// HandshakeReasons are all reasons of a HandshakeError.
func HandshakeReasons() []string {
	return []string{handshakeCertificate, handshakeStranger, handshakeAuthority, handshakeExpired, handshakeRole, handshakeOwn}
}

// HandshakeError says why a certificate was not believed.
type HandshakeError struct {
	Reason string
	err    error
}

func (e *HandshakeError) Error() string { return e.err.Error() }
func (e *HandshakeError) Unwrap() error { return e.err }

// unbelieved sorts the error of a chain that names id (perhaps none).
func (t *Trust) unbelieved(id spiffeid.ID, err error) *HandshakeError {
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	e := &HandshakeError{Reason: handshakeCertificate, err: err}
	switch {
	case !id.IsZero() && !t.set.Has(id.TrustDomain()):
		e.Reason = handshakeStranger
	case errors.As(err, &authority):
		e.Reason = handshakeAuthority
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Reason = handshakeExpired
	}
	return e
}

// NoPeerAnyMore refuses a cluster that was removed after its certificate was
// believed.
func NoPeerAnyMore(cluster string) error {
	return &HandshakeError{handshakeStranger, fmt.Errorf("certificate of cluster %s: it is no peer any more", cluster)}
}
