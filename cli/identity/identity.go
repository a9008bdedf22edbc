// SPDX-License-Identifier: Apache-2.0

// Package identity is `hawser identity`: the numbers that stand for labels.
package identity

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

type row = *hawserv1.IdentityInfo

// New returns the command.
func New(s *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "identity",
		Aliases: []string{"id"},
		Short:   "See the identities of the mesh",
	}
	cmd.AddCommand(newList(s), newGet(s))
	return cmd
}

func list(ctx context.Context, s *session.Session) ([]row, error) {
	r, err := session.Ask(ctx, s, hawserv1.MeshClient.ListIdentities, &hawserv1.ListIdentitiesRequest{})
	return r.GetIdentities(), err
}

func newList(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the identities of all clusters, and the reserved ones",
		Long: "List the identities of all clusters, and the reserved ones. Those of the cluster that\n" +
			"is asked are used, unused (by no node: soon retired) or retired: not given again\n" +
			"until nobody can take the number for its old labels any more.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := list(cmd.Context(), s)
			if err != nil {
				return err
			}
			return printer.List(cmd.OutOrStdout(), s.Output, rows, printer.Columns[row]{
				{Header: "IDENTITY", Cell: func(r row) string { return fmt.Sprint(r.GetNumber()) }},
				{Header: "CLUSTER", Cell: row.GetCluster},
				{Header: "STATE", Cell: state},
				{Header: "NODES", Cell: func(r row) string { return strings.Join(r.GetNodes(), ",") }},
				{Header: "LABELS", Cell: func(r row) string { return printer.Labels(r.GetLabels()) }},
			}, "No identities.")
		},
	}
}

// state is used, unused, remote, reserved, or what a retired number waits for.
func state(r row) string {
	if r.GetSince() == 0 {
		return r.GetState()
	}
	s := r.GetState() + " " + printer.Age(r.GetSince())
	if r.GetWaitsFor() != "" {
		s += ", waits for " + r.GetWaitsFor()
	}
	return s
}

func newGet(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "get NUMBER",
		Short: "Show the labels of an identity",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := strconv.ParseUint(args[0], 0, 32)
			if err != nil {
				return session.Usage("identity %q: give its number, such as 65537 or 0x010001", args[0])
			}
			rows, err := list(cmd.Context(), s)
			if err != nil {
				return err
			}
			for _, r := range rows {
				if uint64(r.GetNumber()) == number {
					return printer.One(cmd.OutOrStdout(), s.Output, r, func(w io.Writer) error {
						return printer.Fields(w,
							"Identity", fmt.Sprintf("%d (0x%06x)", r.GetNumber(), r.GetNumber()),
							"Cluster", r.GetCluster(),
							"State", state(r),
							"Labels", strings.Join(r.GetLabels(), "\n\t"),
							"Used on", strings.Join(r.GetNodes(), ", "))
					})
				}
			}
			return session.Answer("no identity %s; see: hawser identity list", args[0])
		},
	}
}
