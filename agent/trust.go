// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// How long a node waits until it tries again to follow the CA's replacement. It is
// short: while it does not, the replacement waits.
const (
	trustRetryMin = 200 * time.Millisecond
	trustRetryMax = 5 * time.Second
	// trustCheck is how often it looks though nothing has changed: a renewal that ran
	// beside a step may have stored what was believed before.
	trustCheck = time.Minute
)

// trust follows the CAs of the cluster: while one replaces the other, the node
// believes both, and has its certificate issued by the one that signs.
type trust struct {
	files    pki.Files
	renew    func(context.Context) error
	enrolled bool // else nobody renews the certificate
	log      *slog.Logger
	kick     chan struct{}

	mu   sync.Mutex
	want []*x509.Certificate // as the cluster says; nil before it has
}

func newTrust(cfg *Config, log *slog.Logger, enrolled bool) *trust {
	return &trust{
		files: pki.FilesIn(cfg.TLSDir, "tls"), renew: (&enrol.Renewer{Node: *cfg.node()}).Renew, enrolled: enrolled,
		log: log, kick: make(chan struct{}, 1),
	}
}

// apply takes a batch of the local/ reader.
func (t *trust) apply(b store.Batch) {
	for _, c := range b.Changes {
		r, ok := c.Record.(*keyspacev1.TrustBundle)
		if c.Key.Kind != kvstore.KindTrust || c.Deleted || !ok {
			continue
		}
		var certs []*x509.Certificate
		for _, der := range r.GetCertificates() {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.log.Error("the cluster's CAs cannot be read", "error", err)
				return
			}
			certs = append(certs, cert)
		}
		t.mu.Lock()
		t.want = certs
		t.mu.Unlock()
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
}

// run follows until the context ends; done is called after each step.
func (t *trust) run(ctx context.Context, done func()) error {
	wait := backoff.New(trustRetryMin, trustRetryMax)
	check := time.NewTicker(trustCheck)
	defer check.Stop()
	told := ""
	for {
		select {
		case <-t.kick:
		case <-check.C:
		case <-ctx.Done():
			return nil
		}
		for {
			err := t.follow(ctx)
			done()
			if err == nil {
				wait.Reset()
				told = ""
				break
			}
			if text := err.Error(); text != told {
				t.log.Warn("the cluster's CA is being replaced; this node does not follow yet", "error", err)
				told = text
			}
			if wait.Wait(ctx) != nil {
				return nil
			}
		}
	}
}

// follow makes the files what the cluster says.
func (t *trust) follow(ctx context.Context) error {
	t.mu.Lock()
	want := t.want
	t.mu.Unlock()
	if len(want) == 0 {
		return nil
	}
	have, err := pki.ReadBundle(t.files.CA)
	if err != nil {
		return err
	}
	if !pki.SameBundle(have, want) {
		if !slices.ContainsFunc(want, func(c *x509.Certificate) bool { return slices.ContainsFunc(have, c.Equal) }) {
			return errors.New("the keyspace names CAs of which this node knows none; if that is meant, invite the node again: hawser node invite")
		}
		if err := pki.WriteBundle(t.files.CA, want); err != nil {
			return err
		}
		t.log.Info("the cluster's CAs changed", "certificates", len(want))
	}
	signed, err := t.signedBy(want[0])
	if err != nil || signed {
		return err
	}
	if !t.enrolled {
		t.log.Warn("this node's certificate is of a CA that ends; issue another one: hawser-apiserver issue --agent")
		return nil
	}
	if err := t.renew(ctx); err != nil {
		return fmt.Errorf("certificate by the new CA: %w", err)
	}
	// An API server that has told of the new CA signs by the former one until it
	// has begun anew.
	if signed, err = t.signedBy(want[0]); err == nil && !signed {
		err = errors.New("certificate by the new CA: the API server still issues them by the former one")
	}
	return err
}

// signedBy reports whether a CA has signed the node's certificate.
func (t *trust) signedBy(ca *x509.Certificate) (bool, error) {
	leaf, err := pki.ReadCertificate(t.files.Cert)
	return err == nil && pki.SignedBy(leaf, ca), err
}

// believed are the hashes of the bundle that the node believes and of the CA
// that signed its certificate; nil when they cannot be read.
func (t *trust) believed() (bundle, signer []byte) {
	cas, err := pki.ReadBundle(t.files.CA)
	if err != nil {
		return nil, nil
	}
	var raw [][]byte
	leaf, _ := pki.ReadCertificate(t.files.Cert)
	for _, c := range cas {
		raw = append(raw, c.Raw)
		if leaf != nil && pki.SignedBy(leaf, c) {
			sum := sha256.Sum256(c.Raw)
			signer = sum[:]
		}
	}
	sum := peering.BundleHash(raw)
	return sum[:], signer
}
