// SPDX-License-Identifier: Apache-2.0

// Package bpfmap is `hawser map`: the eBPF maps of a node.
package bpfmap

import (
	"fmt"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "map", Short: "See the eBPF maps of a node"}
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the maps of a node with how full they are",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return list(cmd, s) },
	})
	return cmd
}

func list(cmd *cobra.Command, s *session.Session) error {
	type row = *hawserv1.Map
	r, err := session.AskNode(cmd.Context(), s, hawserv1.NodeClient.ListMaps, &hawserv1.ListMapsRequest{})
	if err != nil {
		return err
	}
	return printer.List(cmd.OutOrStdout(), s.Output, r.GetMaps(), printer.Columns[row]{
		{Header: "MAP", Cell: row.GetName},
		{Header: "TYPE", Cell: row.GetType},
		{Header: "ID", Cell: func(m row) string { return fmt.Sprint(m.GetId()) }},
		{Header: "KEY", Cell: func(m row) string { return fmt.Sprintf("%d B", m.GetKeySize()) }},
		{Header: "VALUE", Cell: func(m row) string { return fmt.Sprintf("%d B", m.GetValueSize()) }},
		{Header: "ENTRIES", Cell: func(m row) string {
			return fmt.Sprintf("%s of %s", printer.Count(m.GetEntries()), printer.Count(m.GetMaxEntries()))
		}},
		{Header: "MEMORY", Cell: func(m row) string { return printer.Bytes(m.GetMemoryBytes()) }},
	}, "No maps.")
}
