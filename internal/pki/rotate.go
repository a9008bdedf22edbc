// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Phase is how far the replacement of a CA has come.
type Phase string

// Phases, in their order.
const (
	PhaseNone      Phase = "none"
	PhaseAnnounced Phase = "announced" // the next CA is believed, the old one signs
	PhaseSwitched  Phase = "switched"  // the new CA signs, the old one is still believed
)

// nextKeyFile holds the next CA's key until it signs.
const nextKeyFile = "ca.next.key"

// RotationPhase says how far the replacement of the CA in a directory has come.
func RotationPhase(dir string) (Phase, error) {
	bundle, err := ReadBundle(filepath.Join(dir, CACertFile))
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(dir, nextKeyFile))
	switch {
	case err == nil && len(bundle) > 1:
		return PhaseAnnounced, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("rotate CA: %w", err)
	case len(bundle) > 1:
		return PhaseSwitched, nil
	}
	return PhaseNone, nil // a key without its certificate is from an announcement that did not finish
}

// Announce makes the next CA of a directory and puts it beside the one that
// signs. Repeating it changes nothing.
func Announce(dir string, now time.Time) error {
	phase, err := RotationPhase(dir)
	if err != nil || phase != PhaseNone {
		return err
	}
	old, err := LoadCA(dir)
	if err != nil {
		return err
	}
	next, err := NewCA(old.cluster, now)
	if err != nil {
		return err
	}
	key, err := encodeKey(next.key)
	if err != nil {
		return err
	}
	if err := WriteFile(filepath.Join(dir, nextKeyFile), key); err != nil {
		return err
	}
	return WriteBundle(filepath.Join(dir, CACertFile), []*x509.Certificate{old.cert, next.cert})
}

// Switch has the next CA sign from the next LoadCA on. The old one's key is
// gone then.
func Switch(dir string) error {
	phase, err := RotationPhase(dir)
	if err != nil || phase == PhaseSwitched {
		return err
	}
	if phase != PhaseAnnounced {
		return fmt.Errorf("switch CA in %s: no next CA was announced", dir)
	}
	// One rename decides; which certificate signs is found by the key.
	if err := os.Rename(filepath.Join(dir, nextKeyFile), filepath.Join(dir, CAKeyFile)); err != nil {
		return fmt.Errorf("switch CA: %w", err)
	}
	ca, err := LoadCA(dir)
	if err != nil {
		return err
	}
	return WriteBundle(filepath.Join(dir, CACertFile), ca.Bundle())
}

// Retire ends the belief in all CAs but the one that signs.
func Retire(dir string) error {
	phase, err := RotationPhase(dir)
	if err != nil || phase == PhaseNone {
		return err
	}
	if phase != PhaseSwitched {
		return fmt.Errorf("retire CA in %s: the next CA does not sign yet", dir)
	}
	ca, err := LoadCA(dir)
	if err != nil {
		return err
	}
	return WriteBundle(filepath.Join(dir, CACertFile), []*x509.Certificate{ca.cert})
}
