// SPDX-License-Identifier: Apache-2.0

// Package config is `hawser config`: which mesh the other commands talk to.
package config

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/clicontext"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Choose the mesh that commands talk to"}
	cmd.AddCommand(newShow(s), newUse(s), newAdd(s))
	return cmd
}

func newShow(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show the contexts, where each comes from, and which is in use",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := clicontext.All()
			if err != nil {
				return err
			}
			for _, f := range all {
				if f.Problem != "" {
					s.Warn("%s", f.Problem)
				}
			}
			return printer.Rows(cmd.OutOrStdout(), s.Output, all, printer.Columns[clicontext.Found]{
				{Header: "IN USE", Cell: func(f clicontext.Found) string {
					if f.Current {
						return "yes"
					}
					return ""
				}},
				{Header: "CONTEXT", Cell: func(f clicontext.Found) string { return f.Name }},
				{Header: "CLUSTERS", Cell: clusters},
				{Header: "FROM", Cell: func(f clicontext.Found) string {
					if f.File == "" {
						return "this host's sockets"
					}
					return f.File
				}},
			}, "No contexts.")
		},
	}
}

// clusters is each cluster with where its API server is asked.
func clusters(f clicontext.Found) string {
	if f.Problem != "" {
		return "cannot be read"
	}
	var out []string
	for _, c := range f.Clusters {
		switch {
		case c.Address != "" && c.Socket == "":
			out = append(out, fmt.Sprintf("%s at %s", c.Name, c.Address))
		case c.Name != "":
			out = append(out, c.Name)
		}
	}
	return strings.Join(out, ", ")
}

func newUse(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "use-context <name>",
		Short: `Make a context the current one; "host" is this host`,
		Args:  cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if all, err := clicontext.All(); err == nil {
				for _, f := range all {
					names = append(names, f.Name)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := clicontext.Choose(args[0]); err != nil {
				return &session.Error{Code: session.WrongUse, Err: err}
			}
			return done(cmd, s, "Using %s.  Look in:  hawser status\n", args[0])
		},
	}
}

func newAdd(s *session.Session) *cobra.Command {
	var c clicontext.Cluster
	var e clicontext.Etcd
	cmd := &cobra.Command{
		Use:   "add-context <name> --name CLUSTER --address HOST:PORT --tls-dir DIR",
		Short: "Remember a remote API server as a context",
		Long: "Remember a remote API server, which serves --listen-api, as a context. DIR holds\n" +
			"ca.crt, tls.crt and tls.key of an administrator, made on the API server's host by:\n" +
			"hawser-apiserver issue --admin USER --out DIR\n" +
			"With it `hawser kvstore` reaches an etcd inside the API server, too. One that is\n" +
			"outside has certificates of its own: --etcd-endpoint and --etcd-tls-dir say which.",
		Example: "  hawser config add-context prod --name east --address 10.0.1.2:4244 --tls-dir ./ada\n" +
			"  hawser config add-context prod --name east --address 10.0.1.2:4244 --tls-dir ./ada \\\n" +
			"    --etcd-endpoint https://10.0.9.1:2379 --etcd-tls-dir ./ada-etcd",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if name == "host" || name == "" || strings.HasPrefix(name, ".") || filepath.Base(name) != name {
				return session.Usage("context %q: this name cannot be used", name)
			}
			for _, d := range []*string{&c.TLSDir, &e.TLSDir} {
				abs, err := filepath.Abs(*d)
				if err != nil {
					return err
				}
				if *d != "" {
					*d = abs
				}
			}
			if e != (clicontext.Etcd{}) {
				c.Etcd = &e
			}
			path, err := clicontext.Add(&clicontext.Context{Name: name, Clusters: []clicontext.Cluster{c}})
			if err != nil {
				return &session.Error{Code: session.WrongUse, Err: err}
			}
			return done(cmd, s, "Stored as %s.  Use it:  hawser config use-context %s\n", path, name)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Name, "name", "", "name of the cluster; its API server's certificate must say it")
	f.StringVar(&c.Address, "address", "", "HOST:PORT of its API port")
	f.StringVar(&c.TLSDir, "tls-dir", "", "directory with ca.crt, tls.crt and tls.key")
	f.StringVar(&e.Endpoint, "etcd-endpoint", "", "https://ADDRESS:PORT of an etcd outside the API server, for hawser kvstore")
	f.StringVar(&e.TLSDir, "etcd-tls-dir", "", "directory with ca.crt, tls.crt and tls.key for that etcd, common name CLUSTER-admin")
	for _, required := range []string{"name", "address", "tls-dir"} {
		_ = cmd.MarkFlagRequired(required)
	}
	return cmd
}

func done(cmd *cobra.Command, s *session.Session, format string, args ...any) error {
	if s.Quiet {
		return nil
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), format, args...)
	return err
}
