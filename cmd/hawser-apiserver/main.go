// SPDX-License-Identifier: Apache-2.0

// Hawser-apiserver is the mesh API server of a cluster.
package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/clustermesh/apiserver"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/program"
	"github.com/hawser-mesh/hawser/internal/version"
)

func main() { os.Exit(program.Main(newRoot())) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:          "hawser-apiserver",
		Short:        "The mesh API server of a cluster",
		Version:      version.String(),
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(newRun(), newIssue(), newCA(), newMember(), newRestore(), newEtcdAccess(), newSharedEtcd())
	return root
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
