// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// Seal makes the certificate and the key of the CA that is to follow this one,
// for those who have this one's key and for nobody else: AES-256-GCM under a key
// that is derived from it (RFC 5869), bound to the certificate.
func (c *CA) Seal(next *CA) (cert, sealed []byte, err error) {
	box, err := c.box()
	if err != nil {
		return nil, nil, err
	}
	key, err := encodeKey(next.key)
	if err != nil {
		return nil, nil, err
	}
	nonce := make([]byte, box.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return next.cert.Raw, box.Seal(nonce, nonce, key, next.cert.Raw), nil
}

func (c *CA) box() (cipher.AEAD, error) {
	own, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, fmt.Errorf("seal CA: %w", err)
	}
	secret, err := hkdf.Key(sha256.New, own, c.cert.Raw, "hawser next CA", 32)
	if err != nil {
		return nil, fmt.Errorf("seal CA: %w", err)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("seal CA: %w", err)
	}
	return cipher.NewGCM(block)
}

// AnnounceSealed is Announce with a CA that another holder of the directory's CA
// has sealed. Repeating it changes nothing.
func AnnounceSealed(dir string, cert, sealed []byte) error {
	phase, err := RotationPhase(dir)
	if err != nil || phase != PhaseNone {
		return err
	}
	own, err := LoadCA(dir)
	if err != nil {
		return err
	}
	next, err := x509.ParseCertificate(cert)
	if err != nil {
		return fmt.Errorf("next CA: %w", err)
	}
	if own.cert.Equal(next) {
		return nil // it signs already
	}
	box, err := own.box()
	if err != nil {
		return err
	}
	if len(sealed) < box.NonceSize() {
		return errors.New("next CA: its key is cut short")
	}
	key, err := box.Open(nil, sealed[:box.NonceSize()], sealed[box.NonceSize():], cert)
	if err != nil {
		return fmt.Errorf("next CA: its key is not sealed for the CA in %s; is that a copy of the other replicas' CA? %w", dir, err)
	}
	if err := WriteFile(filepath.Join(dir, nextKeyFile), key); err != nil {
		return err
	}
	return WriteBundle(filepath.Join(dir, CACertFile), []*x509.Certificate{own.cert, next})
}

// Follows reports whether a directory's CA is as a phase of the change to next
// has it.
func Follows(dir string, next []byte, to Phase) (bool, error) {
	have, err := RotationPhase(dir)
	if err != nil {
		return false, err
	}
	bundle, err := ReadBundle(filepath.Join(dir, CACertFile))
	if err != nil {
		return false, err
	}
	known := slices.ContainsFunc(bundle, func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, next) })
	return known && have == to, nil
}
