// SPDX-License-Identifier: Apache-2.0

// Package vtep is `hawser vtep`: which tunnel endpoint serves which prefix.
package vtep

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "vtep", Short: "See the tunnel endpoints of the mesh, and declare external ones"}
	cmd.AddCommand(newAdd(s), newDelete(s))
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List which prefix is reached through which tunnel endpoint",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return list(cmd, s) },
	})
	return cmd
}

func list(cmd *cobra.Command, s *session.Session) error {
	r, err := session.Ask(cmd.Context(), s, hawserv1.MeshClient.ListVTEPs, &hawserv1.ListVTEPsRequest{})
	if err != nil {
		return err
	}
	type row = *hawserv1.VTEPInfo
	return printer.List(cmd.OutOrStdout(), s.Output, r.GetVteps(), printer.Columns[row]{
		{Header: "PREFIX", Cell: row.GetPrefix},
		{Header: "TUNNEL", Cell: row.GetTunnelAddress},
		{Header: "CLUSTER", Cell: row.GetCluster},
		{Header: "NODE", Cell: func(v row) string { return cmp.Or(v.GetNode(), "external") }},
		{Header: "MAC", Cell: func(v row) string { return cmp.Or(v.GetMac(), "-") }},
		{Header: "VNI", Cell: func(v row) string {
			if !v.GetExternal() {
				return "-"
			}
			return fmt.Sprint(v.GetVni())
		}},
	}, "No tunnel endpoints.")
}
