// SPDX-License-Identifier: Apache-2.0

// Package agent is the composition root of a node: it makes workloads into
// endpoints, tells the keyspace about them, learns from the keyspace about all
// others, and keeps the node's kernel equal to what it learned.
//
// Start with agent.go, which puts the parts together. Data flows one way: keys
// arrive in view.go and become rows of datapath.Tables; datapath/reconcile
// brings the rows into the kernel; endpoints.go adds this node's own rows, and
// publish.go writes this node's own keys.
package agent

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/hawser-mesh/hawser/agent/dns"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/policy"
)

// Config is what an agent is told. See Validate for the rules.
type Config struct {
	Cluster string
	Node    string

	EtcdEndpoints []string
	// TLSDir holds ca.crt, tls.crt and tls.key of this node, and its enrolment.
	TLSDir string
	// EtcdTLSDir holds the same for an external etcd, from its own CA; empty
	// means that etcd is the API server's.
	EtcdTLSDir string
	// SharedEtcd says that other clusters write their records to the same etcd
	// themselves: they are judged here by what they are granted.
	SharedEtcd bool
	// Join is a token by which the node enrols, or @ and the path of a file
	// with it; what the enrolment says need not be told again. A node that has
	// enrolled by it before ignores it.
	Join string

	UnderlayDevice string
	NodeAddress    netip.Addr // also the tunnel address
	// PodCIDR and PodCIDR6 are the ranges of the node's pods. Without PodCIDR the
	// cluster gives the node a range of each family that it has; without PodCIDR6
	// alone, pods have no IPv6 addresses.
	PodCIDR, PodCIDR6 netip.Prefix
	TunnelPort        uint16 // 0: as enrolled, or the default
	// TunnelDatapath is how the tunnel's headers are made: TunnelAuto, TunnelNetdev
	// or TunnelEBPF; empty is TunnelAuto.
	TunnelDatapath string
	// given are PodCIDR and PodCIDR6 when the cluster gave them, and for whom.
	given given

	StateDir string // endpoints that survive a restart
	Socket   string // unix socket of the node API
	PinPath  string // directory in a bpffs for this agent's pins; empty: the default
	// Attach is how programs are put on devices: tcx, clsact, or empty for the
	// better one that the kernel has.
	Attach string
	// KeepPodAddresses lets pods reach the outside with their own addresses
	// instead of the node's.
	KeepPodAddresses bool
	// CgroupRoot is the cgroup2 directory whose processes, this node's and its
	// pods', have services balanced at their sockets; CgroupAuto is the root of
	// all, CgroupOff none. Empty is CgroupAuto.
	CgroupRoot string
	// SmallMaps sizes the maps for labs and tests.
	SmallMaps   bool
	ClusterBits uint32 // as the cluster's API server was told; 0: as enrolled, or the default

	// MetricsListen is ADDRESS:PORT of /metrics and /healthz; empty: none.
	MetricsListen string

	// DNSListen is ADDRESS:PORT of the name server; empty: port 53 of the node's
	// address; DNSOff: none.
	DNSListen string
	// DNSUpstreams are ADDRESS or ADDRESS:PORT of the resolvers that answer for
	// names outside the mesh; none: those of the host's resolv.conf.
	DNSUpstreams []string

	// PolicyScope and PolicyMode are ScopeLocal and ModeDefault when empty.
	PolicyScope policy.Scope
	PolicyMode  policy.Mode
	// PolicyAudit has what policy would drop reported, and passed, on the whole
	// node.
	PolicyAudit bool

	Zone, Region string

	// Labels says which labels of a workload are part of its identity, in the
	// rules of labels.ParseFilter; empty means the defaults.
	Labels []string

	Log *slog.Logger
}

// DefaultMetrics is where an agent's metrics are served.
const DefaultMetrics = "127.0.0.1:9962"

// DNSOff as DNSListen means that the node answers no names.
const DNSOff = "off"

// parseUpstream reads an address with or without a port.
func parseUpstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, dns.Port), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return ap, fmt.Errorf("--dns-upstream %q: must be ADDRESS or ADDRESS:PORT", s)
	}
	return ap, nil
}

