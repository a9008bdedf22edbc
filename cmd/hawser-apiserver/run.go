// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/internal/program"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// settings are the flags of an API server, which the commands on a stopped one
// share with run.
type settings struct {
	opts                  program.Options
	cfg                   apiserver.Config
	etcd, federation, api string
	gossip                string
	pods, nodes, services []string
	members, kube         []string
	quota, snapshots      string
}

func (s *settings) bind(cmd *cobra.Command) {
	f, cfg := cmd.Flags(), &s.cfg
	f.StringVar(&cfg.Cluster, "cluster", "", "name of this cluster")
	f.Uint32Var(&cfg.ClusterID, "cluster-id", 0, "number of this cluster, unique in the mesh, from 1")
	f.Uint32Var(&cfg.ClusterBits, "cluster-bits", identity.DefaultClusterBits, "bits of an identity that name the cluster (8, 9 or 10), the same in the whole mesh")
	f.StringVar(&cfg.DataDir, "data-dir", "/var/lib/hawser", "directory of the CA and etcd's data")
	f.StringVar(&cfg.Socket, "socket", "/run/hawser/apiserver.sock", "unix socket of the cluster API")
	f.StringVar(&s.etcd, "listen-etcd", "", "ADDRESS:PORT on which agents reach the embedded etcd")
	f.StringVar(&s.federation, "listen-federation", "", "ADDRESS:PORT on which peers reach this cluster")
	f.StringVar(&cfg.PeersFile, "peers-file", "", "file with manifests of kind Peer; peers are kept as it says, and it is read again when it changes")
	f.StringSliceVar(&cfg.AdvertiseFederation, "advertise-federation", nil, "HOST:PORT of all API servers of this cluster, by which peers dial them; none: peers cannot, it dials them (default: --listen-federation)")
	f.StringVar(&s.api, "listen-api", "", "ADDRESS:PORT on which nodes enrol and administrators call; by custom port 4244 (default: no such port)")
	f.StringVar(&cfg.AdvertiseAPI, "advertise-api", "", "HOST:PORT by which nodes dial it (default: --listen-api)")
	f.DurationVar(&cfg.NodeCertificates, "node-certificates", enrol.DefaultLifetime, "lifetime of nodes' certificates; they renew themselves at two thirds of it")
	f.StringVar(&s.gossip, "listen-gossip", "", "ADDRESS:PORT, TCP and UDP, at which this API server hears which agents of the cluster run, or none (default: port 7946 at the address of --listen-federation)")
	f.DurationVar(&cfg.GossipKeyLifetime, "gossip-key-lifetime", apiserver.DefaultGossipKey, "how long a key that encrypts gossip is used; 0: for ever")
	f.StringVar(&cfg.MetricsListen, "metrics-listen", apiserver.DefaultMetrics, "ADDRESS:PORT of /metrics and /healthz; empty for none")
	f.StringSliceVar(&s.pods, "pod-cidr", nil, "pod ranges of the cluster; with an IPv6 range too, pods have addresses of both families")
	f.IntVar(&cfg.PodCIDRSize, "pod-cidr-size", apiserver.DefaultPodCIDRSize, "prefix length of what an agent without --pod-cidr is given out of the IPv4 ranges")
	f.IntVar(&cfg.PodCIDRSize6, "pod-cidr-size-ipv6", apiserver.DefaultPodCIDRSize6, "the same for the IPv6 ranges")
	f.StringSliceVar(&s.nodes, "node-cidr", nil, "node ranges of the cluster: node and tunnel addresses")
	f.StringSliceVar(&s.services, "service-cidr", nil, "ranges of which services get their addresses; with an IPv6 range too, addresses of both families")
	f.StringSliceVar(&s.kube, "kube-apiserver-address", nil, "addresses, or prefixes, of the Kubernetes API servers of this cluster, whom policies call kube-apiserver")
	f.Uint16Var(&cfg.TunnelPort, "tunnel-port", apiserver.DefaultTunnelPort, "UDP port of VXLAN, the same in the whole mesh")
	f.StringVar(&cfg.Replica, "replica", apiserver.DefaultReplica, "name of this API server among those of its cluster; the same after a restart")
	f.DurationVar(&cfg.StaleAfter, "stale-after", apiserver.DefaultStaleAfter, "age past which the data of an unreachable peer is the last resort; by peer: hawser mesh set")
	f.DurationVar(&cfg.ExpireAfter, "expire-after", apiserver.DefaultExpireAfter, "how long the data of an unreachable peer is believed, and a freed identity number stays retired (0: for ever); by peer: hawser mesh set")
	f.DurationVar(&cfg.IdentityGCInterval, "identity-gc-interval", collector.DefaultInterval, "time between passes of the identity collector; a number unused in two of them is retired")
	f.DurationVar(&cfg.DepartedAfter, "departed-after", apiserver.DefaultDepartedAfter, "how long neither presence, gossip nor path probes have shown a node before its keys are removed, and how long a key may be without an owner")
	f.BoolVar(&cfg.UnsafeNoFsync, "unsafe-no-fsync", false, "do not wait for the disk; a power loss loses data (labs and tests)")
	s.bindEtcd(cmd)
	s.opts.Bind(cmd, "HAWSER_APISERVER")
}

