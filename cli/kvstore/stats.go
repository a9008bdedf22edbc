// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

func newStats(s *session.Session) *cobra.Command {
	var during time.Duration
	cmd := &cobra.Command{
		Use:   "stats [PREFIX]",
		Short: "Count keys, bytes and changes per kind and cluster",
		Long: "Count keys, bytes and changes per kind and cluster. Changes are counted by watching\n" +
			"for a while (--during); values that are not believed are counted as BAD.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if during < 0 {
				return session.Usage("--during %s: must not be negative", during)
			}
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			stats, err := inspect.Stats(cmd.Context(), client, prefixes(cl.Name, args), during, kvstore.Limits{})
			if err != nil {
				return explain(cl.Name, err)
			}
			return printer.Rows(cmd.OutOrStdout(), s.Output, stats, printer.Columns[inspect.Stat]{
				{Header: "SUBTREE", Cell: func(r inspect.Stat) string { return r.Subtree }},
				{Header: "CLUSTER", Cell: func(r inspect.Stat) string { return r.Cluster }},
				{Header: "KIND", Cell: func(r inspect.Stat) string { return r.Kind }},
				{Header: "KEYS", Cell: func(r inspect.Stat) string { return printer.Count(r.Keys) }},
				{Header: "SIZE", Cell: func(r inspect.Stat) string { return printer.Bytes(uint64(r.Bytes)) }},
				{Header: "CHANGES/S", Cell: func(r inspect.Stat) string { return fmt.Sprintf("%.1f", r.ChangesPerSecond) }},
				{Header: "NEWEST", Cell: func(r inspect.Stat) string { return printer.Count(r.Newest) }},
				{Header: "BAD", Cell: func(r inspect.Stat) string { return printer.Count(r.Bad) }},
			}, "No keys.")
		},
	}
	cmd.Flags().DurationVar(&during, "during", 2*time.Second, "how long to count changes; 0 counts none")
	return cmd
}

func newOrphans(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "orphans",
		Short: "Find keys whose owner is missing",
		Long: "Find keys whose owner is missing: references without identity or node, addresses\n" +
			"without node or identity, halves of identities, slices without service. Exit code 1\n" +
			"when there are any. Those of a node that is gone are removed when it is forgotten.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			orphans, err := inspect.Orphans(cmd.Context(), client, cl.Name)
			if err != nil {
				return explain(cl.Name, err)
			}
			if err := printer.Rows(cmd.OutOrStdout(), s.Output, orphans, printer.Columns[inspect.Orphan]{
				{Header: "KEY", Cell: func(o inspect.Orphan) string { return short(o.Key) }},
				{Header: "MISSING", Cell: func(o inspect.Orphan) string { return short(o.Missing) }},
				{Header: "WHY", Cell: func(o inspect.Orphan) string { return o.Why }},
			}, "No orphans."); err != nil {
				return err
			}
			if n := len(orphans); n > 0 {
				return session.Answer("%d key(s) without owner", n)
			}
			return nil
		},
	}
}
