// SPDX-License-Identifier: Apache-2.0

// Package node is `hawser node`: the nodes of the mesh.
package node

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "See the nodes of the mesh"}
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the nodes of all clusters",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return list(cmd, s) },
	})
	return cmd
}

func list(cmd *cobra.Command, s *session.Session) error {
	client, conn, err := s.Mesh()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(cmd.Context())
	defer cancel()
	r, err := client.ListNodes(ctx, &hawserv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	type row = *hawserv1.NodeInfo
	return printer.List(cmd.OutOrStdout(), s.Output, r.GetNodes(), printer.Columns[row]{
		{Header: "CLUSTER", Cell: row.GetCluster},
		{Header: "NODE", Cell: row.GetName},
		{Header: "STATE", Cell: row.GetState},
		{Header: "ADDRESSES", Cell: func(n row) string { return strings.Join(n.GetAddresses(), ",") }},
		{Header: "TUNNEL", Cell: row.GetTunnelAddress},
		{Header: "POD CIDRS", Cell: func(n row) string { return strings.Join(n.GetPodCidrs(), ",") }},
		{Header: "MTU", Cell: func(n row) string { return fmt.Sprint(n.GetMtu()) }},
		{Header: "WORKLOADS", Cell: func(n row) string { return fmt.Sprint(n.GetWorkloads()) }},
		{Header: "VERSION", Cell: row.GetVersion},
	}, "No nodes.")
}
