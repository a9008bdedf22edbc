// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
)

// PKIDir is where an API server keeps its CA and certificates.
func PKIDir(dataDir string) string { return filepath.Join(dataDir, "pki") }

// renewCheck is how often the API server looks whether its certificates are due.
const renewCheck = time.Minute

// certificates are those of one API server. The leaves are issued anew at each
// start, and at two thirds of their life; whoever uses the files reads them at
// each handshake.
type certificates struct {
	dir      string
	requests map[string]pki.Request // by name of the files
	server   pki.Files              // spiffe://<c>/apiserver: etcd server, federation, etcd client
	root     pki.Files              // etcd's administrator
	peer     pki.Files              // to the other members of an embedded etcd, if there are any

	mu   sync.Mutex
	ca   *pki.CA
	cert tls.Certificate
	leaf *x509.Certificate
}

func newCredentials(cfg *Config, now time.Time) (*certificates, error) {
	dir := PKIDir(cfg.DataDir)
	ca, err := clusterCA(cfg, dir, now)
	if err != nil {
		return nil, err
	}
	c := &certificates{ca: ca, dir: dir, requests: map[string]pki.Request{}}
	ips := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), cfg.ListenFederation.Addr()}
	if cfg.ListenEtcd.IsValid() {
		ips = append(ips, cfg.ListenEtcd.Addr())
	}
	for _, m := range cfg.Etcd.Members {
		if m.Name == cfg.Replica {
			ips = append(ips, m.Client.Addr())
		}
	}
	var names []string
	if cfg.ListenAPI.IsValid() {
		ips = append(ips, cfg.ListenAPI.Addr())
		// By SPIFFE id the name does not matter; plain HTTPS clients look at it.
		if host, _, err := net.SplitHostPort(cfg.advertisedAPI()); err != nil {
			return nil, fmt.Errorf("--advertise-api: %w", err)
		} else if ip, err := netip.ParseAddr(host); err == nil {
			ips = append(ips, ip)
		} else {
			names = append(names, host)
		}
	}
	c.requests["apiserver"] = pki.Request{Role: pki.RoleAPIServer, DNS: names, IPs: ips}
	c.requests["root"] = pki.Request{Role: pki.RoleRoot}
	c.server, c.root = pki.FilesIn(dir, "apiserver"), pki.FilesIn(dir, "root")
	for _, m := range cfg.Etcd.Members {
		if m.Name == cfg.Replica {
			c.requests["etcd-peer"] = pki.Request{Role: pki.RoleEtcdPeer, IPs: []netip.Addr{m.Peer.Addr()}}
			c.peer = pki.FilesIn(dir, "etcd-peer")
		}
	}
	return c, c.issue(now)
}

// issue makes all leaves anew.
func (c *certificates) issue(now time.Time) error {
	for name, r := range c.requests {
		leaf, err := c.authority().Issue(r, now)
		if err == nil {
			_, err = leaf.Save(c.dir, name)
		}
		if err != nil {
			return err
		}
	}
	cert, err := c.server.Certificate()
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return fmt.Errorf("read own certificate: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cert, c.leaf = cert, leaf
	return nil
}

// keep renews the leaves when they are due, until the context ends. Connections
// that are open stay; the next handshake shows the new ones.
func (c *certificates) keep(ctx context.Context, now func() time.Time, log *slog.Logger) error {
	t := time.NewTicker(renewCheck)
	defer t.Stop()
	for {
		if err := c.renewIfDue(now(), log); err != nil {
			log.Error("renew the API server's certificates", "error", err, "expires", c.expires())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (c *certificates) renewIfDue(now time.Time, log *slog.Logger) error {
	c.mu.Lock()
	due := !now.Before(pki.RenewAt(c.leaf))
	c.mu.Unlock()
	if !due {
		return nil
	}
	if err := c.issue(now); err != nil {
		return err
	}
	log.Info("certificates renewed", "expires", c.expires())
	return nil
}

// clusterCA is the CA in a directory. That of one replica alone is made when
// absent; several need the same.
func clusterCA(cfg *Config, dir string, now time.Time) (*pki.CA, error) {
	if len(cfg.Etcd.Members) == 0 {
		return pki.EnsureCA(dir, cfg.Cluster, now)
	}
	ca, err := pki.LoadCA(dir)
	if err != nil {
		return nil, fmt.Errorf("%w\nseveral replicas need the same CA: make it once (hawser-apiserver ca --cluster %s --data-dir DIR) "+
			"and copy DIR/pki/ca.crt and ca.key to %s of each", err, cfg.Cluster, dir)
	}
	return ca, nil
}

// expires is when the server's certificate ends.
func (c *certificates) expires() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf.NotAfter
}

// Certificate implements peering.Credentials.
func (c *certificates) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cert := c.cert
	return &cert, nil
}

// CA implements peering.Credentials.
func (c *certificates) CA() []*x509.Certificate { return c.authority().Bundle() }

// authority is the CA as it is now.
func (c *certificates) authority() *pki.CA {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ca
}

// reload takes up the CA as it is on disk.
func (c *certificates) reload() error {
	ca, err := pki.LoadCA(c.dir)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ca = ca
	return nil
}

// Issue writes a certificate of the cluster whose CA is in dataDir, for an agent
// (role agent, name the node) or an administrator, with the CA's certificate
// beside it: ca.crt, tls.crt, tls.key in out.
func Issue(dataDir string, role pki.Role, name, out string, now time.Time) error {
	ca, err := pki.LoadCA(PKIDir(dataDir))
	if err != nil {
		return fmt.Errorf("issue a certificate for %s %s: %w; the CA is made when the API server first starts", role, name, err)
	}
	leaf, err := ca.Issue(pki.Request{Role: role, Name: name}, now)
	if err != nil {
		return err
	}
	_, err = leaf.Save(out, "tls")
	return err
}