func (s *settings) bindEtcd(cmd *cobra.Command) {
	f, e := cmd.Flags(), &s.cfg.Etcd
	f.StringSliceVar(&e.Endpoints, "etcd-endpoint", nil, "https://ADDRESS:PORT of an external etcd, instead of the embedded one")
	f.StringVar(&e.TLSDir, "etcd-tls-dir", "", "directory with ca.crt, tls.crt and tls.key for the external etcd, common name CLUSTER-apiserver")
	f.BoolVar(&e.Shared, "shared-etcd", false, "other clusters keep their keys in the same external etcd: nothing is mirrored")
	f.StringSliceVar(&s.members, "etcd-member", nil, "NAME=CLIENT_ADDRESS:PORT/PEER_ADDRESS:PORT of each member of an embedded etcd of three; --replica names this one")
	f.StringVar(&s.quota, "etcd-quota", "8Gi", "size of the embedded etcd's database at which writes are refused (bytes, Mi or Gi)")
	f.DurationVar(&e.History, "etcd-history", etcd.DefaultHistory, "how long a cut-off agent or peer can resume instead of listing all again")
	f.StringVar(&s.snapshots, "snapshot-dir", "", "directory of the embedded etcd's snapshots, or none (default: DATA_DIR/snapshots)")
	f.DurationVar(&e.SnapshotEvery, "snapshot-interval", etcd.DefaultSnapshotEvery, "time between snapshots")
	f.IntVar(&e.SnapshotKeep, "snapshot-keep", etcd.DefaultSnapshotKeep, "number of snapshots kept")
}

// config is what the flags say, not validated.
func (s *settings) config() (apiserver.Config, error) {
	log, err := s.opts.Logger(os.Stderr)
	if err != nil {
		return s.cfg, err
	}
	cfg := s.cfg
	cfg.Log = log
	for _, p := range []struct {
		flag string
		text []string
		to   *[]netip.Prefix
	}{{"pod-cidr", s.pods, &cfg.PodCIDRs}, {"node-cidr", s.nodes, &cfg.NodeCIDRs}, {"service-cidr", s.services, &cfg.ServiceCIDRs}} {
		for _, t := range p.text {
			prefix, err := netip.ParsePrefix(t)
			if err != nil {
				return cfg, fmt.Errorf("--%s %q: must be a prefix like 10.1.0.0/16", p.flag, t)
			}
			*p.to = append(*p.to, prefix)
		}
	}
	for _, t := range s.kube {
		prefix, err := netip.ParsePrefix(t)
		if a, aerr := netip.ParseAddr(t); aerr == nil {
			prefix, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return cfg, fmt.Errorf("--kube-apiserver-address %q: must be an address, or a prefix like 192.0.2.16/28", t)
		}
		cfg.KubeAPIServers = append(cfg.KubeAPIServers, prefix)
	}
	for _, m := range s.members {
		member, err := etcd.ParseMember(m)
		if err != nil {
			return cfg, fmt.Errorf("--etcd-member: %w", err)
		}
		cfg.Etcd.Members = append(cfg.Etcd.Members, member)
		if member.Name == cfg.Replica && s.etcd == "" {
			s.etcd = member.Client.String()
		}
	}
	if cfg.Etcd.Quota, err = size(s.quota); err != nil {
		return cfg, fmt.Errorf("--etcd-quota %w", err)
	}
	switch s.snapshots {
	case "":
		cfg.Etcd.SnapshotDir = filepath.Join(cfg.DataDir, "snapshots")
	case "none":
	default:
		cfg.Etcd.SnapshotDir = s.snapshots
	}
	// What does not parse stays invalid, and Validate names the flag.
	cfg.ListenEtcd, _ = netip.ParseAddrPort(s.etcd)
	cfg.ListenFederation, _ = netip.ParseAddrPort(s.federation)
	switch s.gossip {
	case "":
		if a := cfg.ListenFederation.Addr(); a.IsValid() && !a.IsUnspecified() {
			cfg.ListenGossip = netip.AddrPortFrom(a, apiserver.DefaultGossipPort)
		}
	case "none":
	default:
		if cfg.ListenGossip, err = netip.ParseAddrPort(s.gossip); err != nil {
			return cfg, fmt.Errorf("--listen-gossip %q: must be ADDRESS:PORT or none", s.gossip)
		}
	}
	if s.api != "" {
		if cfg.ListenAPI, err = netip.ParseAddrPort(s.api); err != nil {
			return cfg, fmt.Errorf("--listen-api %q: must be ADDRESS:PORT", s.api)
		}
	}
	return cfg, nil
}

// size reads bytes, or mebibytes or gibibytes with a suffix.
func size(text string) (int64, error) {
	number, factor := text, int64(1)
	for suffix, f := range map[string]int64{"Mi": 1 << 20, "Gi": 1 << 30} {
		if n, ok := strings.CutSuffix(text, suffix); ok {
			number, factor = n, f
		}
	}
	n, err := strconv.ParseInt(number, 10, 40)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q: must be a number of bytes, or one with Mi or Gi", text)
	}
	return n * factor, nil
}

func newRun() *cobra.Command {
	s := &settings{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the API server: etcd, federation, cluster API",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.config()
			if err != nil {
				return err
			}
			return apiserver.Run(cmd.Context(), cfg)
		},
	}
	s.bind(cmd)
	return cmd
}
