// SPDX-License-Identifier: Apache-2.0

// Package ipcache is `hawser ipcache`: which address has which identity, as a
// node knows it.
package ipcache

import (
	"fmt"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "ipcache", Short: "See which address has which identity"}
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List a node's addresses with identity and tunnel endpoint",
		Long: "List a node's addresses with identity and tunnel endpoint. KERNEL is empty unless the\n" +
			"kernel's maps are full: \"missing\" has found no room there, \"hidden\" holds something\n" +
			"that is missing, so that endpoints with a policy drop what is of it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd, s) },
	})
	return cmd
}

func list(cmd *cobra.Command, s *session.Session) error {
	type row = *hawserv1.IPCacheEntry
	r, err := session.AskNode(cmd.Context(), s, hawserv1.NodeClient.ListIPCache, &hawserv1.ListIPCacheRequest{})
	if err != nil {
		return err
	}
	return printer.List(cmd.OutOrStdout(), s.Output, r.GetEntries(), printer.Columns[row]{
		{Header: "PREFIX", Cell: row.GetPrefix},
		{Header: "IDENTITY", Cell: func(e row) string {
			if e.GetIdentity() == 0 {
				return ""
			}
			return fmt.Sprint(e.GetIdentity())
		}},
		{Header: "TUNNEL", Cell: row.GetTunnelAddress},
		{Header: "CLUSTER", Cell: row.GetCluster},
		{Header: "NODE", Cell: row.GetNode},
		{Header: "WORKLOAD", Cell: row.GetWorkload},
		{Header: "FROM", Cell: row.GetSource},
		{Header: "KERNEL", Cell: row.GetKernel},
	}, "The ipcache is empty.")
}
