// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// follower is a node whose certificate is issued by a CA that a test chooses.
type follower struct {
	*trust
	dir   string
	asked int
}

func newFollower(t *testing.T, cas ...*pki.CA) *follower {
	t.Helper()
	f := &follower{dir: t.TempDir()}
	f.trust = newTrust(&Config{TLSDir: f.dir}, slog.New(slog.DiscardHandler), true)
	f.issue(t, cas[0], cas...)
	return f
}

// issue stores a certificate by a CA, and whom the node believes.
func (f *follower) issue(t *testing.T, by *pki.CA, believed ...*pki.CA) {
	t.Helper()
	leaf, err := by.Issue(pki.Request{Role: pki.RoleAgent, Name: "n1", Lifetime: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Save(f.dir, "tls"); err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteBundle(f.files.CA, certificates(believed)); err != nil {
		t.Fatal(err)
	}
}

func certificates(cas []*pki.CA) (out []*x509.Certificate) {
	for _, ca := range cas {
		out = append(out, ca.Certificate())
	}
	return out
}

// told has the cluster say whom to believe.
func (f *follower) told(cas ...*pki.CA) {
	r := &keyspacev1.TrustBundle{}
	for _, c := range certificates(cas) {
		r.Certificates = append(r.Certificates, c.Raw)
	}
	f.apply(store.Batch{Changes: []store.Change{{Key: kvstore.NewKey(kvstore.Local, "east", kvstore.KindTrust), Record: r}}})
}

// A certificate that the API server issued by the former CA, as it does until it
// has begun anew, is not the one that was asked for: the node asks again.
func TestTrustAsksUntilTheNewCASigns(t *testing.T) {
	former, next := newTestCA(t), newTestCA(t)
	f := newFollower(t, former, next)
	f.told(next, former)
	signers := []*pki.CA{former, next}
	f.renew = func(context.Context) error {
		f.issue(t, signers[f.asked], next, former)
		f.asked++
		return nil
	}
	if err := f.follow(t.Context()); err == nil || !strings.Contains(err.Error(), "former one") {
		t.Fatalf("a certificate by the former CA is taken: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	steps := 0
	if err := f.run(ctx, func() {
		if steps++; f.asked == 2 {
			cancel()
		}
	}); err != nil || f.asked != 2 || steps != 1 {
		t.Errorf("asked %d times in %d steps: %v", f.asked, steps, err)
	}
	if err := f.follow(t.Context()); err != nil || f.asked != 2 {
		t.Errorf("asks although it has the certificate: %d, %v", f.asked, err)
	}
}

// What cannot be had at first is asked for again, and who knows none of the CAs
// believes none of them.
func TestTrustTriesAgain(t *testing.T) {
	former, next, foreign := newTestCA(t), newTestCA(t), newTestCA(t)
	f := newFollower(t, former)
	if err := f.follow(t.Context()); err != nil {
		t.Fatalf("before the cluster has said anything: %v", err)
	}
	f.told(foreign)
	if err := f.follow(t.Context()); err == nil || !strings.Contains(err.Error(), "knows none") {
		t.Errorf("a CA out of nowhere is believed: %v", err)
	}
	f.told(next, former)
	f.renew = func(context.Context) error {
		if f.asked++; f.asked == 1 {
			return errors.New("nobody answers")
		}
		f.issue(t, next, next, former)
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := f.run(ctx, func() {
		if f.asked == 2 {
			cancel()
		}
	}); err != nil || f.asked != 2 {
		t.Errorf("asked %d times: %v", f.asked, err)
	}
	have, err := pki.ReadBundle(f.files.CA)
	if err != nil || !pki.SameBundle(have, certificates([]*pki.CA{next, former})) {
		t.Errorf("believes %d CAs: %v", len(have), err)
	}
}

func newTestCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("east", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