// Validate says what is wrong, all problems joined.
func (c *Config) Validate() error {
	var errs []error
	if err := kvstore.ValidateClusterName(c.Cluster); err != nil {
		errs = append(errs, fmt.Errorf("--cluster: %w", err))
	}
	if err := (pki.ID{Cluster: "x", Role: pki.RoleAgent, Name: c.Node}).Validate(); err != nil {
		errs = append(errs, fmt.Errorf("--node: %w", err))
	}
	if len(c.EtcdEndpoints) == 0 {
		errs = append(errs, errors.New("--etcd-endpoint: at least one is needed; a node that enrols by --join is told"))
	}
	if c.UnderlayDevice == "" {
		errs = append(errs, errors.New("--underlay-device: name the device that connects the nodes, for example eth0"))
	}
	if !c.NodeAddress.Is4() {
		errs = append(errs, fmt.Errorf("--node-address %q: must be an IPv4 address of the underlay device", c.NodeAddress))
	}
	errs = append(errs, c.validatePodCIDRs()...)
	if _, err := identity.NewSpace(c.ClusterBits); err != nil {
		errs = append(errs, fmt.Errorf("--cluster-bits: %w", err))
	}
	if _, err := labels.ParseFilter(c.Labels); err != nil {
		errs = append(errs, fmt.Errorf("--labels: %w", err))
	}
	if _, err := policy.New(policy.Config{Cluster: "x", Scope: c.PolicyScope, Mode: c.PolicyMode}); err != nil {
		errs = append(errs, fmt.Errorf("--policy-default-scope, --policy-enforcement: %w", err))
	}
	if c.MetricsListen != "" {
		if _, err := netip.ParseAddrPort(c.MetricsListen); err != nil {
			errs = append(errs, fmt.Errorf("--metrics-listen %q: must be ADDRESS:PORT", c.MetricsListen))
		}
	}
	if c.DNSListen != "" && c.DNSListen != DNSOff {
		if _, err := netip.ParseAddrPort(c.DNSListen); err != nil {
			errs = append(errs, fmt.Errorf("--dns-listen %q: must be ADDRESS:PORT, or %s", c.DNSListen, DNSOff))
		}
	}
	for _, u := range c.DNSUpstreams {
		if _, err := parseUpstream(u); err != nil {
			errs = append(errs, err)
		}
	}
	if c.TunnelPort == 0 {
		errs = append(errs, errors.New("--tunnel-port: must not be 0"))
	}
	switch c.TunnelDatapath {
	case "", TunnelAuto, TunnelNetdev, TunnelEBPF:
	default:
		errs = append(errs, fmt.Errorf("--tunnel-datapath %q: must be auto, netdev or ebpf", c.TunnelDatapath))
	}
	if root := c.CgroupRoot; root != "" && root != CgroupAuto && root != CgroupOff && !filepath.IsAbs(root) {
		errs = append(errs, fmt.Errorf("--cgroup-root %q: must be auto, off or an absolute path", c.CgroupRoot))
	}
	if c.EtcdTLSDir != "" && !filepath.IsAbs(c.EtcdTLSDir) {
		errs = append(errs, fmt.Errorf("--etcd-tls-dir %q: must be an absolute path", c.EtcdTLSDir))
	}
	if c.SharedEtcd && c.EtcdTLSDir == "" {
		errs = append(errs, errors.New("--shared-etcd: an etcd that clusters share has its own CA: give --etcd-tls-dir"))
	}
	for flag, value := range map[string]string{
		"--state-dir": c.StateDir, "--socket": c.Socket, "--pin-path": c.PinPath, "--tls-dir": c.TLSDir,
	} {
		if !filepath.IsAbs(value) {
			errs = append(errs, fmt.Errorf("%s %q: must be an absolute path", flag, value))
		}
	}
	return errors.Join(errs...)
}

// etcdTLS is how etcd is reached. The API server's own shows who it is; an
// external one is known by its address and its CA.
func (c *Config) etcdTLS() (*tls.Config, error) {
	if c.EtcdTLSDir != "" {
		cfg, err := pki.FilesIn(c.EtcdTLSDir, "tls").ClientTLS(nil)
		if err != nil {
			return nil, fmt.Errorf("--etcd-tls-dir: %w", err)
		}
		return cfg, nil
	}
	cfg, err := pki.FilesIn(c.TLSDir, "tls").ClientTLS(&pki.ID{Cluster: c.Cluster, Role: pki.RoleAPIServer})
	if err != nil {
		return nil, fmt.Errorf("--tls-dir: %w", err)
	}
	return cfg, nil
}
