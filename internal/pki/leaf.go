// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Role is what a certificate's holder is; the first part of its SPIFFE path.
type Role string

// Roles.
const (
	RoleAPIServer Role = "apiserver"
	RoleAgent     Role = "agent"     // Name is the node
	RoleAdmin     Role = "admin"     // Name is the user
	RoleRoot      Role = "root"      // etcd's own administrator, for its API server only
	RoleEtcdPeer  Role = "etcd-peer" // a member of the cluster's etcd to the others; no etcd user
)

// ID is who a certificate is for.
type ID struct {
	Cluster string
	Role    Role
	Name    string // of RoleAgent and RoleAdmin; otherwise empty
}

// URL is the SPIFFE id.
func (i ID) URL() *url.URL {
	p := "/" + string(i.Role)
	if i.Name != "" {
		p += "/" + i.Name
	}
	return &url.URL{Scheme: "spiffe", Host: i.Cluster, Path: p}
}

// String is the SPIFFE id as text.
func (i ID) String() string { return i.URL().String() }

// EtcdUser is the user by which etcd knows the holder: the certificate's common
// name.
func (i ID) EtcdUser() string {
	if i.Role == RoleRoot {
		return string(RoleRoot)
	}
	return i.Cluster + "-" + string(i.Role)
}

// Validate says why an ID cannot be certified, or nil.
func (i ID) Validate() error {
	errs := []error{validTrustDomain(i.Cluster)}
	switch i.Role {
	case RoleAPIServer, RoleRoot, RoleEtcdPeer:
		if i.Name != "" {
			errs = append(errs, fmt.Errorf("role %s takes no name, not %q", i.Role, i.Name))
		}
	case RoleAgent, RoleAdmin:
		if !validSegment(i.Name) {
			errs = append(errs, fmt.Errorf("name %q of role %s: 1 to 253 letters, digits, '-', '.' or '_', not only dots", i.Name, i.Role))
		}
	default:
		errs = append(errs, fmt.Errorf("unknown role %q", i.Role))
	}
	return errors.Join(errs...)
}

func validSegment(s string) bool {
	if s == "" || len(s) > 253 || strings.Trim(s, ".") == "" {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') &&
			r != '-' && r != '.' && r != '_'
	}) < 0
}

// CertificateID is who a certificate says it is for. The chain must have been
// verified by the caller.
func CertificateID(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" {
		return ID{}, fmt.Errorf("certificate %q: not exactly one SPIFFE id", cert.Subject.CommonName)
	}
	role, name, _ := strings.Cut(strings.TrimPrefix(cert.URIs[0].Path, "/"), "/")
	id := ID{Cluster: cert.URIs[0].Host, Role: Role(role), Name: name}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("certificate %s: %w", cert.URIs[0], err)
	}
	return id, nil
}

// Request is what a certificate shall say. Servers list the names and addresses
// by which they are dialled.
type Request struct {
	// Cluster is whose role it is; empty means the CA's. Only the CA of an etcd
	// that clusters share certifies for others.
	Cluster  string
	Role     Role
	Name     string
	EtcdUser string // common name; empty means that of the role: ID.EtcdUser
	DNS      []string
	IPs      []netip.Addr
	Lifetime time.Duration // 0 means DefaultLifetime; cut at the CA's end
}

// Sign issues a certificate (DER) for a public key. Nothing of what the key's
// holder asked for enters it but the key.
func (c *CA) Sign(pub crypto.PublicKey, r Request, now time.Time) ([]byte, error) {
	id := ID{Cluster: c.cluster, Role: r.Role, Name: r.Name}
	if r.Cluster != "" {
		id.Cluster = r.Cluster
	}
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	if r.Lifetime < 0 {
		return nil, fmt.Errorf("sign certificate of %s: negative lifetime %v", id, r.Lifetime)
	}
	if r.Lifetime == 0 {
		r.Lifetime = DefaultLifetime
	}
	if r.EtcdUser == "" {
		r.EtcdUser = id.EtcdUser()
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", id, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: r.EtcdUser},
		URIs:                  []*url.URL{id.URL()},
		DNSNames:              r.DNS,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(r.Lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, ip := range r.IPs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip.Unmap().AsSlice())
	}
	if tmpl.NotAfter.After(c.cert.NotAfter) {
		tmpl.NotAfter = c.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, pub, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", id, err)
	}
	return der, nil
}

// Leaf is a certificate with its key and the CA it is to be verified by.
type Leaf struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	CA   *x509.Certificate
	// Also are believed beside the CA while one replaces the other.
	Also []*x509.Certificate
}

// Bundle are the CA and those that are believed beside it.
func (l *Leaf) Bundle() []*x509.Certificate { return append([]*x509.Certificate{l.CA}, l.Also...) }

// Issue makes a key and signs a certificate for it.
func (c *CA) Issue(r Request, now time.Time) (*Leaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	der, err := c.Sign(key.Public(), r, now)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return &Leaf{Cert: cert, Key: key, CA: c.cert, Also: c.also}, nil
}

// TLS is the leaf as crypto/tls wants it.
func (l *Leaf) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{l.Cert.Raw}, PrivateKey: l.Key, Leaf: l.Cert}
}

// ClientTLS is a configuration to dial the server of an id with (TLS 1.3 only),
// whatever name or address it is dialled by.
func (l *Leaf) ClientTLS(server ID) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{l.TLS()},
		InsecureSkipVerify: true, // host names say nothing here: VerifyConnection does it all
		VerifyConnection: func(s tls.ConnectionState) error {
			return VerifyServer(s.PeerCertificates, l.Bundle(), server, time.Now())
		},
	}
}

// Save writes ca.crt, <name>.key and <name>.crt below dir, each in one rename
// and readable by the owner only, and returns their paths.
func (l *Leaf) Save(dir, name string) (Files, error) {
	f := FilesIn(dir, name)
	key, err := encodeKey(l.Key)
	if err != nil {
		return f, fmt.Errorf("save certificate %s: %w", name, err)
	}
	for _, w := range []struct {
		path string
		data []byte
	}{{f.CA, encodeBundle(l.Bundle())}, {f.Key, key}, {f.Cert, encodeCert(l.Cert.Raw)}} {
		if err := WriteFile(w.path, w.data); err != nil {
			return f, fmt.Errorf("save certificate %s: %w", name, err)
		}
	}
	return f, nil
}

// FilesIn names the files that Leaf.Save writes.
func FilesIn(dir, name string) Files {
	return Files{
		CA:   filepath.Join(dir, CACertFile),
		Cert: filepath.Join(dir, name+".crt"),
		Key:  filepath.Join(dir, name+".key"),
	}
}

// RenewAt is the moment at which a certificate should be replaced: two thirds
// of its life.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
}
