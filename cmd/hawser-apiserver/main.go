// SPDX-License-Identifier: Apache-2.0

// Hawser-apiserver is the mesh API server of a cluster.
package main

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/program"
	"github.com/hawser-mesh/hawser/internal/version"
)

func main() {
	root := &cobra.Command{
		Use:          "hawser-apiserver",
		Short:        "The mesh API server of a cluster",
		Version:      version.String(),
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(newRun(), newIssue())
	os.Exit(program.Main(root))
}

func newRun() *cobra.Command {
	var opts program.Options
	var cfg apiserver.Config
	var etcd, federation, api string
	var pods, nodes, services []string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the API server: etcd, federation, cluster API",
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := opts.Logger(os.Stderr)
			if err != nil {
				return err
			}
			cfg.Log = log
			for _, p := range []struct {
				flag string
				text []string
				to   *[]netip.Prefix
			}{{"pod-cidr", pods, &cfg.PodCIDRs}, {"node-cidr", nodes, &cfg.NodeCIDRs}, {"service-cidr", services, &cfg.ServiceCIDRs}} {
				for _, t := range p.text {
					prefix, err := netip.ParsePrefix(t)
					if err != nil {
						return fmt.Errorf("--%s %q: must be a prefix like 10.1.0.0/16", p.flag, t)
					}
					*p.to = append(*p.to, prefix)
				}
			}
			// What does not parse stays invalid, and Validate names the flag.
			cfg.ListenEtcd, _ = netip.ParseAddrPort(etcd)
			cfg.ListenFederation, _ = netip.ParseAddrPort(federation)
			if api != "" {
				if cfg.ListenAPI, err = netip.ParseAddrPort(api); err != nil {
					return fmt.Errorf("--listen-api %q: must be ADDRESS:PORT", api)
				}
			}
			return apiserver.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Cluster, "cluster", "", "name of this cluster")
	f.Uint32Var(&cfg.ClusterID, "cluster-id", 0, "number of this cluster, unique in the mesh, from 1")
	f.Uint32Var(&cfg.ClusterBits, "cluster-bits", identity.DefaultClusterBits, "bits of an identity that name the cluster (8, 9 or 10), the same in the whole mesh")
	f.StringVar(&cfg.DataDir, "data-dir", "/var/lib/hawser", "directory of the CA and etcd's data")
	f.StringVar(&cfg.Socket, "socket", "/run/hawser/apiserver.sock", "unix socket of the cluster API")
	f.StringVar(&etcd, "listen-etcd", "", "ADDRESS:PORT on which agents reach etcd")
	f.StringVar(&federation, "listen-federation", "", "ADDRESS:PORT on which peers reach this cluster")
	f.StringVar(&cfg.AdvertiseFederation, "advertise-federation", "", "HOST:PORT by which peers dial this cluster (default: --listen-federation)")
	f.StringVar(&api, "listen-api", "", "ADDRESS:PORT on which nodes enrol and administrators call; by custom port 4244 (default: no such port)")
	f.StringVar(&cfg.AdvertiseAPI, "advertise-api", "", "HOST:PORT by which nodes dial it (default: --listen-api)")
	f.DurationVar(&cfg.NodeCertificates, "node-certificates", enrol.DefaultLifetime, "lifetime of nodes' certificates; they renew themselves at two thirds of it")
	f.StringVar(&cfg.MetricsListen, "metrics-listen", apiserver.DefaultMetrics, "ADDRESS:PORT of /metrics and /healthz; empty for none")
	f.StringSliceVar(&pods, "pod-cidr", nil, "pod ranges of the cluster")
	f.StringSliceVar(&nodes, "node-cidr", nil, "node ranges of the cluster: node and tunnel addresses")
	f.StringSliceVar(&services, "service-cidr", nil, "ranges of which services get their addresses")
	f.Uint16Var(&cfg.TunnelPort, "tunnel-port", apiserver.DefaultTunnelPort, "UDP port of VXLAN, the same in the whole mesh")
	f.StringVar(&cfg.Replica, "replica", apiserver.DefaultReplica, "name of this API server among those of its cluster; the same after a restart")
	f.DurationVar(&cfg.ExpireAfter, "expire-after", apiserver.DefaultExpireAfter, "how long the data of an unreachable peer is believed, and a freed identity number stays retired (0: for ever)")
	f.DurationVar(&cfg.IdentityGCInterval, "identity-gc-interval", collector.DefaultInterval, "time between passes of the identity collector; a number unused in two of them is retired")
	f.BoolVar(&cfg.UnsafeNoFsync, "unsafe-no-fsync", false, "do not wait for the disk; a power loss loses data (labs and tests)")
	opts.Bind(cmd, "HAWSER_APISERVER")
	return cmd
}

func newIssue() *cobra.Command {
	var dataDir, agent, admin, out string
	cmd := &cobra.Command{
		Use:   "issue (--agent NODE | --admin USER) --out DIR",
		Short: "Issue a certificate of this cluster's CA to a node or an administrator",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			role, name := pki.RoleAgent, agent
			if agent == "" {
				role, name = pki.RoleAdmin, admin
			}
			return apiserver.Issue(dataDir, role, name, out, time.Now())
		},
	}
	f := cmd.Flags()
	f.StringVar(&dataDir, "data-dir", "/var/lib/hawser", "the API server's data directory")
	f.StringVar(&agent, "agent", "", "node to issue the certificate to")
	f.StringVar(&admin, "admin", "", "administrator to issue the certificate to")
	f.StringVar(&out, "out", "", "directory for ca.crt, tls.crt and tls.key")
	cmd.MarkFlagsOneRequired("agent", "admin")
	cmd.MarkFlagsMutuallyExclusive("agent", "admin")
	_ = cmd.MarkFlagRequired("out")
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	return cmd
}
