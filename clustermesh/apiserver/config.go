// SPDX-License-Identifier: Apache-2.0

// Package apiserver is the composition root of the mesh API server: it runs the
// cluster's etcd, keeps the cluster's own records, federates them with the
// peers, and answers the cluster API.
//
// Start with server.go, which puts the parts together; each other file is one
// part of the API. Packets and the kernel are none of its business.
package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/version"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/tunnel"
)

// Config is what an API server is told. See Validate for the rules.
type Config struct {
	Cluster     string
	ClusterID   uint32
	ClusterBits uint32 // 8, 9 or 10

	DataDir string // holds pki/ and etcd/
	Socket  string // unix socket of the cluster API

	ListenEtcd       netip.AddrPort // of an embedded etcd
	ListenFederation netip.AddrPort
	// PeersFile declares peers, by manifests of kind Peer; empty: none are.
	PeersFile string
	// ListenAPI is where nodes enrol and administrators call; the zero value
	// serves neither.
	ListenAPI netip.AddrPort
	// AdvertiseAPI is host:port of it as nodes dial it; defaults to ListenAPI.
	AdvertiseAPI string
	// NodeCertificates is the lifetime of nodes' certificates; 0 means
	// enrol.DefaultLifetime.
	NodeCertificates time.Duration
	// MetricsListen is ADDRESS:PORT of /metrics and /healthz; empty: none.
	MetricsListen string
	// ListenGossip is where the API server takes part in the gossip of its
	// cluster, TCP and UDP; members are told it. The zero value: it does not, and
	// says nothing of the nodes' health.
	ListenGossip netip.AddrPort
	// GossipKeyLifetime is how long a gossip key is used; 0 means for ever.
	GossipKeyLifetime time.Duration
	// AdvertiseFederation are host:port of all API servers of the cluster, by
	// which peers dial them; defaults to ListenFederation. "none" alone: peers
	// cannot dial this cluster, it dials them.
	AdvertiseFederation []string

	// PodCIDRs and ServiceCIDRs hold IPv4 ranges, and IPv6 ones too when pods and
	// services are to have addresses of both families.
	PodCIDRs []netip.Prefix
	// PodCIDRSize and PodCIDRSize6 are the lengths of the prefixes that nodes are
	// given out of PodCIDRs, by family; 0 means the default.
	PodCIDRSize, PodCIDRSize6 int
	NodeCIDRs                 []netip.Prefix
	ServiceCIDRs              []netip.Prefix
	// KubeAPIServers are where the cluster's Kubernetes API servers are, whom policies
	// call kube-apiserver.
	KubeAPIServers []netip.Prefix
	TunnelPort     uint16

	// Replica names this API server among those of the cluster; it is the same
	// after a restart.
	Replica string
	// StaleAfter is the age past which a peer's data is the last resort.
	StaleAfter time.Duration
	// ExpireAfter is how long the data of a peer that cannot be reached is
	// believed, and ours by it; 0 means for ever.
	ExpireAfter time.Duration
	// IdentityGCInterval is the time between passes of the identity collector:
	// what is unused in two of them is deleted.
	IdentityGCInterval time.Duration
	// DepartedAfter is how long nothing has shown that a node is there before its
	// keys are removed, and that a key has no owner; 0 means DefaultDepartedAfter.
	DepartedAfter time.Duration

	Etcd EtcdConfig

	// UnsafeNoFsync trades durability for speed: for labs and tests.
	UnsafeNoFsync bool

	Log *slog.Logger
}

// Defaults.
const (
	DefaultPodCIDRSize    = 24
	DefaultPodCIDRSize6   = 64
	DefaultTunnelPort     = tunnel.DefaultVXLANPort
	DefaultEtcdPort       = 2379
	DefaultFederationPort = 4243
	DefaultStaleAfter     = 5 * time.Minute
	DefaultExpireAfter    = 24 * time.Hour
	DefaultReplica        = "0"
	DefaultDepartedAfter  = 15 * time.Minute
	DefaultAPIPort        = 4244
	DefaultGossipPort     = liveness.GossipPort
	DefaultGossipKey      = 30 * 24 * time.Hour
	// DefaultMetrics is where an API server's metrics are served.
	DefaultMetrics = "127.0.0.1:9963"
)

// minNodeCertificates leaves an hour and more to renew in.
const minNodeCertificates = 4 * time.Hour

// minGossipKey leaves nodes a few seconds to take each step of a new key.
const minGossipKey = 10 * time.Second

