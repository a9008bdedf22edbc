// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
)

// PKIDir is where an API server keeps its CA and certificates.
func PKIDir(dataDir string) string { return filepath.Join(dataDir, "pki") }

// certificates are those of one API server. The leaf is issued anew
// at each start.
type certificates struct {
	ca     *pki.CA
	server pki.Files // spiffe://<c>/apiserver: etcd server, federation, etcd client
	root   pki.Files // etcd's administrator
	peer   pki.Files // to the other members of an embedded etcd, if there are any
	cert   tls.Certificate
	leaf   *x509.Certificate
}

func newCredentials(cfg *Config, now time.Time) (*certificates, error) {
	dir := PKIDir(cfg.DataDir)
	ca, err := clusterCA(cfg, dir, now)
	if err != nil {
		return nil, err
	}
	c := &certificates{ca: ca}
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
	issue := func(r pki.Request, name string) (pki.Files, *pki.Leaf, error) {
		leaf, err := ca.Issue(r, now)
		if err != nil {
			return pki.Files{}, nil, err
		}
		files, err := leaf.Save(dir, name)
		return files, leaf, err
	}
	if c.server, _, err = issue(pki.Request{Role: pki.RoleAPIServer, DNS: names, IPs: ips}, "apiserver"); err != nil {
		return nil, err
	}
	if c.root, _, err = issue(pki.Request{Role: pki.RoleRoot}, "root"); err != nil {
		return nil, err
	}
	for _, m := range cfg.Etcd.Members {
		if m.Name != cfg.Replica {
			continue
		}
		if c.peer, _, err = issue(pki.Request{Role: pki.RoleEtcdPeer, IPs: []netip.Addr{m.Peer.Addr()}}, "etcd-peer"); err != nil {
			return nil, err
		}
	}
	if c.cert, err = c.server.Certificate(); err != nil {
		return nil, err
	}
	if c.leaf, err = x509.ParseCertificate(c.cert.Certificate[0]); err != nil {
		return nil, fmt.Errorf("read own certificate: %w", err)
	}
	return c, nil
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
func (c *certificates) expires() time.Time { return c.leaf.NotAfter }

// Certificate implements peering.Credentials.
func (c *certificates) Certificate() (*tls.Certificate, error) { return &c.cert, nil }

// CA implements peering.Credentials.
func (c *certificates) CA() []*x509.Certificate { return []*x509.Certificate{c.ca.Certificate()} }

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
