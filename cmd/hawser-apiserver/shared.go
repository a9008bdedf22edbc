// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/program"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// sharedName is the trust domain of a shared etcd's own CA.
const sharedName = "shared-etcd"

func newSharedEtcd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shared-etcd",
		Short: "Run an etcd for several clusters, and certify them to it",
		Long: "Run an etcd for several clusters, and certify them to it, with a CA of its own. Any\n" +
			"etcd will do instead: see etcd-access.",
	}
	cmd.AddCommand(newSharedRun(), newSharedIssue())
	return cmd
}

func newSharedRun() *cobra.Command {
	var opts program.Options
	var cfg etcd.ServerConfig
	var listen string
	var dataDir string
	cmd := &cobra.Command{
		Use:   "run --cluster NAME --cluster NAME …",
		Short: "Run the etcd",
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := opts.Logger(os.Stderr)
			if err != nil {
				return err
			}
			if len(cfg.Shared) == 0 {
				return errors.New("--cluster: name the clusters that share it")
			}
			cfg.Log = log
			cfg.Listen, _ = netip.ParseAddrPort(listen) // Start names what is missing
			return runShared(cmd.Context(), cfg, dataDir)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&cfg.Shared, "cluster", nil, "the clusters that share it")
	f.StringVar(&dataDir, "data-dir", "/var/lib/hawser-etcd", "directory of the CA, the data and the snapshots")
	f.StringVar(&listen, "listen", "", "ADDRESS:PORT of clients")
	f.BoolVar(&cfg.UnsafeNoFsync, "unsafe-no-fsync", false, "do not wait for the disk; a power loss loses data (labs and tests)")
	opts.Bind(cmd, "HAWSER_ETCD")
	return cmd
}

func runShared(ctx context.Context, cfg etcd.ServerConfig, dataDir string) error {
	now, dir := time.Now(), apiserver.PKIDir(dataDir)
	ca, err := pki.EnsureCA(dir, sharedName, now)
	if err != nil {
		return err
	}
	save := func(r pki.Request, name string) pki.Files {
		leaf, ierr := ca.Issue(r, now)
		if ierr != nil {
			err = errors.Join(err, ierr)
			return pki.Files{}
		}
		files, serr := leaf.Save(dir, name)
		err = errors.Join(err, serr)
		return files
	}
	ips := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if cfg.Listen.IsValid() {
		ips = append(ips, cfg.Listen.Addr())
	}
	cfg.TLS = save(pki.Request{Role: pki.RoleAPIServer, IPs: ips}, "server")
	cfg.Root = save(pki.Request{Role: pki.RoleRoot}, "root")
	if err != nil {
		return err
	}
	cfg.Cluster = sharedName
	cfg.DataDir, cfg.SnapshotDir = filepath.Join(dataDir, "etcd"), filepath.Join(dataDir, "snapshots")
	s, err := etcd.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	cfg.Log.Info("shared etcd is ready", "endpoint", s.Endpoint(), "clusters", cfg.Shared)
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.Err():
		return fmt.Errorf("shared etcd: %w", err)
	}
}

func newSharedIssue() *cobra.Command {
	var dataDir, cluster, agent, admin, out string
	var api bool
	cmd := &cobra.Command{
		Use:   "issue --cluster NAME (--apiserver | --agent NODE | --admin USER) --out DIR",
		Short: "Issue a certificate of the shared etcd's CA to a cluster",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r := pki.Request{Cluster: cluster, Role: pki.RoleAPIServer}
			switch {
			case agent != "":
				r.Role, r.Name = pki.RoleAgent, agent
			case admin != "":
				r.Role, r.Name = pki.RoleAdmin, admin
			}
			ca, err := pki.LoadCA(apiserver.PKIDir(dataDir))
			if err != nil {
				return fmt.Errorf("%w; the CA is made when the shared etcd first starts", err)
			}
			leaf, err := ca.Issue(r, time.Now())
			if err != nil {
				return err
			}
			_, err = leaf.Save(out, "tls")
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dataDir, "data-dir", "/var/lib/hawser-etcd", "the shared etcd's data directory")
	f.StringVar(&cluster, "cluster", "", "the cluster")
	f.BoolVar(&api, "apiserver", false, "issue it to the cluster's API servers")
	f.StringVar(&agent, "agent", "", "node to issue it to")
	f.StringVar(&admin, "admin", "", "administrator to issue it to")
	f.StringVar(&out, "out", "", "directory for ca.crt, tls.crt and tls.key")
	cmd.MarkFlagsOneRequired("apiserver", "agent", "admin")
	cmd.MarkFlagsMutuallyExclusive("apiserver", "agent", "admin")
	for _, flag := range []string{"cluster", "out"} {
		_ = cmd.MarkFlagRequired(flag)
	}
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	return cmd
}
