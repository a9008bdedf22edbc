// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// The next CA is for those who have the present one, unchanged.
func TestSealedCA(t *testing.T) {
	now := time.Now()
	saved := func(cluster string) (string, *CA) {
		dir := t.TempDir()
		ca, err := EnsureCA(dir, cluster, now)
		if err != nil {
			t.Fatal(err)
		}
		return dir, ca
	}
	dir, own := saved("east")
	other, _ := saved("east")
	next, err := NewCA("east", now)
	if err != nil {
		t.Fatal(err)
	}
	cert, sealed, err := own.Seal(next)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("PRIVATE KEY")) {
		t.Error("the key is not sealed")
	}
	changed := bytes.Clone(sealed)
	changed[len(changed)/2] ^= 1
	third, err := NewCA("east", now)
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"another CA":          func() error { return AnnounceSealed(other, cert, sealed) },
		"changed":             func() error { return AnnounceSealed(dir, cert, changed) },
		"another certificate": func() error { return AnnounceSealed(dir, third.cert.Raw, sealed) },
		"cut short":           func() error { return AnnounceSealed(dir, cert, sealed[:4]) },
		"no certificate":      func() error { return AnnounceSealed(dir, []byte("x"), sealed) },
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "next CA") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if phase, err := RotationPhase(dir); err != nil || phase != PhaseNone {
		t.Errorf("what was refused changed something: %s %v", phase, err)
	}
	for _, step := range []struct {
		do func() error
		to Phase
	}{
		{func() error { return AnnounceSealed(dir, cert, sealed) }, PhaseAnnounced},
		{func() error { return AnnounceSealed(dir, cert, sealed) }, PhaseAnnounced}, // again
		{func() error { return Switch(dir) }, PhaseSwitched},
		{func() error { return Retire(dir) }, PhaseNone},
	} {
		if there, err := Follows(dir, cert, step.to); there && step.to != PhaseAnnounced || err != nil {
			t.Errorf("it is at %s before the step: %v", step.to, err)
		}
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if there, err := Follows(dir, cert, step.to); !there || err != nil {
			t.Errorf("it is not at %s: %v", step.to, err)
		}
	}
	if ca, err := LoadCA(dir); err != nil || !ca.Equal(next) {
		t.Errorf("the next CA does not sign: %v", err)
	}
}
