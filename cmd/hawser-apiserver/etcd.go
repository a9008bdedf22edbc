// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

func newCA() *cobra.Command {
	var dataDir, cluster string
	cmd := &cobra.Command{
		Use:   "ca --cluster NAME",
		Short: "Make the cluster's CA, for copying it to every replica before the first start",
		Long: "Make the cluster's CA, for copying it to every replica before the first start: the\n" +
			"files DATA_DIR/pki/ca.crt and ca.key. A single API server makes it itself. An\n" +
			"existing CA stays.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return apiserver.MakeCA(dataDir, cluster, time.Now()) },
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "/var/lib/hawser", "the API server's data directory")
	cmd.Flags().StringVar(&cluster, "cluster", "", "name of the cluster")
	_ = cmd.MarkFlagRequired("cluster")
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	return cmd
}

func newMember() *cobra.Command {
	member := &cobra.Command{Use: "member", Short: "Care for the members of an embedded etcd of three"}
	s := &settings{}
	replace := &cobra.Command{
		Use:   "replace",
		Short: "Make a place for this replica's etcd among the other members",
		Long: "Make a place for this replica's etcd among the other members, which must run, in the\n" +
			"stead of the one of its name: when its data is lost or its host is new, and after a\n" +
			"restore. Its API server must be stopped; give the flags or the --config of `run`. What\n" +
			"data it has is set aside. It joins when it is started next.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.config()
			if err != nil {
				return err
			}
			former, err := apiserver.ReplaceMember(cmd.Context(), cfg)
			return told(cmd, err, former, "There is a place for member "+cfg.Replica+" now: start its API server.")
		},
	}
	s.bind(replace)
	member.AddCommand(replace)
	return member
}

func newRestore() *cobra.Command {
	s := &settings{}
	var from string
	cmd := &cobra.Command{
		Use:   "restore --from FILE",
		Short: "Replace the data of the stopped embedded etcd by a snapshot's",
		Long: "Replace the data of the stopped embedded etcd by a snapshot's: one that the API server\n" +
			"took (--snapshot-dir), hawser kvstore backup or etcdctl wrote. Give the flags or the\n" +
			"--config of `run`. The former data is set aside. Of three members this one is the first\n" +
			"of a new store then: all must be stopped before, and the others join it with\n" +
			"`member replace` after it was started.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				return errors.New("--from: name the snapshot")
			}
			cfg, err := s.config()
			if err != nil {
				return err
			}
			former, err := apiserver.RestoreOffline(cmd.Context(), cfg, from)
			next := "Restored: start the API server."
			if len(cfg.Etcd.Members) > 0 {
				next = "Restored as a store of one member: start this API server; then run `hawser-apiserver member replace` at each other replica and start it."
			}
			return told(cmd, err, former, next)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the snapshot")
	s.bind(cmd)
	return cmd
}

// told says where former data is and what comes next.
func told(cmd *cobra.Command, err error, former, next string) error {
	if err != nil {
		return err
	}
	if former != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "The former data is kept in "+former+".")
	}
	_, err = fmt.Fprintln(cmd.ErrOrStderr(), next)
	return err
}

// access is what etcd-access was told.
type access struct {
	cluster, tlsDir, output string
	endpoints               []string
	shared, apply, restored bool
}

func newEtcdAccess() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use:   "etcd-access --cluster NAME",
		Short: "Print or set up a cluster's users and roles in an external or shared etcd",
		Long: "Print the users (the common names of the certificates to issue) that a cluster has in an\n" +
			"external or shared etcd, and what they may read and write. With --apply, set them up and\n" +
			"turn access control on, with a certificate of etcd's root user. Other clusters' users\n" +
			"stay as they are; it can be repeated. With --restored, say after restoring that etcd\n" +
			"from a snapshot, before agents can reach it, that the cluster has another history.",
		Example: "  hawser-apiserver etcd-access --cluster east\n" +
			"  hawser-apiserver etcd-access --cluster east --etcd-endpoint https://10.0.0.5:2379 --etcd-tls-dir /root/etcd --apply",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := kvstore.ValidateClusterName(a.cluster); err != nil {
				return fmt.Errorf("--cluster: %w", err)
			}
			if !a.apply && !a.restored {
				return a.print(cmd)
			}
			return a.do(cmd.Context(), cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&a.cluster, "cluster", "", "name of the cluster")
	f.BoolVar(&a.shared, "shared-etcd", false, "other clusters keep their keys there, too: this one may write its own only")
	f.BoolVar(&a.apply, "apply", false, "set up users and roles")
	f.BoolVar(&a.restored, "restored", false, "give the cluster a new incarnation and remove its markers")
	f.StringSliceVar(&a.endpoints, "etcd-endpoint", nil, "https://ADDRESS:PORT of the etcd")
	f.StringVar(&a.tlsDir, "etcd-tls-dir", "", "directory with ca.crt, tls.crt and tls.key, common name root")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	return cmd
}

func (a access) print(cmd *cobra.Command) error {
	grants := etcd.Grants(a.cluster, a.shared)
	if a.output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(grants)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "USER AND ROLE\tMAY\tBELOW")
	for _, g := range grants {
		may := "read"
		if g.Write {
			may = "read, write"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", g.User, may, g.Prefix)
	}
	return w.Flush()
}

func (a access) do(ctx context.Context, cmd *cobra.Command) error {
	if len(a.endpoints) == 0 || a.tlsDir == "" {
		return errors.New("--etcd-endpoint and --etcd-tls-dir (a certificate of etcd's root user) are needed")
	}
	tls, err := pki.FilesIn(a.tlsDir, "tls").ClientTLS(nil)
	if err != nil {
		return err
	}
	c, err := etcd.NewClient(etcd.ClientConfig{Endpoints: a.endpoints, TLS: tls})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if a.apply {
		if err := etcd.SetupAccess(ctx, c, a.cluster, a.shared); err != nil {
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "Users and roles of "+a.cluster+" are set up, access control is on.")
	}
	if a.restored {
		incarnation, err := store.Reincarnate(ctx, c, a.cluster)
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "Cluster "+a.cluster+" has another history now: incarnation "+incarnation+".")
	}
	return nil
}