// Validate says what is wrong, all problems joined.
func (c *Config) Validate() error {
	var errs []error
	if err := kvstore.ValidateClusterName(c.Cluster); err != nil {
		errs = append(errs, fmt.Errorf("--cluster: %w", err))
	}
	space, err := identity.NewSpace(c.ClusterBits)
	if err != nil {
		errs = append(errs, fmt.Errorf("--cluster-bits: %w", err))
	} else if c.ClusterID == 0 || c.ClusterID > space.MaxCluster() {
		errs = append(errs, fmt.Errorf("--cluster-id %d: must be 1 to %d", c.ClusterID, space.MaxCluster()))
	}
	for flag, value := range map[string]string{"--data-dir": c.DataDir, "--socket": c.Socket} {
		if !filepath.IsAbs(value) {
			errs = append(errs, fmt.Errorf("%s %q: must be an absolute path", flag, value))
		}
	}
	if c.PeersFile != "" && c.Etcd.Shared {
		errs = append(errs, errors.New("--peers-file: the clusters of a shared etcd see each other without; leave it out"))
	}
	if !c.ListenFederation.IsValid() {
		errs = append(errs, errors.New("--listen-federation: must be ADDRESS:PORT"))
	}
	errs = append(errs, c.Etcd.validate(c.ListenEtcd)...)
	if c.ListenAPI.IsValid() && c.ListenAPI.Addr().IsUnspecified() && c.AdvertiseAPI == "" {
		errs = append(errs, fmt.Errorf("--advertise-api: needed, as nodes cannot dial %s", c.ListenAPI))
	}
	if c.MetricsListen != "" {
		if _, err := netip.ParseAddrPort(c.MetricsListen); err != nil {
			errs = append(errs, fmt.Errorf("--metrics-listen %q: must be ADDRESS:PORT", c.MetricsListen))
		}
	}
	if c.NodeCertificates < 0 || c.NodeCertificates > 0 && c.NodeCertificates < minNodeCertificates {
		errs = append(errs, fmt.Errorf("--node-certificates %s: must be at least %s", c.NodeCertificates, minNodeCertificates))
	}
	if g := c.ListenGossip; g.IsValid() && (g.Addr().IsUnspecified() || g.Port() == 0) {
		errs = append(errs, fmt.Errorf("--listen-gossip %s: give the address and port at which nodes reach this API server, or none", g))
	}
	if c.GossipKeyLifetime < 0 || c.GossipKeyLifetime > 0 && c.GossipKeyLifetime < minGossipKey {
		errs = append(errs, fmt.Errorf("--gossip-key-lifetime %s: must be at least %s; 0 means for ever", c.GossipKeyLifetime, minGossipKey))
	}
	errs = append(errs, validatePrefixes("--pod-cidr", c.PodCIDRs, true)...)
	errs = append(errs, validatePrefixes("--node-cidr", c.NodeCIDRs, true)...)
	errs = append(errs, validatePrefixes("--service-cidr", c.ServiceCIDRs, true)...)
	errs = append(errs, validatePrefixes("--kube-apiserver-address", c.KubeAPIServers, false)...)
	if n := len(c.KubeAPIServers); n > kvstore.MaxKubeAPIServers {
		errs = append(errs, fmt.Errorf("--kube-apiserver-address: %d addresses; at most %d are possible, so give prefixes", n, kvstore.MaxKubeAPIServers))
	}
	errs = append(errs, c.validateFamilies()...)
	errs = append(errs, overlaps(c)...)
	if c.Replica == "" || strings.Contains(c.Replica, "/") {
		errs = append(errs, fmt.Errorf("--replica %q: must be a name without '/'", c.Replica))
	}
	errs = append(errs, c.validateAges()...)
	if len(c.AdvertiseFederation) > 0 {
		if err := peering.CheckEndpoints(c.advertised()); err != nil {
			errs = append(errs, fmt.Errorf("--advertise-federation: %w", err))
		}
	}
	if c.IdentityGCInterval <= 0 {
		errs = append(errs, fmt.Errorf("--identity-gc-interval %s: must be above 0", c.IdentityGCInterval))
	}
	if d := c.departedAfter(); d < minDepartedAfter {
		errs = append(errs, fmt.Errorf("--departed-after %s: must be at least %s", d, minDepartedAfter))
	}
	if c.TunnelPort == 0 {
		errs = append(errs, errors.New("--tunnel-port: must not be 0"))
	}
	return errors.Join(errs...)
}

func (c *Config) departedAfter() time.Duration { return cmp.Or(c.DepartedAfter, DefaultDepartedAfter) }

func (c *Config) validateAges() []error {
	var errs []error
	if c.StaleAfter <= 0 {
		errs = append(errs, fmt.Errorf("--stale-after %s: must be above 0", c.StaleAfter))
	}
	if c.ExpireAfter < 0 {
		errs = append(errs, fmt.Errorf("--expire-after %s: must not be negative; 0 means never", c.ExpireAfter))
	}
	return errs
}

// notDialled is --advertise-federation of a cluster that peers cannot dial.
const notDialled = "none"

// advertised are host:port for peers.
func (c *Config) advertised() []string {
	switch {
	case len(c.AdvertiseFederation) == 1 && c.AdvertiseFederation[0] == notDialled:
		return nil
	case len(c.AdvertiseFederation) > 0:
		return c.AdvertiseFederation
	}
	return []string{c.ListenFederation.String()}
}

// advertisedAPI is host:port for nodes; empty when there is no API port.
func (c *Config) advertisedAPI() string {
	switch {
	case !c.ListenAPI.IsValid():
		return ""
	case c.AdvertiseAPI != "":
		return c.AdvertiseAPI
	}
	return c.ListenAPI.String()
}

// record is what this cluster tells the mesh about itself.
func (c *Config) record() *keyspacev1.Cluster {
	return &keyspacev1.Cluster{
		Name:         c.Cluster,
		Id:           c.ClusterID,
		PodCidrs:     texts(c.PodCIDRs),
		NodeCidrs:    texts(c.NodeCIDRs),
		ServiceCidrs: texts(c.ServiceCIDRs),

		KubeApiservers: texts(c.KubeAPIServers),
		Mesh: &keyspacev1.MeshParameters{
			ClusterBits:    c.ClusterBits,
			TunnelProtocol: "vxlan",
			TunnelPort:     uint32(c.TunnelPort),
			Encryption:     "off",
		},
		Endpoints: c.advertised(),
		Version:   version.String(),
	}
}

func texts[T fmt.Stringer](in []T) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return out
}
