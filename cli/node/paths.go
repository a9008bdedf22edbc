// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

func newPaths(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "paths",
		Short: "List the other nodes as one node reaches them, and which it passes over",
		Long: "List the other nodes as one node reaches them: what its probes through the tunnel\n" +
			"say, what is known of the agent there, and whether the node chooses backends on\n" +
			"it for new connections. Not every node probes every other.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return paths(cmd, s) },
	}
}

func paths(cmd *cobra.Command, s *session.Session) error {
	type row = *hawserv1.NodePath
	r, err := session.AskNode(cmd.Context(), s, hawserv1.NodeClient.ListPaths, &hawserv1.ListPathsRequest{})
	if err != nil {
		return err
	}
	return printer.List(cmd.OutOrStdout(), s.Output, r.GetPaths(), printer.Columns[row]{
		{Header: "CLUSTER", Cell: row.GetCluster},
		{Header: "NODE", Cell: row.GetNode},
		{Header: "ADDRESS", Cell: row.GetAddress},
		{Header: "PATH", Cell: row.GetPath},
		{Header: "SINCE", Cell: func(p row) string { return printer.Age(p.GetSince()) }},
		{Header: "RTT", Cell: func(p row) string {
			if p.GetRttSeconds() == 0 {
				return ""
			}
			return fmt.Sprintf("%.2f ms", p.GetRttSeconds()*1000)
		}},
		{Header: "MTU", Cell: func(p row) string {
			switch {
			case p.GetMtu() == 0:
				return ""
			case p.GetMtu() < p.GetFullMtu():
				return fmt.Sprintf("%d, not %d", p.GetMtu(), p.GetFullMtu())
			}
			return fmt.Sprint(p.GetMtu())
		}},
		{Header: "ANSWERED", Cell: func(p row) string {
			if p.GetSent() == 0 {
				return ""
			}
			return fmt.Sprintf("%s of %s", printer.Count(p.GetAnswered()), printer.Count(p.GetSent()))
		}},
		{Header: "AGENT", Cell: row.GetProcess},
		{Header: "HEALTH", Cell: row.GetHealth},
		{Header: "BACKENDS", Cell: func(p row) string {
			if p.GetChosen() {
				return "chosen"
			}
			return "passed over: " + p.GetWhy()
		}},
	}, "No other nodes.")
}
