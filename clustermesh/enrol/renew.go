// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
)

const (
	renewCheck  = time.Minute
	minRetry    = time.Minute
	maxRetry    = 6 * time.Hour
	retryShares = 20 // attempts in what is left of a certificate's life
)

// Renewer keeps a node's certificate valid: at two thirds of its life it asks
// for the next one, for the same key. Connections pick it up at their next
// handshake.
type Renewer struct {
	Node
	CheckEvery time.Duration // 0 means a minute; only tests need another
}

// Run blocks until the context ends; what goes wrong is logged and tried again.
func (r *Renewer) Run(ctx context.Context) error {
	every := r.CheckEvery
	if every == 0 {
		every = renewCheck
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var notBefore time.Time // of the next attempt
	for {
		if now := r.Now(); !now.Before(notBefore) {
			until, err := r.renewIfDue(ctx)
			if err != nil && ctx.Err() == nil {
				wait := min(max(until.Sub(now)/retryShares, minRetry), maxRetry)
				notBefore = now.Add(wait)
				r.Log.Error("renew this node's certificate", "error", err, "expires", until, "again_in", wait)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// renewIfDue returns when the certificate that is stored before it ends.
func (r *Renewer) renewIfDue(ctx context.Context) (until time.Time, err error) {
	leaf, err := pki.LoadLeaf(pki.FilesIn(r.Dir, leafName))
	if err != nil {
		return until, err
	}
	if r.Now().Before(pki.RenewAt(leaf.Cert)) {
		return leaf.Cert.NotAfter, nil
	}
	return leaf.Cert.NotAfter, r.Renew(ctx)
}

// Renew replaces the certificate now. It blocks for up to half a minute.
func (r *Renewer) Renew(ctx context.Context) error {
	state, err := Load(r.Dir)
	if err != nil {
		return err
	}
	files := pki.FilesIn(r.Dir, leafName)
	leaf, err := pki.LoadLeaf(files)
	if err != nil {
		return err
	}
	resp, err := r.askAgain(ctx, state, files, leaf)
	if err != nil {
		return err
	}
	fresh, err := newLeaf(resp.GetCertificate(), leaf.Bundle(), leaf.Key, state.id(), r.Now())
	if err != nil {
		return err
	}
	if _, err := fresh.Save(r.Dir, leafName); err != nil {
		return err
	}
	if p := resp.GetCluster(); p.GetName() == state.Cluster && len(p.GetEtcdEndpoints()) > 0 {
		if err := newState(p, state.TokenID).save(r.Dir); err != nil {
			return err
		}
	}
	r.Log.Info("certificate renewed", "expires", fresh.Cert.NotAfter)
	return nil
}

func (r *Renewer) askAgain(ctx context.Context, state State, files pki.Files, leaf *pki.Leaf) (*hawserv1.RenewResponse, error) {
	request, _, err := newRequest(leaf.Key)
	if err != nil {
		return nil, err
	}
	cfg, err := files.ClientTLS(&pki.ID{Cluster: state.Cluster, Role: pki.RoleAPIServer})
	if err != nil {
		return nil, err
	}
	cfg.NextProtos = []string{"h2"}
	var resp *hawserv1.RenewResponse
	err = askFirst(ctx, state.APIEndpoints, cfg, func(ctx context.Context, _ *tls.Conn, c hawserv1.EnrolmentClient) (err error) {
		resp, err = c.Renew(ctx, &hawserv1.RenewRequest{Request: request})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("renew: %w", err)
	}
	return resp, nil
}
